"""Pictures for the tests: rendered text, gradients and noise, the same for the same seed."""

from __future__ import annotations

import io
import struct
import zlib
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Pixels = NDArray[np.uint8]  # (height, width, 3) RGB


def noise(width: int, height: int, seed: int = 0) -> Pixels:
    """Every level of every pixel by chance: the hardest case for a resize."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def gradient(width: int, height: int, seed: int = 0) -> Pixels:
    """A smooth ramp whose directions and colours depend on the seed: the easiest to see turned or swapped."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: max(height, 2), : max(width, 2)][:, :height, :width]
    across, down = rng.uniform(0.2, 1, (2, 3))
    ramp = x[..., None] / max(width - 1, 1) * across + y[..., None] / max(height - 1, 1) * down
    return (ramp / (across + down) * 255).round().astype(np.uint8)


def text(width: int, height: int, words: str = "DIPTYCH 123", size: int = 20, seed: int = 0) -> Pixels:
    """Dark words on light ground at a place that depends on the seed, slightly noisy."""
    rng = np.random.default_rng(seed)
    picture = Image.new("RGB", (width, height), (244, 244, 240))
    corner = rng.integers(0, max(width // 8, 1)), rng.integers(0, max(height - size, 1))
    ImageDraw.Draw(picture).multiline_text(corner, words, (20, 20, 30), _font(size))
    drawn = np.asarray(picture, np.float64) + rng.normal(0, 4, (height, width, 1))
    return drawn.clip(0, 255).round().astype(np.uint8)


def encoded(pixels: Pixels, kind: str = "PNG", **settings: object) -> bytes:
    """The bytes of a picture file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **settings)
    return buffer.getvalue()


def png(seed: int = 0, width: int = 112, height: int = 84) -> bytes:
    """The PNG file of a picture of coarse random squares; 12 tokens at the size it has by default."""
    small = np.random.default_rng(seed).integers(0, 256, (height // 14, width // 14, 3)).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(small).resize((width, height), Image.Resampling.NEAREST).save(out, "PNG")
    return out.getvalue()


def save(path: Path, pixels: Pixels) -> Path:
    """Write a picture; its suffix says the format."""
    Image.fromarray(pixels).save(path)
    return path


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def printed(words: str, width: int, height: int, size: int = 22, font: str = "DejaVuSans.ttf") -> Pixels:
    """Dark words on white in one of the fonts the reader knows, which matplotlib carries."""
    import matplotlib

    face = ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / font, size)
    picture = Image.new("RGB", (width, height), "white")
    ImageDraw.Draw(picture).multiline_text((20, (height - size) // 3), words, (20, 20, 30), face)
    return np.asarray(picture)


def png_chunk(kind: bytes, body: bytes) -> bytes:
    """A part of a PNG file."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_header(width: int, height: int) -> bytes:
    """A PNG that says it is this large, with almost nothing in it."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", head) + png_chunk(b"IDAT", zlib.compress(b"\0" * 64)) + png_chunk(b"IEND", b"")
    )
