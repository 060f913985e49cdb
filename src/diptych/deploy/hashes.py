"""The sizes and hashes of a deployment's files: written when it is made, checked when somebody asks."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from diptych.deploy.config import read_config
from diptych.errors import FileError

_BLOCK = 1 << 22
_SHA256 = re.compile(r"[0-9a-f]{64}")

Moved = Callable[[int, int], None]  # (bytes done, bytes in all)


@dataclass(frozen=True)
class FileInfo:
    """What a file of a deployment is known by."""

    bytes: int
    sha256: str


def hashed(path: Path, moved: Moved | None = None) -> str:
    """The SHA-256 of a file, in hexadecimal. Raises FileError when it cannot be read."""
    digest = hashlib.sha256()
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
                if moved:
                    moved(file.tell(), size)
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror}") from error
    return digest.hexdigest()


def recorded(folder: Path) -> dict[str, FileInfo]:
    """The files of a deployment as its config.json has them; none where it says nothing of them.

    Raises FileError, with key and line, for what is no name, size or hash.
    """
    config = read_config(folder)
    if config is None or not config.has("diptych") or not config.section("diptych").has("files"):
        return {}
    files = config.section("diptych").section("files")
    out = {}
    for name in files.values:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts:
            raise files.wrong(name, "a file of this folder is expected")
        entry = files.section(name)
        if not _SHA256.fullmatch(entry.get("sha256", str)):
            raise entry.wrong("sha256", "64 hexadecimal digits are expected")
        out[name] = FileInfo(entry.get("bytes", int), entry.get("sha256", str))
    return out


def changed(folder: Path, files: Mapping[str, FileInfo], moved: Moved | None = None) -> dict[str, str]:
    """What is wrong with files, by name: missing, of another size, or of other content. Sizes are looked at first."""
    out = {}
    done, total = 0, sum(info.bytes for info in files.values())
    for name, info in files.items():
        path = folder / name
        if not path.is_file():
            out[name] = "missing"
        elif (size := path.stat().st_size) != info.bytes:
            out[name] = f"{size} bytes where there were {info.bytes}"
        elif hashed(path, _from(done, total, moved)) != info.sha256:
            out[name] = "changed"
        done += info.bytes
    return out


def _from(start: int, total: int, moved: Moved | None) -> Moved | None:
    return moved and (lambda done, _size: moved(start + done, total))
