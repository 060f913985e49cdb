"""A decoded picture of any of Pillow's modes → RGB, a strip at a time: memory is that of the picture and of its pixels."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]  # (height, width, 3) RGB
Convert = Callable[[Image.Image], NDArray[np.uint8]]  # a strip → (rows, width, 3), or (rows, width, 1) of grey

STRIP = 2**18  # pixels; as many as stay in a processor's cache are copied fastest


def rgb(picture: Image.Image) -> Pixels:
    """(height, width, 3) uint8. Transparency goes on white, as in transformers' `convert_to_rgb` and in Qwen's own loader."""
    out = np.empty((picture.height, picture.width, 3), np.uint8)
    convert, top = _convert(picture), 0
    for strip in _strips(picture):
        out[top : top + strip.height] = convert(strip)
        top += strip.height
    return out


def _strips(picture: Image.Image) -> Iterator[Image.Image]:
    """The picture from top to bottom, in parts as wide as itself."""
    rows = max(1, STRIP // picture.width)
    for top in range(0, picture.height, rows):
        yield picture.crop((0, top, picture.width, min(top + rows, picture.height)))


def _convert(picture: Image.Image) -> Convert:
    if picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format == "PPM"):
        return lambda strip: (np.asarray(strip) >> 8).astype(np.uint8)[..., None]
    if picture.mode in ("I", "F"):
        return _grey(picture)
    if "A" in picture.getbands() or picture.info.get("transparency") is not None:
        return _on_white
    if picture.mode == "RGB":
        return np.asarray
    return lambda strip: np.asarray(strip.convert("RGB"))


def _on_white(strip: Image.Image) -> NDArray[np.uint8]:
    white = Image.new("RGBA", strip.size, (255, 255, 255, 255))
    return np.asarray(Image.alpha_composite(white, strip.convert("RGBA")).convert("RGB"))


def _grey(picture: Image.Image) -> Convert:
    """Grey of 32 bits → 8, which Pillow itself would clip at 255 instead; 16 bits keep their high byte, as Pillow does for
    16-bit colour.

    Of 32-bit values white is not known: it is taken to be the first of 1 (floats only), 255, 2¹⁶ − 1 and 2³² − 1 that none
    is above.
    """

    def values(strip: Image.Image) -> NDArray[np.float64]:
        return np.nan_to_num(np.asarray(strip).astype(np.float64))

    most = max(float(values(strip).max()) for strip in _strips(picture))
    whites = (1.0,) * (picture.mode == "F") + (255.0, 2.0**16 - 1, 2.0**32 - 1)
    white = next((w for w in whites if most <= w), most)
    return lambda strip: np.clip(np.rint(values(strip) / white * 255), 0, 255).astype(np.uint8)[..., None]
