"""How long an MP3 can be at most. It does not say, and what it says is believed by the decoder, however much it is.

The walk is that of minimp3, which miniaudio and with it libmtmd decode with: frames count where ten follow each other. What
it may see in another way here, because a frame was damaged, counts as the shortest frames there are.
"""

from __future__ import annotations

from diptych.errors import MediaError

MATCHES = 10  # frames in a row before minimp3 takes them for sound
MAX_FRAME = 2304  # bytes of one without a bit rate
DENSEST = 0.072 / 13  # seconds a byte: 576 samples at 8 kHz, in a header of 4 bytes and side information of 9
_RATES = (44100, 48000, 32000)
_KBITS = {  # by MPEG 1 or not, then layer bits; half of them, as they stand in the header
    True: {
        1: (0, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160),
        2: (0, 16, 24, 28, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192),
        3: (0, 16, 32, 48, 64, 80, 96, 112, 128, 144, 160, 176, 192, 208, 224),
    },
    False: {
        1: (0, 4, 8, 12, 16, 20, 24, 28, 32, 40, 48, 56, 64, 72, 80),
        2: (0, 4, 8, 12, 16, 20, 24, 28, 32, 40, 48, 56, 64, 72, 80),
        3: (0, 16, 24, 28, 32, 40, 48, 56, 64, 72, 80, 88, 96, 112, 128),
    },
}


def seconds(data: bytes, start: int, most: float, name: str) -> float:
    """The seconds that are decoded from `start` on, or a few more; over `most` it stops counting.

    Raises MediaError for an MP3 without a bit rate, which may be of any length.
    """
    end, at, total = _end(data), start, 0.0
    while total <= most:
        found = data.find(b"\xff", at, end - 3)
        if found < 0:
            return total + (end - at) * DENSEST
        total += (found - at) * DENSEST
        if _valid(data, found):
            if _free(data, found, end):
                raise MediaError(f"{name} is an MP3 without a bit rate, whose length is not known; convert it to WAV")
            after, lasts = _run(data, found, end, at)
            if after > found:
                total, at = total + lasts, after
                continue
        total, at = total + DENSEST, found + 1
    return total


def _run(data: bytes, first: int, end: int, scanned: int) -> tuple[int, float]:
    """Where the like frames from `first` on end, and the seconds they take or claim; `first` where they are too few."""
    rate, samples = _pace(data, first)
    at, n, claimed, last = first, 0, _claim(data, scanned), [first] * MATCHES
    while at + 4 <= end and _alike(data, first, at):
        claimed = max(claimed, _claim(data, at))
        last[n % MATCHES] = at
        at, n = at + _size(data, at), n + 1
    if at + 4 <= end and n < MATCHES:
        return first, 0.0
    unsure = 0 if at + 4 > end else at - min(last)  # bytes that minimp3 may take for something else
    return min(at, end), max(n, claimed) * samples / rate + unsure * DENSEST


def _end(data: bytes) -> int:
    """Where the sound ends: before an ID3v1 tag, and an APE tag before that."""
    end = len(data) - 128 if len(data) > 128 and data[-128:-125] == b"TAG" else len(data)
    foot = data[max(end - 32, 0) : end]
    size = 32 + int.from_bytes(foot[12:16], "little")
    return end - size if foot[:8] == b"APETAGEX" and size < end else end


def _valid(data: bytes, i: int) -> bool:
    """Whether a header begins at `i`, whose first byte is 255."""
    kind, rates = data[i + 1], data[i + 2]
    return (kind & 0xF0 == 0xF0 or kind & 0xFE == 0xE2) and kind & 6 != 0 and rates >> 4 != 15 and rates & 12 != 12


def _alike(data: bytes, i: int, j: int) -> bool:
    """Whether a header begins at `j`, of the same version, layer and sampling rate as that at `i`."""
    if data[j] != 0xFF or not _valid(data, j) or (data[i + 1] ^ data[j + 1]) & 0xFE or (data[i + 2] ^ data[j + 2]) & 12:
        return False
    return (data[i + 2] < 16) == (data[j + 2] < 16)


def _free(data: bytes, i: int, end: int) -> bool:
    """Whether a frame without a bit rate could begin at `i`: others like it follow."""
    return data[i + 2] < 16 and any(_alike(data, i, i + k) for k in range(4, min(MAX_FRAME, end - i - 4)))


def _pace(data: bytes, i: int) -> tuple[int, int]:
    """Samples a second, and samples a frame."""
    first, layer = bool(data[i + 1] & 8), data[i + 1] >> 1 & 3
    rate = _RATES[data[i + 2] >> 2 & 3] >> (not first) >> (not data[i + 1] & 16)
    return rate, 384 if layer == 3 else 576 if layer == 1 and not first else 1152


def _size(data: bytes, i: int) -> int:
    """The bytes of a frame."""
    rate, samples = _pace(data, i)
    layer = data[i + 1] >> 1 & 3
    n = samples * 2 * _KBITS[bool(data[i + 1] & 8)][layer][data[i + 2] >> 4] * 125 // rate
    pad = data[i + 2] >> 1 & 1
    return (n & ~3) + 4 * pad if layer == 3 else n + pad


def _claim(data: bytes, i: int) -> int:
    """The frames that a Xing or Info header in the frame at `i` says there are; 0 where it says nothing."""
    head = data[i + 13 : i + 54]  # behind a header, a checksum or none, and the side information of one of three sizes
    for tag in (b"Xing", b"Info"):
        if 0 <= (k := head.find(tag)) <= 25 and head[k + 7 : k + 8] and head[k + 7] & 1:
            return int.from_bytes(head[k + 8 : k + 12], "big")
    return 0
