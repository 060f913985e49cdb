"""Rendered text with its exact reading: the training and the held-out pictures of the reader.

A picture is a light canvas with one to four lines of dark text somewhere on it, slightly noisy. `draw` also
tells where each character stands, which is the dense label that makes training on two cores possible.
"""

from __future__ import annotations

import string
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import cast

import numpy as np
from PIL import Image, ImageDraw, ImageFont

PILLOW = "Pillow's own"  # the font of ImageFont.load_default
FONTS = ("DejaVuSans.ttf", "DejaVuSansMono.ttf", "DejaVuSerif.ttf", "DejaVuSans-Bold.ttf", PILLOW)
CORE = string.digits + string.ascii_uppercase + " .,:-/$%"
CHARACTERS = CORE + string.ascii_lowercase
CELL = 28  # pixels a side of one media token: patch 14, merge 2


@dataclass(frozen=True)
class Style:
    """What pictures to draw: how much text, in which letters, fonts and sizes (pixels)."""

    characters: str = CHARACTERS
    core: float = 0.5  # share of pictures with the characters of CORE alone: O and o differ only beside other letters
    lines: tuple[int, int] = (1, 2)
    length: tuple[int, int] = (1, 24)
    fonts: tuple[str, ...] = FONTS
    size: tuple[int, int] = (18, 24)
    stretch: int = 14  # the raw canvas differs from a multiple of CELL by at most this many pixels a side
    noise: float = 8.0


@dataclass(frozen=True)
class Picture:
    """A drawn picture (`raw`) and the same resized to whole cells, what it says, and the centre (x, y) in pixels of
    the resized one of each character of the text."""

    raw: Image.Image
    image: Image.Image
    text: str
    centres: np.ndarray


@cache
def font_folder() -> Path:
    """The folder of the DejaVu fonts that matplotlib carries; the same files on every machine."""
    import matplotlib

    return Path(matplotlib.get_data_path()) / "fonts" / "ttf"


@lru_cache(maxsize=256)
def font(name: str, size: int) -> ImageFont.FreeTypeFont:
    if name == PILLOW:
        return cast(ImageFont.FreeTypeFont, ImageFont.load_default(size))
    return ImageFont.truetype(str(font_folder() / name), size, layout_engine=ImageFont.Layout.BASIC)


def random_text(rng: np.random.Generator, characters: str, length: int) -> str:
    """A string of about `length` characters: noise, words, numbers or a mixture; no outer or double spaces."""
    letters = characters.replace(" ", "")
    digits = "".join(c for c in letters if c.isdigit())
    upper = "".join(c for c in letters if c.isupper())
    lower = "".join(c for c in letters if c.islower())
    marks = "".join(c for c in letters if not c.isalnum())
    if " " not in characters:
        return "".join(rng.choice(list(letters), length))
    pools = [p for p in (letters, digits, upper, lower, digits + marks, upper + digits) if p]
    text = ""
    while len(text) < length:
        pool = pools[rng.integers(len(pools))]
        word = "".join(rng.choice(list(pool), rng.integers(1, 9)))
        if lower and upper and word.islower() and rng.random() < 0.4:
            word = upper[rng.integers(len(upper))] + word[1:]
        if marks and rng.random() < 0.25:
            word += marks[rng.integers(len(marks))]
        text += (" " if text and rng.random() < 0.8 else "") + word
    return text[:length].strip() or letters[0]


def draw(rng: np.random.Generator, style: Style, width: int, height: int) -> Picture:
    """Draw one picture of exactly width × height pixels (multiples of CELL) in this style.

    The canvas is drawn up to `style.stretch` pixels larger or smaller and then resized, as preprocessing does with
    a picture whose sides are not multiples of CELL.
    """
    raw_w = max(20, width + int(rng.integers(-style.stretch, style.stretch + 1)))
    raw_h = max(20, height + int(rng.integers(-style.stretch, style.stretch + 1)))
    top = min(style.size[1], raw_h - 4)
    size = int(rng.integers(min(style.size[0], top), top + 1))
    face = font(style.fonts[rng.integers(len(style.fonts))], size)
    leading = size * rng.uniform(1.15, 1.7)
    room = max(1, int((raw_h - size * 1.2) / leading) + 1)
    n_lines = int(rng.integers(style.lines[0], max(style.lines[0], min(style.lines[1], room)) + 1))
    n_lines = min(n_lines, room)
    characters = CORE if rng.random() < style.core else style.characters
    lines = []
    for _ in range(n_lines):
        text = random_text(rng, characters, int(rng.integers(style.length[0], style.length[1] + 1)))
        while len(text) > 1 and face.getlength(text) > raw_w - 2:
            text = text[: max(1, int(len(text) * (raw_w - 2) / face.getlength(text)) - 0)].strip()
            if face.getlength(text) > raw_w - 2:
                text = text[:-1].strip()
        lines.append(text)

    paper = rng.integers(200, 256, 3) if rng.random() < 0.5 else np.full(3, int(rng.integers(225, 256)))
    ink = rng.integers(0, 90, 3) if rng.random() < 0.3 else np.full(3, int(rng.integers(0, 70)))
    image = Image.new("RGB", (raw_w, raw_h), tuple(int(v) for v in paper))
    pen = ImageDraw.Draw(image)
    block = leading * (n_lines - 1) + size * 1.2
    y = rng.uniform(0, max(0.0, raw_h - block))
    left = rng.uniform(0, max(0.0, raw_w - max(face.getlength(t) for t in lines)))
    aligned = rng.random() < 0.6
    centres = []
    for i, text in enumerate(lines):
        x = left if aligned else rng.uniform(0, max(0.0, raw_w - face.getlength(text)))
        pen.text((int(x), int(y)), text, font=face, fill=tuple(int(v) for v in ink))
        ends = [face.getlength(text[: k + 1]) for k in range(len(text))]
        starts = [0.0, *ends[:-1]]
        if i:
            centres.append((-1.0, -1.0))  # the line break stands nowhere
        centres += [(int(x) + (a + b) / 2, int(y) + size * 0.6) for a, b in zip(starts, ends, strict=True)]
        y += leading
    if rng.random() < 0.8:
        grain = rng.standard_normal((raw_h, raw_w, 1 if rng.random() < 0.5 else 3), dtype=np.float32)
        noisy = np.asarray(image, np.float32) + grain * np.float32(rng.uniform(0, style.noise))
        image = Image.fromarray(np.clip(noisy + 0.5, 0, 255).astype(np.uint8))
    scale = np.array([width / raw_w, height / raw_h])
    where = np.array(centres, np.float64).reshape(-1, 2)
    where = np.where(where < 0, where, where * scale)
    return Picture(image, image.resize((width, height), Image.Resampling.BICUBIC), "\n".join(lines), where)
