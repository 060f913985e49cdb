"""Sound as the bytes of its file: known by its first bytes, and of bounded length before anything decodes it."""

from __future__ import annotations

import struct

from diptych.errors import MediaError, MediaTooLarge, UnsupportedMedia
from diptych.media import mp3
from diptych.media.recognise import recognise

_BYTE_COUNT_UNKNOWN = (0, 2**32 - 1)  # what programs write that do not know the end yet
_ADPCM = (2, 17)  # Microsoft's and IMA's formats, two samples a byte
_EXTENSIBLE = 0xFFFE


def checked(data: bytes, max_seconds: float, name: str) -> bytes:
    """A file of sound that decodes to a bounded length, whatever it says of itself; of an MP3 its frames.

    Raises UnsupportedMedia for what is no WAV, MP3 or FLAC file, MediaError for one damaged at its head, MediaTooLarge
    for one that lasts over `max_seconds`, or claims to.
    """
    data, seconds = _measured(data, max_seconds, name)
    if seconds > max_seconds:
        raise MediaTooLarge(f"{name} lasts {seconds:,.0f} s or more, and {max_seconds:,g} s are the most; cut it into parts")
    return data


def _measured(data: bytes, most: float, name: str) -> tuple[bytes, float]:
    if data[:4] == b"RIFF" and data[8:12] == b"WAVE":
        return data, _wav(data, name)
    sound = _behind_tags(data)
    if data[sound : sound + 4] == b"fLaC":
        return data, _flac(data[sound : sound + 42], name)
    if data[:3] == b"ID3" or (len(data) > 1 and data[0] == 0xFF and data[1] & 0xE0 == 0xE0):
        return mp3.frames(data, _behind_tag(data, 0), most, name)
    what = recognise(data) or ("empty" if not data else f"data that begins with {data[:4]!r}")
    kind = UnsupportedMedia if recognise(data) else MediaError
    raise kind(f"{name} is {what}, and a recording in WAV, MP3 or FLAC is expected; convert it or give another")


def _behind_tags(data: bytes) -> int:
    """Where FLAC begins behind tags of ID3; of MP3 the first alone counts."""
    at = 0
    while (after := _behind_tag(data, at)) > at:
        at = after
    return at


def _behind_tag(data: bytes, at: int) -> int:
    """Where a tag of ID3 ends, if one begins here: its size has seven bits a byte, and there may be a footer as long as
    its head."""
    head = data[at : at + 10]
    if len(head) < 10 or head[:3] != b"ID3":
        return at
    size = sum((byte & 0x7F) << shift for byte, shift in zip(head[6:], (21, 14, 7, 0), strict=True))
    return at + 10 + size + (10 if head[5] & 0x10 else 0)


def _wav(data: bytes, name: str) -> float:
    """The seconds of a WAV: its parts have a name of four letters, a size, and an even number of bytes."""
    parts = _parts(data)
    tags = [tag for tag, _, _ in parts]
    formats = [(at, size) for tag, at, size in parts if tag == b"fmt "]
    if tags.count(b"fmt ") != 1 or tags.count(b"data") != 1 or formats[0][1] < 16 or formats[0][0] + 16 > len(data):
        raise MediaError(f"{name} is a WAV file without a format or without sound, or with two; get it again")
    kind, channels, rate, _, block, bits = struct.unpack_from("<HHIIHH", data, formats[0][0])
    if kind == _EXTENSIBLE and formats[0][1] >= 26:
        kind = int.from_bytes(data[formats[0][0] + 24 : formats[0][0] + 26], "little")
    at, size = next((at, size) for tag, at, size in parts if tag == b"data")
    rest = len(data) - at
    if size > rest and size not in _BYTE_COUNT_UNKNOWN:
        raise MediaError(f"{name} ends {size - rest:,} bytes before its sound does; get it again")
    frame = bits // 8 * channels if bits % 8 == 0 else block
    if not rate or not frame:
        raise MediaError(f"{name} is a WAV file without a format or without sound, or with two; get it again")
    n = min(size or rest, rest)
    if kind not in _ADPCM:
        return float(n / frame / rate)
    said = [int.from_bytes(data[at : at + 4], "little") for tag, at, _ in parts if tag == b"fact"]
    return float(max(2 * n, *said) / rate)


def _parts(data: bytes) -> list[tuple[bytes, int, int]]:
    """The name, place and size of the parts of a WAV."""
    parts, at = [], 12
    while at + 8 <= len(data):
        tag, size = struct.unpack_from("<4sI", data, at)
        parts.append((tag, at + 8, size))
        at += 8 + size + size % 2
    return parts


def _flac(head: bytes, name: str) -> float:
    """The seconds of a FLAC: its first block holds a rate of 20 bits and a count of samples of 36."""
    bits = int.from_bytes(head[18:26], "big") if len(head) >= 42 and head[4] & 0x7F == 0 else 0
    rate, samples = bits >> 44, bits & (2**36 - 1)
    if not rate or not samples:
        raise MediaError(f"{name} is a FLAC file that does not say how long it is; convert it to WAV")
    return samples / rate
