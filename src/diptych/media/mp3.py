"""MP3 files, whose sound is as long as their frames are many; what they say of it themselves, the decoder believes.

The frames are found as minimp3 finds them, which miniaudio and with it libmtmd decode with. What stands between is left
out: it could hold others for whoever looks from another byte on.
"""

from __future__ import annotations

from diptych.errors import MediaError

MATCHES = 10  # frames in a row before minimp3 takes them for sound
MAX_MISSED = 2**17  # bytes of 255 that begin no frame: pictures between the frames have some, and each takes a look
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


Runs = list[tuple[int, int]]  # where frames that follow each other begin and end


def frames(data: bytes, start: int, most: float, name: str) -> tuple[bytes, float]:
    """The frames of an MP3 from `start` on, and the seconds they last or claim to; over `most` no more are looked for.

    Raises MediaError where there are none, or some of another version, layer or sampling rate.
    """
    runs, seconds, n_missed, at, end = Runs(), 0.0, 0, start, _end(data)
    while seconds <= most and n_missed < MAX_MISSED and (at := data.find(b"\xff", at, max(end - 3, 0))) >= 0:
        after, lasts = _run(data, at, end, most)
        if after == at:
            n_missed, at = n_missed + 1, at + 1
            continue
        if runs and not _alike(data, runs[0][0], at):
            raise MediaError(f"{name} is an MP3 whose sampling rate changes; convert it to WAV")
        runs.append((at, after))
        seconds, at = seconds + lasts, after
    if not runs or n_missed == MAX_MISSED:
        raise MediaError(f"{name} is an MP3 file with little or no sound in it, or none of a known bit rate; convert it to WAV")
    return b"".join(data[first:last] for first, last in runs), seconds


def _run(data: bytes, first: int, end: int, most: float) -> tuple[int, float]:
    """Where the like frames from `first` on end, and the seconds they last or claim to; `first` where they are too few."""
    if not _alike(data, first, first):
        return first, 0.0
    (rate, samples), at, n, claimed = _pace(data, first), first, 0, 0
    while at + 4 <= end and _alike(data, first, at) and at + _size(data, at) <= end and n * samples <= most * rate:
        claimed = max(claimed, _claim(data, at))
        at, n = at + _size(data, at), n + 1
    if not n or (n < MATCHES and at + 4 <= end):
        return first, 0.0
    return at, max(n, claimed) * samples / rate


def _end(data: bytes) -> int:
    """Where the sound ends: before an ID3v1 tag, and an APE tag before that."""
    end = len(data) - 128 if len(data) > 128 and data[-128:-125] == b"TAG" else len(data)
    foot = data[max(end - 32, 0) : end]
    size = 32 + int.from_bytes(foot[12:16], "little")
    return end - size if foot[:8] == b"APETAGEX" and size < end else end


def _alike(data: bytes, i: int, j: int) -> bool:
    """Whether a frame's header begins at `j`, of the same version, layer and sampling rate as that at `i`, with a bit rate."""
    kind, rates = data[j + 1], data[j + 2]
    valid = data[j] == 0xFF and (kind & 0xF0 == 0xF0 or kind & 0xFE == 0xE2) and kind & 6 and rates & 12 != 12
    return bool(valid and 0 < rates >> 4 < 15 and not (data[i + 1] ^ kind) & 0xFE and not (data[i + 2] ^ rates) & 12)


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
