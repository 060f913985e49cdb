"""Fetch a media part, whatever form it came in, and decode it."""

from __future__ import annotations

import base64
import binascii
import hashlib
from pathlib import Path
from urllib.parse import unquote_to_bytes, urlsplit
from urllib.request import url2pathname

import numpy as np

from diptych.errors import MediaError, MediaTooLarge, UnsupportedMedia
from diptych.media import audio
from diptych.media.access import Access, shown
from diptych.media.image import decode
from diptych.media.rgb import Pixels
from diptych.types import Media, MediaKind, Source

_NOUNS: dict[MediaKind, str] = {"image": "picture", "audio": "recording", "video": "video"}
_MEDIA = ("image/", "audio/", "video/", "application/octet-stream", "binary/octet-stream")  # types of a data URL


def load(source: Source, access: Access) -> Media:
    """Bytes, a path, or a `file:`, `data:`, `http:` or `https:` URL → media, as far as `access` allows.

    Where it does not allow any path, what is no URL is base64. A picture is decoded, and `key` hashes its pixels alone;
    sound stays the bytes of its file, which the media half decodes. Raises MediaError, naming the source, when it may
    not or cannot be fetched, or is damaged; MediaTooLarge over a limit of `access`; UnsupportedMedia when it is not what
    it is given as.
    """
    return decoded(source, read(source, access), access)


def read(source: Source, access: Access) -> bytes:
    """The bytes of a media part, not yet looked into. Raises as `load` does."""
    name = _name(source, access)
    if source.kind == "video":
        raise UnsupportedMedia(f"{name} is given as video, and only images and audio are supported by now; give pictures of it")
    data = _read(source, access, name)
    if len(data) > access.max_bytes:
        raise MediaTooLarge(f"{name} has over {access.max_bytes:,} bytes; make it smaller or raise --media-max-bytes")
    return data


def is_remote(source: Source) -> bool:
    """Whether the bytes of a source have to come over the network."""
    return source.data is None and _scheme(source.url or "") in ("http", "https")


def decoded(source: Source, data: bytes, access: Access) -> Media:
    """The media in the bytes that were read of a source. Raises as `load` does."""
    name = _name(source, access)
    if source.kind == "audio":
        data = audio.checked(data, access.max_audio_seconds, name)
        return Media("audio", np.frombuffer(data, np.uint8), hashlib.sha256(b"audio " + data).digest())
    pixels = decode(data, max_pixels=access.max_pixels, name=name)
    return Media("image", pixels, content_key(pixels))


def content_key(pixels: Pixels) -> bytes:
    """SHA-256 of shape and pixels: the same picture in another file format has the same key."""
    digest = hashlib.sha256(b"image %d %d %d " % pixels.shape)
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.digest()


def _name(source: Source, access: Access) -> str:
    """What messages call the picture or recording: its id, its path or URL, shortened."""
    noun = f"the {_NOUNS[source.kind]}"
    if source.id is not None or source.url is None:
        return shown(source.id or noun)
    scheme = _scheme(source.url)
    if scheme == "data":
        return f"{noun} in the data URL"
    return noun if not scheme and access.files != "any" else shown(source.url)


def _scheme(url: str) -> str:
    """The scheme of a URL in lower case; "" for a path."""
    scheme, colon, rest = url.partition(":")
    return scheme.lower() if colon and (rest.startswith("//") or scheme.lower() in ("data", "file")) else ""


def _read(source: Source, access: Access, name: str) -> bytes:
    if source.data is not None:
        return source.data
    if not source.url:
        raise MediaError(f"{name} has neither data nor a path nor a URL; give one of them")
    match _scheme(source.url):
        case "http" | "https":
            from diptych.media.fetch import fetch  # TLS takes a while to import

            return fetch(source.url, name, source.kind, access)
        case "file" if access.files == "any":
            return _file(_path(source.url, name), access, name)
        case "file":
            return _file(access.find(source.url[len("file:") :].removeprefix("//")), access, name)
        case "data":
            return _inline(source.url, name)
        case "" if access.files == "any":
            return _file(Path(source.url), access, name)
        case "":
            return _base64(source.url.encode(errors="replace"), name)
        case scheme:
            raise MediaError(f"{name} is a {scheme}: URL, and a path, data:, file:, http: or https: is expected; save it first")


def _path(url: str, name: str) -> Path:
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise MediaError(f"cannot read {name}: {error}; check the address") from error
    if parts.netloc not in ("", "localhost"):
        raise MediaError(f"{name} names a file of the machine {parts.netloc}, and only this one's can be read; copy it here")
    return Path(url2pathname(parts.path))


def _file(path: Path, access: Access, name: str) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(access.max_bytes + 1)
    except IsADirectoryError:
        raise MediaError(f"{name} is a folder, and a file is needed; name one in it") from None
    except FileNotFoundError:
        raise MediaError(f"there is no file {name}; check the path") from None
    except (OSError, ValueError) as error:
        raise MediaError(f"cannot read {name}: {getattr(error, 'strerror', None) or error}; check the path") from error


def _inline(url: str, name: str) -> bytes:
    """The data of `data:[type][;base64],…`, base64 in either alphabet, padded or not."""
    head, comma, body = url[len("data:") :].partition(",")
    if not comma:
        raise MediaError(f"{name} has no comma between type and data; write data:image/png;base64,...")
    kind = head.partition(";")[0].strip().lower()
    if kind and not kind.startswith(_MEDIA):
        raise UnsupportedMedia(f"{name} is {shown(kind)}, and a picture or a recording is expected; give another")
    data = unquote_to_bytes(body.encode(errors="replace"))
    return _base64(data, name) if head.lower().rstrip().endswith(";base64") else data


def _base64(data: bytes, name: str) -> bytes:
    """In either alphabet, padded or not."""
    text = b"".join(data.split()).translate(bytes.maketrans(b"-_", b"+/")).rstrip(b"=")
    try:
        return base64.b64decode(text + b"=" * (-len(text) % 4), validate=True)
    except binascii.Error as error:
        raise MediaError(f"{name} is not valid base64: {str(error).lower()}; encode the file's bytes again") from error
