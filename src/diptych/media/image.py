"""Pictures: encoded bytes → RGB pixels, and resizing bit for bit like the Hugging Face processors."""

from __future__ import annotations

import io
import threading
import warnings
from types import TracebackType
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.Image import Transpose

from diptych.errors import MediaError, MediaTooLarge, UnsupportedMedia
from diptych.media import recognise

Pixels = NDArray[np.uint8]  # (height, width, 3) RGB
Filter = Literal["bicubic", "bilinear", "lanczos"]

READABLE = "PNG, JPEG, WebP, GIF, BMP, TIFF, PPM, AVIF or JPEG 2000"
_ORIENTATION = 0x0112  # the EXIF tag
_UPRIGHT = {  # its values → what turns the picture upright
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}
_FILTERS = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "lanczos": Image.Resampling.LANCZOS,
}


def decode(data: bytes, *, max_pixels: int, name: str) -> Pixels:
    """Encoded picture → (height, width, 3) uint8 RGB, upright, the first frame of several, transparency on white.

    Raises MediaError, naming the picture by `name`, when it is empty or damaged, UnsupportedMedia when it is of a format
    not read here, MediaTooLarge when it has over `max_pixels` pixels, which its header tells before anything is decoded.
    """
    kind = _recognise(data, name)
    with _QUIET:
        try:
            with _open(kind, data) as picture:
                _check_size(picture.size, max_pixels, name)
                picture.load()
                return np.array(_upright(picture))
        except MediaError:
            raise
        except MemoryError:
            raise MediaTooLarge(f"{name} needs more memory than there is; make it smaller") from None
        except Exception as error:  # Pillow raises whatever it trips over in damaged data
            reason = (str(error).splitlines() or [""])[0].rstrip(".") or type(error).__name__
            raise MediaError(
                f"{name} is a {kind} picture that cannot be decoded: {reason}; it is damaged or cut short, get it again"
            ) from error


def resize(image: Pixels, width: int, height: int, filter: Filter = "bicubic") -> Pixels:
    """(h, w, 3) uint8 → (height, width, 3) uint8 by Pillow's antialiased filter, as the Hugging Face processors do."""
    return np.array(Image.fromarray(image).resize((width, height), _FILTERS[filter]))


def _recognise(data: bytes, name: str) -> str:
    """Pillow's name of the format, by the first bytes. Raises UnsupportedMedia for what is known and not read here,
    MediaError for what is not known."""
    if not data:
        raise MediaError(f"{name} is empty; give a picture in {READABLE}")
    if kind := recognise.picture(data):
        return kind
    what = recognise.recognise(data)
    found = f"{name} is {what or f'data that begins with {data[:8]!r}'}, and a picture in {READABLE} is expected"
    raise (UnsupportedMedia if what else MediaError)(f"{found}; convert it or give another")


def _open(kind: str, data: bytes) -> Image.Image:
    """Read the header. Not by Image.open, whose own pixel limit is a constant of the process."""
    Image.preinit()
    if kind not in Image.OPEN:
        Image.init()
    if kind not in Image.OPEN:
        raise OSError(f"this Pillow was built without {kind}")
    return Image.OPEN[kind][0](io.BytesIO(data), "")


def _check_size(size: tuple[int, int], max_pixels: int, name: str) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise MediaError(f"{name} is {width}×{height} pixels, and at least 1×1 is needed; give another picture")
    if width * height > max_pixels:
        raise MediaTooLarge(
            f"{name} is {width}×{height} = {width * height:,} pixels, over the limit of {max_pixels:,}; "
            "make it smaller or raise --media-max-pixels"
        )


def _upright(picture: Image.Image) -> Image.Image:
    try:
        turn = _UPRIGHT.get(picture.getexif().get(_ORIENTATION, 1))
    except Exception:  # damaged EXIF data leaves a good picture
        turn = None
    rgb = _rgb(picture)
    return rgb if turn is None else rgb.transpose(turn)


def _rgb(picture: Image.Image) -> Image.Image:
    """Any mode → RGB. Transparency goes on white, as in transformers' `convert_to_rgb` and in Qwen's own loader."""
    if picture.mode.startswith(("I", "F")):
        return _grey(picture).convert("RGB")
    if "A" in picture.getbands() or picture.info.get("transparency") is not None:
        white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, picture.convert("RGBA")).convert("RGB")
    return picture.convert("RGB")


def _grey(picture: Image.Image) -> Image.Image:
    """Grey of more than 8 bits → 8, which Pillow itself would clip at 255 instead.

    16 bits keep their high byte, as Pillow does for 16-bit colour. Of 32-bit values white is not known: it is taken to
    be the first of 1 (floats only), 255, 2¹⁶ − 1 and 2³² − 1 that none is above.
    """
    values = np.asarray(picture)
    if picture.mode.startswith("I;16") or picture.format == "PPM":
        return Image.fromarray((values >> 8).astype(np.uint8))
    values = np.nan_to_num(values.astype(np.float64))
    whites = (1.0,) * (picture.mode == "F") + (255.0, 2.0**16 - 1, 2.0**32 - 1)
    white = next((w for w in whites if values.max() <= w), values.max())
    return Image.fromarray(np.clip(np.rint(values / white * 255), 0, 255).astype(np.uint8))


class _Quiet:
    """Drops Pillow's warnings while any thread decodes. Filters belong to the process: first in sets, last out resets."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._n = 0
        self._filters = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            if self._n == 0:
                self._filters = warnings.catch_warnings()
                self._filters.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL\b")
            self._n += 1

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._lock:
            self._n -= 1
            if self._n == 0:
                self._filters.__exit__(kind, error, trace)


_QUIET = _Quiet()
