"""Sound as the bytes of its file: known by its first bytes, and of bounded length before anything decodes it."""

from __future__ import annotations

import struct

from diptych.errors import MediaError

MAX_SECONDS = 4 * 3600
MAX_MP3_BYTES = 2**26  # an MP3 does not say how long it is; at its lowest rate this is 18 hours
_BYTE_COUNT_UNKNOWN = (0, 2**32 - 1)  # what programs write that do not know the end yet


def check(data: bytes, name: str) -> None:
    """Raise MediaError for what is no WAV, MP3 or FLAC file, is damaged at its head, or lasts over MAX_SECONDS."""
    if data[:4] == b"RIFF" and data[8:12] == b"WAVE":
        seconds = _wav(data, name)
    elif data[:4] == b"fLaC":
        seconds = _flac(data, name)
    elif data[:3] == b"ID3" or (len(data) > 1 and data[0] == 0xFF and data[1] & 0xE0 == 0xE0):
        if len(data) > MAX_MP3_BYTES:
            raise MediaError(f"{name} has over {MAX_MP3_BYTES:,} bytes, more than an MP3 may have; cut it into parts")
        return
    else:
        found = "is empty" if not data else f"begins with {data[:4]!r}"
        raise MediaError(f"{name} is no WAV, MP3 or FLAC file (it {found}); convert it to one")
    if seconds > MAX_SECONDS:
        raise MediaError(f"{name} lasts {seconds:,.0f} s, and {MAX_SECONDS:,} s are the most; cut it into parts")


def _wav(data: bytes, name: str) -> float:
    """The seconds of a WAV: its parts have a name of four letters, a size, and an even number of bytes."""
    rate = frame = 0
    at = 12
    while at + 8 <= len(data):
        tag, size = struct.unpack_from("<4sI", data, at)
        at += 8
        if tag == b"fmt " and at + 16 <= len(data):
            rate, _, frame = struct.unpack_from("<IIH", data, at + 4)
        elif tag == b"data":
            if not rate or not frame:
                break
            rest = len(data) - at
            if size > rest and size not in _BYTE_COUNT_UNKNOWN:
                raise MediaError(f"{name} ends {size - rest:,} bytes before its sound does; get it again")
            return min(size or rest, rest) / frame / rate
        at += size + size % 2
    raise MediaError(f"{name} is a WAV file without a format or without sound; get it again")


def _flac(data: bytes, name: str) -> float:
    """The seconds of a FLAC: its first block holds a rate of 20 bits and a count of samples of 36."""
    bits = int.from_bytes(data[18:26], "big") if len(data) >= 42 and data[4] & 0x7F == 0 else 0
    rate, samples = bits >> 44, bits & (2**36 - 1)
    if not rate or not samples:
        raise MediaError(f"{name} is a FLAC file that does not say how long it is; convert it to WAV")
    return samples / rate
