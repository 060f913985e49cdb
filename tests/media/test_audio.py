"""Sound is known by its first bytes, and its length before anything decodes it."""

from __future__ import annotations

import struct

import numpy as np
import pytest

import sounds
from diptych.errors import MediaError
from diptych.media.audio import MAX_MP3_BYTES, MAX_SECONDS, check


def flac(rate: int, samples: int) -> bytes:
    """The head of a FLAC file."""
    numbers = (rate << 44 | 15 << 36 | samples).to_bytes(8, "big")
    return b"fLaC" + b"\0\0\0\x22" + struct.pack(">HH6x", 4096, 4096) + numbers + bytes(16)


def with_size(data: bytes, size: int) -> bytes:
    """A WAV whose sound is said to have `size` bytes."""
    at = data.index(b"data") + 4
    return data[:at] + struct.pack("<I", size) + data[at + 4 :]


WAV = sounds.wav(sounds.tone(0.1))
LIST = WAV[:12] + b"LIST" + struct.pack("<I", 3) + b"abc\0" + WAV[12:]


@pytest.mark.parametrize(
    "data",
    [
        WAV,
        LIST,
        with_size(WAV, 0),
        with_size(WAV, 2**32 - 1),
        flac(48000, 48000 * MAX_SECONDS),
        b"ID3" + bytes(9),
        b"\xff\xfb\x90\x44",
    ],
)
def test_sound_of_a_known_kind_and_length_is_taken(data):
    check(data, "a.wav")


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", r"^clip is no WAV, MP3 or FLAC file \(it is empty\)"),
        (b"OggS" + bytes(40), r"it begins with b'OggS'"),
        (b"RIFF\x04\0\0\0WEBP", r"it begins with b'RIFF'"),
        (WAV[:-100], "ends 100 bytes before its sound does"),
        (WAV[:40], "without a format or without sound"),
        (WAV[:12] + WAV[36:], "without a format or without sound"),
        (WAV.replace(struct.pack("<I", 16000), bytes(4)), "without a format or without sound"),
        (sounds.wav(np.zeros(30_000), rate=2), r"lasts 15,000 s, and 14,400 s are the most"),
        (flac(48000, 48000 * MAX_SECONDS + 48000), r"lasts 14,401 s"),
        (flac(1, 2**36 - 1), "are the most; cut it into parts"),
        (flac(48000, 0), "does not say how long it is"),
        (flac(0, 5), "does not say how long it is"),
        (flac(48000, 5)[:30], "does not say how long it is"),
        (b"ID3" + bytes(MAX_MP3_BYTES), "more than an MP3 may have"),
    ],
)
def test_what_is_no_sound_or_too_long_is_told_in_one_line(data, says):
    with pytest.raises(MediaError, match=says) as caught:
        check(data, "clip")
    assert "\n" not in str(caught.value)


def test_a_wav_cut_anywhere_is_refused_or_shorter():
    for n in range(0, len(WAV), 7):
        with pytest.raises(MediaError):
            check(WAV[:n], "clip")
