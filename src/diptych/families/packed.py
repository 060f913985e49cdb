"""Families whose pictures of all sizes go in one run: rows of patches, one picture after the other."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from diptych.errors import FileError, UnusableMedia
from diptych.families.base import Family, Hparams, Part, Rows
from diptych.graph import nn
from diptych.media import budget, ladder
from diptych.media.image import Filter, resize
from diptych.positions import Positions, mrope
from diptych.types import Grid, Media, MediaChunk, MediaKind, MediaSettings, Piece

if TYPE_CHECKING:
    from diptych.graph.graph import Graph, Value
    from diptych.weights import Weights

MAX_ASPECT = 200
MAX_CELL = 1024  # pixels a side; published models have 28 and 32
ROPE_THETA = 10000.0
MERGE = 2  # patches a side that become one token
MEAN = (0.48145466, 0.4578275, 0.40821073)  # CLIP's, the processors' default
STD = (0.26862954, 0.26130258, 0.27577711)

Size = tuple[int, int]  # (width, height) in pixels


class Inputs(NamedTuple):
    """What every packed graph takes."""

    patches: Value  # (n_patch, 3 · n_frames · patch²)
    cos: Value  # (n_patch, d / 2) of a patch's angles
    sin: Value
    spans: Value  # (n_span, 2), see nn.attention


class Packed(Family):
    """A picture is one piece of one chunk: its patches in merge order, the n_merge² of a merged cell one after the other.

    A graph takes the patches of a run and what stands in a table beside each: `cos` and `sin` of its angles, and
    whatever a family adds in `tables`. `spans` says which rows attend to each other, see `nn.attention`.
    """

    n_frames: ClassVar[int] = 2  # frames a patch holds; a still picture stands in each
    limits: ClassVar[tuple[int, int]]  # the processor's default least and most pixels
    around: ClassVar[tuple[str, str]] = ("<|vision_start|>", "<|vision_end|>")
    filter: ClassVar[Filter] = "bicubic"
    n_pos = 4

    def __init__(self, weights: Weights, kind: MediaKind = "image") -> None:
        """Raises FileError where the file's metadata lacks something or does not fit together."""
        super().__init__(weights, kind)
        _check(self.hp)
        if not {"clip.vision.spatial_merge_size", "clip.vision.projector.scale_factor"} & weights.metadata.keys():
            self.hp = replace(self.hp, n_merge=MERGE)  # llama.cpp's converter leaves it out

    def used(self, width: int, height: int, low: int, high: int) -> Size:
        """The (width, height) a picture is stretched to, for `low` to `high` pixels in all."""
        return fit(width, height, self._cell, low, high)

    def pixel_limits(self, settings: MediaSettings) -> tuple[int, int]:
        """The least and most pixels of a picture: as asked for, else the file's, else the processor's defaults.

        Raises InputError when the least that is asked for is more than the most.
        """
        low, high = budget.pixels(settings, self._cell**2)
        return low or self.hp.min_pixels or self.limits[0], high or self.hp.max_pixels or self.limits[1]

    def preprocess(self, media: Media, settings: MediaSettings) -> list[MediaChunk]:
        """One chunk of one piece, its patches (n_patch, 3 · n_frames · patch²).

        Raises UnusableMedia when one side of the picture is more than 200 times the other, InputError for settings that
        exclude each other.
        """
        hp, (height, width, _) = self.hp, media.data.shape
        used = self._stretched(width, height, settings)
        patches = patchify(resize(media.data, *used, self.filter), hp.patch_size, hp.n_merge, self.n_frames, self._levels)
        h, w = used[1] // hp.patch_size, used[0] // hp.patch_size
        key = hashlib.sha256(f"{hp.projector} {used[0]}x{used[1]} ".encode() + media.key).digest()
        piece = Piece(self.kind, {"patches": patches}, (1, h, w), key)
        merged = Grid(1, h // hp.n_merge, w // hp.n_merge)
        return [MediaChunk("image", merged.h * merged.w, merged, key, (piece,), (width, height), used)]

    def _stretched(self, width: int, height: int, settings: MediaSettings) -> Size:
        """The (width, height) of a picture as the model sees it: one of the sizes asked for, else one of its own choice."""
        if settings.sizes:
            return ladder.choose(width, height, settings.sizes, *budget.pixels(settings, self._cell**2))
        return budget.within(self.used(width, height, *self.pixel_limits(settings)), self._cell, settings.max_tokens)

    def layout(self, chunks: Sequence[MediaChunk]) -> list[Part]:
        """A picture between its start and end tokens."""
        return [self.around[0], *chunks, self.around[1]]

    def positions(self, chunk: MediaChunk, start: int) -> tuple[Positions, int]:
        """M-RoPE's four planes."""
        return mrope(chunk, start)

    def batch_key(self, piece: Piece) -> Hashable:
        """Pictures of all sizes go in one run."""
        return piece.kind

    def feed(self, pieces: Sequence[Piece]) -> dict[str, NDArray[Any]]:
        """The patches of all pieces, their tables, and their spans."""
        beside = {grid: {**self.tables(grid), "spans": self.spans(grid)} for grid in {p.grid for p in pieces}}
        parts = [{"patches": p.inputs["patches"], **beside[p.grid]} for p in pieces]
        fed = parts[0] if len(parts) == 1 else {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        return {**fed, "spans": merged(fed["spans"])}

    def tables(self, grid: tuple[int, ...]) -> dict[str, NDArray[Any]]:
        """What a graph takes beside a picture's patches, one row a patch: its angles' cos and sin (n_patch, d / 2)."""
        angles = self.angles(grid)
        return {"cos": np.cos(angles), "sin": np.sin(angles)}

    def spans(self, grid: tuple[int, ...]) -> NDArray[np.int64]:
        """(n, 2) how many segments of how many rows a picture has: one of all its patches."""
        return np.array([[1, math.prod(grid)]], np.int64)

    def split(self, pieces: Sequence[Piece], output: NDArray[np.float32]) -> list[Rows]:
        """One row for each merged cell of a piece."""
        cells = [p.n_patches // self.hp.n_merge**2 for p in pieces]
        return np.split(output, np.cumsum(cells)[:-1])

    def angles(self, grid: tuple[int, ...]) -> NDArray[np.float32]:
        """(n_patch, d / 2): the first half turns by the patch's row, the second by its column (2-D rotary positions)."""
        n_freq = self.hp.n_embd // self.hp.n_head // 4
        frequencies = ROPE_THETA ** -(np.arange(n_freq, dtype=np.float32) / n_freq)
        places = self.in_merge_order(np.moveaxis(np.indices(grid[1:], np.float32), 0, -1))
        return (places[..., None] * frequencies).astype(np.float32).reshape(len(places), 2 * n_freq)

    def in_merge_order(self, lattice: NDArray[Any]) -> NDArray[Any]:
        """(h, w, …) values of a picture's patches → (h · w, …), those of a merged cell one after the other."""
        m, (h, w, *rest) = self.hp.n_merge, lattice.shape
        cells = lattice.reshape(h // m, m, w // m, m, *rest).swapaxes(1, 2)
        return cells.reshape(h * w, *rest)

    def inputs(self, g: Graph) -> Inputs:
        """Name what every graph of this kind takes."""
        width, d = 3 * self.n_frames * self.hp.patch_size**2, self.hp.n_embd // self.hp.n_head
        return Inputs(
            g.input("patches", ("n_patch", width)),
            g.input("cos", ("n_patch", d // 2)),
            g.input("sin", ("n_patch", d // 2)),
            g.input("spans", ("n_span", 2), np.int64),
        )

    def embedded(self, g: Graph, inputs: Inputs) -> Value:
        """Patches → (n_patch, n_embd) by the kernels of their frames, as one matrix, and the bias if there is one."""
        names = ["v.patch_embd.weight", *(f"v.patch_embd.weight.{t}" for t in range(1, self.n_frames))]
        frames = [g.Reshape(g.weight(name), [0, 3, 1, self.hp.patch_size**2]) for name in names]
        bias = [g.weight("v.patch_embd.bias")] if g.has("v.patch_embd.bias") else []
        return g.Gemm(inputs.patches, g.Flatten(g.Concat(*frames, axis=2), axis=1), *bias, transB=1)

    def attention(self, g: Graph, x: Value, name: str, inputs: Inputs, spans: Value | None = None) -> Value:
        """The attention of one layer, from its normalised input to its output; `spans` in the place of the pictures'.

        Queries and keys are normalised by head where the file has weights for it.
        """
        n_head, scale = self.hp.n_head, (self.hp.n_embd // self.hp.n_head) ** -0.5
        q, k, v = (nn.linear(g, x, f"{name}.attn_{part}") for part in "qkv")
        if g.has(f"{name}.attn_q_norm.weight"):
            q, k = (nn.head_norm(g, y, f"{name}.attn_{n}_norm", n_head, self.hp.eps) for n, y in (("q", q), ("k", k)))
        with g.scope(name):
            seen, angles = inputs.spans if spans is None else spans, (inputs.cos, inputs.sin)
            y = nn.attention(g, q, k, v, seen, n_head, scale, angles=angles, even=spans is None)
        return nn.linear(g, y, f"{name}.attn_out")

    def cells(self, g: Graph, x: Value) -> Value:
        """(n_patch, width) → (n_token, n_merge² · width): a cell's patches stand together."""
        return g.Reshape(x, [-1, self.hp.n_merge**2 * self.hp.n_embd])

    def output(self, g: Graph, rows: Value, inputs: Inputs, taps: Sequence[Value] = ()) -> None:
        """Name the rows of the merged cells (n_token, n_embd_out) as the graph's output, with those of taps beside them."""
        n_patch = inputs.patches.shape[0] if inputs.patches.shape else None
        n_token = n_patch // self.hp.n_merge**2 if isinstance(n_patch, int) else "n_token"
        parts = [rows, *taps]
        if taps and not g.kernels:  # which leave their joining to who runs the graph: it would be there beside its parts
            parts = [g.Concat(*parts, axis=1)]
        for i, part in enumerate(parts):
            g.output(f"embeddings.{i}" if i else "embeddings", part, (n_token, self.n_embd // len(parts)))

    def explain(self) -> dict[str, str]:
        """How a picture becomes patches, and what stands beside them."""
        hp, patch, m, n = self.hp, self.hp.patch_size, self.hp.n_merge, self.n_frames
        low, high = self.pixel_limits(MediaSettings())
        row = f"(channel, frame, row, column) with the picture in all {n} frames" if n > 1 else "(channel, row, column)"
        return {
            "patches": (
                f"RGB picture stretched ({self.filter}, as Pillow) to sides that are multiples of {patch * m}, {low} to {high} "
                f"pixels in all; each level / 255, minus {_numbers(hp.mean)}, over {_numbers(hp.std)}; a row is a patch of "
                f"{patch} × {patch} pixels, {row}; the {m} × {m} patches of a cell stand together, cells and the patches in "
                "them row by row"
            ),
            "cos": "cosine of a patch's angles: first half row · f, second half column · f, f(i) = 10000 ** (-i / (width / 2))",
            "sin": "sine of the same angles",
            "spans": "rows (count, length): the next count segments of length patches each attend to themselves alone",
            "embeddings": f"one row for each cell of {m} × {m} patches, cells row by row",
        }

    @property
    def _cell(self) -> int:
        """Pixels a side of what becomes a token."""
        return self.hp.patch_size * self.hp.n_merge

    @cached_property
    def _levels(self) -> NDArray[np.float32]:
        """(256, 3): what a level becomes in each channel, rescaled in float64 and normalised in float32 as in transformers."""
        mean, std = np.array(self.hp.mean, np.float32), np.array(self.hp.std, np.float32)
        scaled = (np.arange(256) * (1 / 255)).astype(np.float32)
        levels: NDArray[np.float32] = (scaled[:, None] - mean) / std
        return levels


def merged(spans: NDArray[np.int64]) -> NDArray[np.int64]:
    """(n, 2) spans with neighbours of one length made one, so that their segments are computed at once."""
    first = np.flatnonzero(np.diff(spans[:, 1], prepend=-1))
    return np.stack([np.add.reduceat(spans[:, 0], first), spans[first, 1]], axis=1)


def _check(hp: Hparams) -> None:
    if not hp.patch_size or not hp.mean or not hp.std:
        raise FileError("the mmproj lacks clip.vision.patch_size, image_mean or image_std; convert the model again")
    if hp.patch_size * hp.n_merge > MAX_CELL:
        raise FileError(
            f"the mmproj has patches of {hp.patch_size} pixels of which {hp.n_merge} a side are merged, and cells of at most "
            f"{MAX_CELL} pixels are expected; convert the model again"
        )
    if hp.n_embd % (4 * hp.n_head):
        raise FileError(
            f"the mmproj has {hp.n_head} heads for a width of {hp.n_embd}, and rotary positions of two axes need a multiple of "
            "4 a head; convert the model again"
        )


def fit(width: int, height: int, unit: int, low: int, high: int) -> Size:
    """The (width, height) a picture is stretched to: multiples of `unit` with `low` to `high` pixels in all.

    As `smart_resize` of transformers, Python's rounding to even included. Raises UnusableMedia for an aspect over 200.
    """
    check_aspect(width, height)
    area = round(width / unit) * round(height / unit) * unit**2
    if area > high:
        shrink = math.sqrt(width * height / high)
        return max(unit, math.floor(width / shrink / unit) * unit), max(unit, math.floor(height / shrink / unit) * unit)
    if area < low:
        grow = math.sqrt(low / (width * height))
        return math.ceil(width * grow / unit) * unit, math.ceil(height * grow / unit) * unit
    return round(width / unit) * unit, round(height / unit) * unit


def check_aspect(width: int, height: int) -> None:
    """Raise UnusableMedia when one side of a picture is more than 200 times the other."""
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise UnusableMedia(f"the picture is {width}×{height}, and a side may be at most {MAX_ASPECT} times the other; crop it")


def patchify(image: NDArray[np.uint8], patch: int, merge: int, n_frames: int, levels: NDArray[np.float32]) -> NDArray[np.float32]:
    """(height, width, 3) levels → (n_patch, 3 · n_frames · patch²), the patches of a merged cell one after the other.

    A row of cells at a time, so that little more memory is taken than what is given back.
    """
    height, width, _ = image.shape
    y, x, n = height // (patch * merge), width // (patch * merge), merge**2
    rows = image.reshape(y, merge, patch, x, merge, patch, 3).transpose(0, 3, 1, 4, 6, 2, 5)
    out = np.empty((y, x * n, 3, n_frames, patch**2), np.float32)
    for row, patches in zip(rows, out, strict=True):
        pixels = row.reshape(x * n, 3, patch**2)
        for channel in range(3):
            patches[:, channel] = levels[:, channel].take(pixels[:, channel])[:, None]
    return out.reshape(y * x * n, -1)


def processed(
    processor: Mapping[str, Any],
    limits: tuple[int, int],
    mean: tuple[float, ...] = MEAN,
    std: tuple[float, ...] = STD,
) -> dict[str, Any]:
    """preprocessor_config.json → the `clip.vision.*` metadata of pixels, with the processor's defaults where it is silent.

    The limits of pixels have been spelt in three ways.
    """
    size = processor.get("size") or {}
    low = processor.get("min_pixels") or size.get("shortest_edge") or size.get("min_pixels") or limits[0]
    high = processor.get("max_pixels") or size.get("longest_edge") or size.get("max_pixels") or limits[1]
    return {
        "clip.vision.image_mean": [float(v) for v in processor.get("image_mean") or mean],
        "clip.vision.image_std": [float(v) for v in processor.get("image_std") or std],
        "clip.vision.image_min_pixels": int(low),
        "clip.vision.image_max_pixels": int(high),
    }


def check_tower(vision: Mapping[str, Any], model: str, **wanted: object) -> None:
    """Raise FileError when config.json's vision_config has another value than the model's code can do, rope_theta included."""
    for name, value in wanted.items():
        if vision.get(name, value) != value:
            raise FileError(f"config.json's vision_config has {name} {vision[name]!r}, and {model}'s encoder needs {value!r}")
    theta = (vision.get("rope_parameters") or {}).get("rope_theta", ROPE_THETA)
    if theta != ROPE_THETA:
        raise FileError(f"config.json's vision_config has rope_theta {theta}, and {model}'s encoder needs {ROPE_THETA:g}")


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(str(np.float32(v)) for v in values)  # as a GGUF keeps them
