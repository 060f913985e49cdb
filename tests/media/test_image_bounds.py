"""Pictures that ask for more memory or time than their file tells are refused before they are decoded."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

import pictures
from diptych.errors import MediaError, MediaTooLarge
from diptych.media import image
from diptych.media.image import decode


def read(data: bytes, max_pixels: int = 10**6) -> np.ndarray:
    return decode(data, max_pixels=max_pixels, name="photo.x")


@pytest.mark.parametrize(("width", "height"), [(40_000, 40_000), (2**31 - 1, 2**31 - 1), (1001, 1000)])
def test_a_picture_over_the_limit_is_refused_by_its_header(width, height):
    with pytest.raises(
        MediaError, match=rf"^photo.x is {width}×{height} = .* over the limit of 1,000,000; .*--media-max-pixels$"
    ):
        read(pictures.png_header(width, height))


def animation(width: int, height: int) -> bytes:
    """A GIF of 10 × 10 pixels whose first frame is larger."""
    frame = struct.pack("<HHHHB", 0, 0, width, height, 0)
    return b"GIF89a" + struct.pack("<HHBBB", 10, 10, 0x80, 0, 0) + bytes(6) + b"," + frame + b"\x02\x02\x4c\x01\x00;"


def tiff(width: int, height: int, tile: int) -> bytes:
    """A TIFF whose tiles are of a size of their own, with almost nothing in it."""
    body = zlib.compress(bytes(1000))
    tags = [
        (256, width),
        (257, height),
        (258, 8),
        (259, 8),
        (262, 1),
        (277, 1),
        (322, tile),
        (323, tile),
        (324, 134),
        (325, len(body)),
    ]
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<I", 8) + directory + bytes(4) + body


@pytest.mark.parametrize(
    "data",
    [
        pictures.png_header(2**31 - 1, 2**31 - 1),
        pictures.encoded(pictures.noise(40, 40), "WEBP").replace(struct.pack("<HH", 40, 40), struct.pack("<HH", 16383, 16383)),
        animation(1001, 1000),
        animation(65535, 65535),
        tiff(65535, 65535, 16),
        b"P6 100000 100000 255\n",
        b"BM" + struct.pack("<IIIIiiHHIIIIII", 0, 0, 54, 40, 2**30, 2**30, 1, 24, 0, 0, 0, 0, 0, 0),
        b"\xff\xd8\xff\xc0\0\x0b\x08" + struct.pack(">HH", 65535, 65535) + b"\x01\x01\x11\0\xff\xda\0\x08\x01\x01\0\0\x3f\0",
    ],
    ids=["PNG", "WebP", "GIF frame", "large GIF frame", "TIFF", "PPM", "BMP", "JPEG"],
)
def test_a_few_bytes_that_ask_for_much_memory_are_refused(data):
    with pytest.raises(MediaTooLarge) as caught:
        read(data)
    assert caught.value.status == 413


def test_tiles_that_ask_for_much_memory_are_refused():
    with pytest.raises(MediaError, match="TIFF picture that cannot be decoded"):
        read(tiff(16, 16, 65520))


def test_a_jpeg_of_many_scans_is_refused(monkeypatch):
    data = pictures.encoded(pictures.gradient(64, 64), "JPEG", progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    many = data[:-2] + last * 100 + data[-2:]
    assert read(many).shape == (64, 64, 3)
    monkeypatch.setattr(image, "MAX_SCANS", 64 * 64 * 100)
    assert read(data).shape == (64, 64, 3)
    with pytest.raises(MediaTooLarge, match=r"^photo.x is a JPEG picture of 4,096 pixels in \d+ scans; save it again"):
        read(many)


@pytest.mark.parametrize("data", [b"P3 9 9 255\n" + b"1 " * 243, b"P6 9 9 100\n" + bytes(243)], ids=["plain", "rare levels"])
def test_a_large_picture_of_a_slow_kind_is_refused(data, monkeypatch):
    assert read(data).shape == (9, 9, 3)
    monkeypatch.setattr(image, "MAX_SLOW", 80)
    with pytest.raises(MediaTooLarge, match="stored in a way that takes long to decode, and has 81 pixels; save it as PNG"):
        read(data)
    assert read(b"P6 9 9 255\n" + bytes(243)).shape == (9, 9, 3)


def test_the_limit_is_ours_and_not_pillows(monkeypatch):
    pixels = pictures.noise(40, 40)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    np.testing.assert_array_equal(read(pictures.encoded(pixels), max_pixels=1600), pixels)
    with pytest.raises(MediaError, match="over the limit of 1,599"):
        read(pictures.encoded(pixels), max_pixels=1599)
