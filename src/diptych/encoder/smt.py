"""Pictures as SMT feeds them to its encoders: stretched to the one size of the graph, whatever the model's own rule."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from diptych.deploy.contract import Form, cells
from diptych.deploy.deployment import OnnxHalf, Size, Smt
from diptych.deploy.rules import Rule, rule_for
from diptych.errors import FileError
from diptych.families.base import Part, Rows
from diptych.families.packed import MERGE, patchify
from diptych.media import budget, ladder
from diptych.media.image import resize
from diptych.positions import Positions, linear, mrope
from diptych.types import Grid, Media, MediaChunk, MediaKind, MediaSettings, Piece

_N_FRAMES = 2  # of Qwen2-VL's patches
_RGB = 3


class SmtPictures:
    """What a picture becomes for the graphs of an SMT configuration: chunks, the text around them, positions.

    `is_token` tells whether a text is one token of the text half; boundaries that are not are left out, as SMT does.
    """

    def __init__(self, half: OnnxHalf, model: Smt, forms: Sequence[Form], is_token: Callable[[str], bool] | None = None) -> None:
        """Raises FileError when a graph's size is not known, or does not go with what it takes or gives."""
        self._rule, self._model = rule_for(model.architecture), model
        self._forms: dict[Size, Form] = {}
        for form in forms:
            if (size := _sized(half, form, self._rule)) in self._forms:
                raise FileError(f"{half.config} has two graphs for {size[0]}x{size[1]} pixels; keep one")
            self._forms[size] = form
        self._grids = {size: _grid(form, size, self._rule) for size, form in self._forms.items()}
        self._levels = levels(half, self._rule, model)
        self._around = self._rule.around if is_token is None or all(map(is_token, self._rule.around)) else ("", "")
        self.n_embd = half.n_embd or 0
        self.n_pos = self._rule.n_pos
        self.placeholders: Mapping[MediaKind, tuple[str, ...]] = {"image": self._rule.places}

    def preprocess(self, media: Media, settings: MediaSettings) -> list[MediaChunk]:
        """One chunk of one piece, at the size of the ladder that suits the picture best."""
        height, width, _ = media.data.shape
        used = ladder.choose(width, height, *self._allowed(settings))
        form, grid = self._forms[used], self._grids[used]
        pixels = resize(media.data, *used, "bilinear")  # SMT's triangle filter, but for the outermost pixels
        if form.row is None:
            array = self._levels[pixels, np.arange(_RGB)].transpose(2, 0, 1)
        else:
            array = patchify(pixels, patch_of(form), MERGE, _N_FRAMES, self._levels)
        key = hashlib.sha256(f"smt {self._model} {used[0]}x{used[1]} ".encode() + media.key).digest()
        piece = Piece("image", {"picture": array}, (1, grid.h, grid.w), key)
        return [MediaChunk("image", grid.h * grid.w, grid, key, (piece,), (width, height), used)]

    def _allowed(self, settings: MediaSettings) -> tuple[list[Size], int | None, int | None]:
        """The sizes whose tokens are within the limits (all, where none has), and the limits in pixels that are left."""
        budget.check(settings)
        low, high = settings.min_tokens, settings.max_tokens
        sizes = [size for size, g in self._grids.items() if (low or 0) <= g.h * g.w <= (high or math.inf)] or list(self._grids)
        return sizes, None if low else settings.min_pixels, None if high else settings.max_pixels

    def place(self, form: Form) -> tuple[Size, tuple[int, int, int]]:
        """The (width, height) of the pictures a graph takes, and the lattice of their tokens."""
        size = next(size for size, known in self._forms.items() if known is form)
        return size, (1, self._grids[size].h, self._grids[size].w)

    def layout(self, chunks: Sequence[MediaChunk]) -> list[Part]:
        """A picture between the boundaries of its architecture."""
        begin, end = self._around
        return [*([begin] if begin else []), *chunks, *([end] if end else [])]

    def join(self, chunk: MediaChunk, arrays: Sequence[Rows]) -> Rows:
        """The rows of the one piece."""
        return arrays[0]

    def positions(self, chunk: MediaChunk, start: int) -> tuple[Positions, int]:
        """M-RoPE's four planes, or one."""
        return mrope(chunk, start) if self.n_pos == 4 else linear(chunk, start)

    def causal(self, chunk: MediaChunk) -> bool:
        """SMT decodes pictures as it decodes text."""
        return True


def levels(half: OnnxHalf, rule: Rule, model: Smt) -> NDArray[np.float32]:
    """(256, 3): what a level of a pixel becomes in each channel."""
    plain = np.repeat(np.arange(256, dtype=np.float64)[:, None], _RGB, 1)
    if rule.values == "levels":
        return plain.astype(np.float32)
    if rule.values == "shares":
        return (plain / 255).astype(np.float32)
    if model.rescale is None or len(model.mean) != _RGB or len(model.std) != _RGB:
        raise FileError(
            f"{half.config}: {model.architecture} needs vision_preprocess with rescale_factor, and image_mean and image_std of "
            "three numbers each; add them"
        )
    std = np.where(np.array(model.std) == 0, 1, model.std)
    return ((plain * model.rescale - model.mean) / std).astype(np.float32)


def patch_of(form: Form) -> int:
    """The side of a patch whose row of 3 channels and 2 frames a graph takes. Raises FileError when there is none such."""
    assert form.row is not None
    side = math.isqrt(form.row // (_RGB * _N_FRAMES))
    if _RGB * _N_FRAMES * side * side != form.row:
        raise FileError(f"{form.encoder.path} takes rows of {form.row}, and 3 × 2 × patch × patch, such as 1176, is expected")
    return side


def _sized(half: OnnxHalf, form: Form, rule: Rule) -> Size:
    """The size a graph's pictures have: the configuration's or the graph's, or the architecture's."""
    if size := form.size or rule.size:
        return size
    raise FileError(
        f"{half.config} has no input_size for {form.encoder.path.name}, whose input does not tell it; add it to vision_model"
    )


def _grid(form: Form, size: Size, rule: Rule) -> Grid:
    """The lattice of a graph's tokens. Raises FileError when its rows or tokens are not those of pictures of that size."""
    width, height = size
    if form.row is not None:
        _check_rows(form, size)
    n = form.n_tokens
    if n is None and form.row is not None:
        n = width * height // (patch_of(form) * MERGE) ** 2
    if n is None:
        raise FileError(f"{form.encoder.path} does not tell how many tokens it gives; export it with a fixed shape")
    grid = cells(size, n)
    if grid is None and rule.n_pos == 4:
        raise FileError(
            f"{form.encoder.path} gives {n} tokens for {width}x{height} pixels, which no lattice of square cells has; correct "
            "input_size, or input_width and input_height"
        )
    return grid or Grid(1, 1, n)


def _check_rows(form: Form, size: Size) -> None:
    patch = patch_of(form)
    width, height = size
    if width % (patch * MERGE) or height % (patch * MERGE):
        raise FileError(f"{form.encoder.path}: {width}x{height} pixels are no multiple of {patch * MERGE}, patch × merge")
    n = width * height // patch**2
    if form.n_rows not in (None, n):
        raise FileError(
            f"{form.encoder.path} takes {form.n_rows} patches, and {width}x{height} pixels have {n}; correct input_size, or "
            "input_width and input_height"
        )
    if form.n_tokens not in (None, n // MERGE**2):
        raise FileError(
            f"{form.encoder.path} gives {form.n_tokens} tokens, and {n} patches, merged {MERGE} × {MERGE}, make {n // MERGE**2}"
        )
