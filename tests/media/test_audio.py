"""Sound is known by its first bytes, and its length before anything decodes it."""

from __future__ import annotations

import struct

import numpy as np
import pytest

import sounds
from diptych.errors import MediaError, MediaTooLarge, UnsupportedMedia
from diptych.media import mp3
from diptych.media.access import Access
from diptych.media.audio import checked
from diptych.media.load import load
from diptych.types import Source

MAX_SECONDS = 14400
FRAME = b"\xff\xfb\x90\xc4".ljust(417, b"\0")  # 1152 samples at 44.1 kHz, 128 kbit/s, one channel, silent
SHORTEST = b"\xff\xe3\x18\xc4".ljust(72, b"\0")  # 576 samples at 8 kHz, 8 kbit/s


def check(data: bytes, name: str = "clip", max_seconds: float = MAX_SECONDS) -> bytes:
    return checked(data, max_seconds, name)


def xing(n: int, tag: bytes = b"Xing") -> bytes:
    """A first frame that says how many there are."""
    return (FRAME[:21] + tag + struct.pack(">II", 1, n)).ljust(417, b"\0")


def id3(body: bytes, footer: bool = False) -> bytes:
    size = bytes((len(body) >> shift) & 0x7F for shift in (21, 14, 7, 0))
    return b"ID3\4\0" + bytes([0x10 * footer]) + size + body + bytes(10 * footer)


def adpcm(n: int, rate: int = 8000) -> bytes:
    """A WAV of two samples a byte that says it has `n`."""
    form = struct.pack("<HHIIHHHH", 2, 1, rate, rate, 256, 4, 2, 0)
    parts = (
        b"fmt "
        + struct.pack("<I", 20)
        + form
        + b"fact"
        + struct.pack("<II", 4, n)
        + b"data"
        + struct.pack("<I", 512)
        + bytes(512)
    )
    return b"RIFF" + struct.pack("<I", len(parts) + 4) + b"WAVE" + parts


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
        id3(b"x" * 300) + FRAME,
        id3(b"", footer=True) + FRAME * 20,
        FRAME,
        SHORTEST * 30,
        adpcm(1000),
        id3(b"x") + id3(b"y") + flac(48000, 480),
    ],
)
def test_sound_of_a_known_kind_and_length_is_taken(data):
    assert data.endswith(check(data, "a.wav"))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", r"^clip is empty, and a recording in WAV, MP3 or FLAC is expected"),
        (b"OggS" + bytes(40), r"^clip is audio \(Ogg\), and"),
        (b"RIFF\x04\0\0\0WEBP", r"^clip is a WEBP picture, and"),
        (b"hello", r"^clip is data that begins with b'hell', and"),
        (WAV[:-100], "ends 100 bytes before its sound does"),
        (WAV[:40], "without a format or without sound"),
        (WAV[:12] + WAV[36:], "without a format or without sound"),
        (WAV.replace(struct.pack("<I", 16000), bytes(4)), "without a format or without sound"),
        (sounds.wav(np.zeros(30_000), rate=2), r"lasts 15,000 s or more, and 14,400 s are the most"),
        (flac(48000, 48000 * MAX_SECONDS + 48000), r"lasts 14,401 s"),
        (flac(1, 2**36 - 1), "are the most; cut it into parts"),
        (flac(48000, 0), "does not say how long it is"),
        (flac(0, 5), "does not say how long it is"),
        (flac(48000, 5)[:30], "does not say how long it is"),
        (b"ID3" + bytes(9), "with little or no sound in it"),
        (b"\xff\xfb\x90\x44", "with little or no sound in it"),
        (b"\xff\xfb\x00\xc4".ljust(100, b"\0") * 50, "or none of a known bit rate"),
        (b"\xff\xe0" * 200_000, "with little or no sound in it"),
        (FRAME * 12 + SHORTEST * 12, "whose sampling rate changes"),
        (WAV[:36] + WAV[12:36] + WAV[36:], "or with two"),
        (WAV + WAV[36:], "or with two"),
    ],
)
def test_what_is_no_sound_or_too_long_is_told_in_one_line(data, says):
    with pytest.raises(MediaError, match=says) as caught:
        check(data)
    assert "\n" not in str(caught.value)


def test_a_wav_cut_anywhere_is_refused_or_shorter():
    for n in range(0, len(WAV), 7):
        with pytest.raises(MediaError):
            check(WAV[:n], "clip")


@pytest.mark.parametrize(
    ("data", "kind", "status"),
    [
        (b"OggS" + bytes(40), UnsupportedMedia, 415),
        (b"hello", MediaError, 400),
        (b"", MediaError, 400),
        (FRAME * 2 + b"x" * 9, MediaError, 400),
        (flac(48000, 48000 * MAX_SECONDS + 48000), MediaTooLarge, 413),
    ],
)
def test_refusals_have_their_status(data, kind, status):
    with pytest.raises(MediaError) as caught:
        check(data)
    assert type(caught.value) is kind
    assert caught.value.status == status


@pytest.mark.parametrize(
    "data",
    [
        xing(2**32 - 1) + FRAME,  # all that the decoder would make room for: 34 GB of samples
        xing(700, b"Info") + FRAME,
        FRAME[:3] + b"\xff" + b"\xff" * 32 + bytes(381) + xing(700) + FRAME * 12,  # behind a frame that cannot be decoded
        adpcm(8000 * 11),
        adpcm(1000, rate=1),
        id3(b"x") + flac(48000, 48000 * 11),
        SHORTEST * 140,
        (FRAME * 200 + b"junk") * 2,
    ],
)
def test_a_file_that_would_decode_to_more_than_it_should_is_refused(data):
    with pytest.raises(MediaTooLarge, match=r"^clip lasts [\d,]+ s or more, and 10 s are the most; cut it into parts"):
        check(data, max_seconds=10)


def test_of_an_mp3_its_frames_are_left():
    art = id3(b"\xff\xd8" + b"\xff\xfb\x90\xc4" * 50)
    tags = b"APETAGEX" + struct.pack("<IIII", 2000, 1968, 1, 0) + bytes(8)
    assert check(id3(b"x") + FRAME * 20 + art + FRAME * 11 + SHORTEST * 3 + FRAME * 10 + b"x" + FRAME * 10) == FRAME * 51
    assert check(FRAME * 20 + SHORTEST * 27 + bytes(24) + tags + b"TAG".ljust(128, b"\0")) == FRAME * 20


def test_a_run_of_frames_is_measured_to_the_limit_only():
    assert mp3.frames(FRAME * 5000, 0, 1.0, "clip")[1] < 1.1


def test_an_mp3_is_known_by_what_is_left():
    one, two = (load(Source("audio", data=d), Access()) for d in (id3(b"x") + FRAME * 20, FRAME * 20))
    assert one.data.tobytes() == FRAME * 20
    assert one.key == two.key
