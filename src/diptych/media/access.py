"""What a media part of a request may name, and how large it may be: another thing in a server than for who runs it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from diptych.errors import MediaError
from diptych.options import Options, ServerOptions

MAX_NAME = 255  # characters of a file:// name, and the rules below: those of llama-server's --media-path
# Control characters, what Windows forbids or takes for a separator, and what looks like a dot or a slash.
_FORBIDDEN = re.compile('[\0-\x1f\x7f-\x9f:*?"<>|\\\\\uff0e\u2215\u2216\ud800-\udfff\ufffd\ufeff]')


@dataclass(frozen=True)
class Access:
    """Which files and addresses may be read, and the limits of all that is.

    `files` are any path; those below a directory, named as `file://NAME`; or none. `remote` allows http and https, from
    the `allowed_hosts` (`HOST` or `HOST:PORT`) where there are some. `allow_private` allows this machine and its
    neighbours, any port, and the proxies of the environment. `max_seconds` are those of a fetch.
    """

    files: Path | Literal["any", "none"] = "none"
    remote: bool = True
    allowed_hosts: tuple[str, ...] = ()
    allow_private: bool = False
    proxies: bool = False
    max_bytes: int = 2**26
    max_seconds: float = 10.0  # as llama-server
    max_pixels: int = 2**26
    max_audio_seconds: float = 3600.0

    @classmethod
    def local(cls, options: Options) -> Access:
        """For the command line and Python: whatever the user may read."""
        return cls(
            files="any",
            allow_private=True,
            proxies=True,
            max_bytes=options.media_max_bytes,
            max_seconds=60.0,
            max_pixels=options.media_max_pixels,
            max_audio_seconds=options.media_max_seconds,
        )

    @classmethod
    def server(cls, options: ServerOptions) -> Access:
        """For requests of others."""
        return cls(
            files=options.media_path or "none",
            remote=options.remote_media,
            allowed_hosts=options.allowed_media_hosts,
            allow_private=options.allow_private_media,
            max_bytes=options.media_max_bytes,
            max_pixels=options.media_max_pixels,
            max_audio_seconds=options.media_max_seconds,
        )

    def find(self, name: str) -> Path:
        """The regular file below the directory that `file://` and `name` mean; slashes may be more than needed.

        Raises MediaError where there is no such directory or file, or the name could lead elsewhere.
        """
        said = f"file://{shown(name)}"
        if not isinstance(self.files, Path):
            raise MediaError(f"{said} names a file, and none may be read; set --media-path, or send the file's bytes")
        if not name or len(name) > MAX_NAME or name[0] == " " or name[-1] in " ." or ".." in name or _FORBIDDEN.search(name):
            raise MediaError(
                f"{said} cannot be read; give the path of a file below --media-path, without .. or special characters"
            )
        path = self.files.joinpath(*filter(None, name.split("/")))
        try:
            path, folder = path.resolve(strict=True), self.files.resolve(strict=True)
        except (OSError, RuntimeError):  # RuntimeError: links that lead in circles
            raise MediaError(f"there is no file {said}; check the name") from None
        if not path.is_relative_to(folder) or not path.is_file():
            raise MediaError(f"{said} is no file below --media-path; check the name")
        return path


def shown(text: str) -> str:
    """Text of others for a message: one line, of at most 100 characters."""
    text = "".join(c if c.isprintable() else "?" for c in text[:101])
    return text if len(text) <= 100 else f"{text[:97]}..."
