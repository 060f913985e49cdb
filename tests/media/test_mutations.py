"""Files and URLs with parts changed, cut, doubled and swapped: media, or one error of ours, in bounded time."""

from __future__ import annotations

import base64
import random
from collections.abc import Callable

import numpy as np
import pytest

import pictures
import sounds
from diptych.errors import MediaError
from diptych.media.access import Access
from diptych.media.load import load
from diptych.types import MediaKind, Source

N = 60  # of each kind; many thousands were run once
ACCESS = Access(max_pixels=10**6, max_audio_seconds=60.0, remote=False)
PIXELS = pictures.gradient(48, 40)
FRAME = b"\xff\xfb\x90\xc4".ljust(417, b"\0")
PNG = pictures.encoded(PIXELS)
KINDS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")
FILES: dict[str, tuple[MediaKind, bytes]] = {
    **{kind: ("image", pictures.encoded(PIXELS, kind)) for kind in KINDS},
    "progressive": ("image", pictures.encoded(PIXELS, "JPEG", progressive=True)),
    "LZW": ("image", pictures.encoded(PIXELS, "TIFF", compression="tiff_lzw")),
    "WAV": ("audio", sounds.wav(np.zeros(400))),
    "MP3": ("audio", b"ID3\4\0\0\0\0\0\4abcd" + FRAME * 12),
    "FLAC": ("audio", b"fLaC\0\0\0\x22" + bytes(10) + (16000 << 44 | 15 << 36 | 16000).to_bytes(8, "big") + bytes(40)),
}
URLS = (
    "data:image/png;base64," + base64.b64encode(PNG).decode(),
    base64.b64encode(PNG).decode(),
    "file://a/b.png",
    "http://user@127.0.0.1:80/a.png?b#c",
    "https://[::1]/\x00",
)
RARE = (0, 1, 0x7F, 0x80, 0xFE, 0xFF)


def mutated(data: bytes, chance: random.Random) -> bytes:
    """A few changes, mostly where headers stand."""
    out = bytearray(data)
    for _ in range(chance.randint(1, 6)):
        at = chance.randrange(max(1, min(len(out), chance.choice((16, 64, 400, len(out) or 1)))))
        n = chance.choice((1, 2, 4, 8, 64))
        match chance.randrange(6):
            case 0:
                out[at : at + 1] = bytes([chance.randrange(256)])
            case 1:
                out[at : at + n] = bytes([chance.choice(RARE)]) * n
            case 2:
                del out[at : at + n]
            case 3:
                out[at:at] = out[at : at + n] * chance.choice((1, 2, 50))
            case 4:
                del out[chance.randrange(len(out) + 1) :]
            case _:
                out[at : at + n] = chance.randbytes(n)
    return bytes(out)


def check(read: Callable[[], object]) -> None:
    """Media, or an error for whoever sent it, in one short line."""
    refused = MediaError("")
    try:
        read()
    except MediaError as error:
        refused = error
    assert 400 <= refused.status < 500
    assert "\n" not in str(refused)
    assert len(str(refused)) < 500


@pytest.mark.parametrize("kind", [*FILES])
def test_a_changed_file_is_media_or_an_error_of_ours(kind: str) -> None:
    chance, (media, data) = random.Random(kind), FILES[kind]
    for _ in range(N):
        changed = mutated(data, chance)
        check(lambda: load(Source(media, data=changed), ACCESS))  # noqa: B023
        check(lambda: load(Source("audio" if media == "image" else "image", data=changed), ACCESS))  # noqa: B023


@pytest.mark.parametrize("url", URLS, ids=["data", "base64", "file", "http", "https"])
def test_a_changed_url_is_media_or_an_error_of_ours(url: str) -> None:
    chance = random.Random(url)
    for _ in range(N):
        changed = mutated(url.encode(), chance).decode(chance.choice(("latin-1", "utf-8")), "replace")
        check(lambda: load(Source("image", url=changed, id=chance.choice((None, changed))), ACCESS))  # noqa: B023
