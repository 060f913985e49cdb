"""Pictures: encoded bytes → RGB pixels, and resizing bit for bit like the Hugging Face processors."""

from __future__ import annotations

import io
import threading
import warnings
from collections.abc import Callable
from types import TracebackType
from typing import Literal

import numpy as np
from PIL import Image

from diptych.errors import MediaError, MediaTooLarge, UnsupportedMedia
from diptych.media import recognise
from diptych.media.rgb import Pixels, rgb

Filter = Literal["bicubic", "bilinear", "lanczos"]

READABLE = "PNG, JPEG, WebP, GIF, BMP, TIFF, PPM, AVIF or JPEG 2000"
_ORIENTATION = 0x0112  # the EXIF tag
_UPRIGHT: dict[int, Callable[[Pixels], Pixels]] = {  # its values → what turns the picture upright
    2: np.fliplr,
    3: lambda pixels: pixels[::-1, ::-1],
    4: np.flipud,
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
    8: np.rot90,
}
# Costs that the number of pixels does not tell; in seconds they are about those of the largest picture that is let in.
MAX_SCANS = 2**33  # pixels times scans of a JPEG, each of which may take a few bytes in the file and goes over all pixels
MAX_SLOW = 2**22  # pixels that Pillow decodes in Python
_SLOW = ("ppm", "ppm_plain", "bmp_rle")
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
                _check_cost(picture, data, name)
                picture.load()
                _check_size(picture.size, max_pixels, name)  # a first frame may be larger than its animation
                pixels, turn = rgb(picture), _turn(picture)
            return np.ascontiguousarray(turn(pixels)) if turn else pixels
        except MediaError:
            raise
        except (MemoryError, Image.DecompressionBombError):
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


def _check_cost(picture: Image.Image, data: bytes, name: str) -> None:
    """Raise MediaTooLarge for a picture whose decoding would take far longer than its size tells."""
    n_pixels = picture.width * picture.height
    decoders = {tile[0] for tile in getattr(picture, "tile", ())}
    if n_pixels > MAX_SLOW and decoders & set(_SLOW):
        raise MediaTooLarge(f"{name} is stored in a way that takes long to decode, and has {n_pixels:,} pixels; save it as PNG")
    if "jpeg" in decoders and (n_scans := data.count(b"\xff\xda")) * n_pixels > MAX_SCANS:
        raise MediaTooLarge(f"{name} is a JPEG picture of {n_pixels:,} pixels in {n_scans:,} scans; save it again as usual")


def _turn(picture: Image.Image) -> Callable[[Pixels], Pixels] | None:
    """What puts the pixels upright, if anything has to."""
    try:
        return _UPRIGHT.get(picture.getexif().get(_ORIENTATION, 1))
    except Exception:  # damaged EXIF data leaves a good picture
        return None


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
