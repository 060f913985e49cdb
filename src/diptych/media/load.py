"""Fetch a media part, whatever form it came in, and decode it."""

from __future__ import annotations

import base64
import binascii
import hashlib
from pathlib import Path
from urllib.parse import unquote_to_bytes, urlsplit
from urllib.request import url2pathname

import numpy as np

from diptych.errors import MediaError
from diptych.media import audio
from diptych.media.image import Pixels, decode
from diptych.types import Media, MediaKind, Source

_NOUNS: dict[MediaKind, str] = {"image": "picture", "audio": "recording", "video": "video"}
MAX_BYTES = 2**30  # of a file; the largest picture of 16-bit colour under the usual pixel limit, uncompressed


def load(source: Source, *, max_pixels: int) -> Media:
    """Bytes, a path, or a `file:`, `data:`, `http:` or `https:` URL → media.

    A picture is decoded, and `key` hashes its pixels alone; sound stays the bytes of its file, which the media half
    decodes. Raises MediaError, naming the source, when it cannot be fetched, is not what it is given as, or has over
    `max_pixels` pixels or lasts too long.
    """
    name = _name(source)
    if source.kind == "video":
        raise MediaError(f"{name} is given as video, and only images and audio are supported by now; give pictures of it")
    data = _read(source, name)
    if source.kind == "audio":
        audio.check(data, name)
        return Media("audio", np.frombuffer(data, np.uint8), hashlib.sha256(b"audio " + data).digest())
    pixels = decode(data, max_pixels=max_pixels, name=name)
    return Media("image", pixels, content_key(pixels))


def content_key(pixels: Pixels) -> bytes:
    """SHA-256 of shape and pixels: the same picture in another file format has the same key."""
    digest = hashlib.sha256(b"image %d %d %d " % pixels.shape)
    digest.update(pixels.tobytes())
    return digest.digest()


def _name(source: Source) -> str:
    """What messages call the picture or recording: its id, its path or URL, shortened."""
    if source.id is not None or source.url is None:
        return source.id or f"the {_NOUNS[source.kind]}"
    if _scheme(source.url) == "data":
        return f"the {_NOUNS[source.kind]} in the data URL"
    return source.url if len(source.url) <= 100 else f"{source.url[:97]}..."


def _scheme(url: str) -> str:
    """The scheme of a URL in lower case; "" for a path."""
    scheme, colon, rest = url.partition(":")
    return scheme.lower() if colon and (rest.startswith("//") or scheme.lower() in ("data", "file")) else ""


def _read(source: Source, name: str) -> bytes:
    if source.data is not None:
        return source.data
    if not source.url:
        raise MediaError(f"{name} has neither data nor a path nor a URL; give one of them")
    match _scheme(source.url):
        case "":
            return _file(Path(source.url), name)
        case "file":
            return _file(_path(source.url, name), name)
        case "data":
            return _inline(source.url, name)
        case "http" | "https":
            from diptych.media.fetch import fetch  # TLS takes a while to import

            return fetch(source.url, name, source.kind)
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


def _file(path: Path, name: str) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except IsADirectoryError:
        raise MediaError(f"{name} is a folder, and a file is needed; name one in it") from None
    except FileNotFoundError:
        raise MediaError(f"there is no file {name}; check the path") from None
    except (OSError, ValueError) as error:
        raise MediaError(f"cannot read {name}: {getattr(error, 'strerror', None) or error}; check the path") from error
    if len(data) > MAX_BYTES:
        raise MediaError(f"{name} has over {MAX_BYTES:,} bytes, more than is read; make it smaller")
    return data


def _inline(url: str, name: str) -> bytes:
    """The data of `data:[type][;base64],…`, base64 in either alphabet, padded or not."""
    head, comma, body = url[len("data:") :].partition(",")
    if not comma:
        raise MediaError(f"{name} has no comma between type and data; write data:image/png;base64,...")
    data = unquote_to_bytes(body)
    if not head.lower().rstrip().endswith(";base64"):
        return data
    text = b"".join(data.split()).translate(bytes.maketrans(b"-_", b"+/")).rstrip(b"=")
    try:
        return base64.b64decode(text + b"=" * (-len(text) % 4), validate=True)
    except binascii.Error as error:
        raise MediaError(f"{name} is not valid base64: {str(error).lower()}; encode the file's bytes again") from error
