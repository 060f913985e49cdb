"""Qwen2-VL and MinerU2.5: pictures of any size, patches in 2×2 merge order, M-RoPE positions."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from diptych.errors import FileError, MediaError
from diptych.families.base import Family, Part, Rows
from diptych.graph import nn
from diptych.media.image import resize
from diptych.positions import Positions, mrope
from diptych.types import Grid, Media, MediaChunk, MediaKind, MediaSettings, Piece

if TYPE_CHECKING:
    from diptych.graph.graph import Graph, Value
    from diptych.weights import Weights

MEAN = (0.48145466, 0.4578275, 0.40821073)  # CLIP's, the processor's default
STD = (0.26862954, 0.26130258, 0.27577711)
MIN_PIXELS, MAX_PIXELS = 56 * 56, 28 * 28 * 1280  # the defaults of Qwen2VLImageProcessor
EPS = 1e-6  # a constant of the model's code; config.json's rms_norm_eps is the text half's
MAX_ASPECT = 200
ROPE_THETA = 10000.0
MERGE = 2  # patches a side that become one token
FRAMES = 2  # a patch holds two frames; a still picture stands in both


class Qwen2VL(Family):
    """Qwen2-VL's encoder: two frames a patch, 2-D rotary positions, full attention within a picture, 2×2 merger."""

    projectors: ClassVar[Mapping[MediaKind, tuple[str, ...]]] = {"image": ("qwen2vl_merger",)}
    architectures = ("Qwen2VLForConditionalGeneration",)
    placeholders: ClassVar[Mapping[MediaKind, tuple[str, ...]]] = {
        "image": ("<|vision_start|><|image_pad|><|vision_end|>", "<|image_pad|>")
    }
    tensors: ClassVar[Mapping[str, str | tuple[str, ...] | None]] = {
        "visual.patch_embed.proj.weight": ("v.patch_embd.weight", "v.patch_embd.weight.1"),
        "visual.blocks.{i}.norm1.weight": "v.blk.{i}.ln1.weight",
        "visual.blocks.{i}.norm1.bias": "v.blk.{i}.ln1.bias",
        "visual.blocks.{i}.attn.qkv.weight": ("v.blk.{i}.attn_q.weight", "v.blk.{i}.attn_k.weight", "v.blk.{i}.attn_v.weight"),
        "visual.blocks.{i}.attn.qkv.bias": ("v.blk.{i}.attn_q.bias", "v.blk.{i}.attn_k.bias", "v.blk.{i}.attn_v.bias"),
        "visual.blocks.{i}.attn.proj.weight": "v.blk.{i}.attn_out.weight",
        "visual.blocks.{i}.attn.proj.bias": "v.blk.{i}.attn_out.bias",
        "visual.blocks.{i}.norm2.weight": "v.blk.{i}.ln2.weight",
        "visual.blocks.{i}.norm2.bias": "v.blk.{i}.ln2.bias",
        "visual.blocks.{i}.mlp.fc1.weight": "v.blk.{i}.ffn_up.weight",
        "visual.blocks.{i}.mlp.fc1.bias": "v.blk.{i}.ffn_up.bias",
        "visual.blocks.{i}.mlp.fc2.weight": "v.blk.{i}.ffn_down.weight",
        "visual.blocks.{i}.mlp.fc2.bias": "v.blk.{i}.ffn_down.bias",
        "visual.merger.ln_q.weight": "v.post_ln.weight",
        "visual.merger.ln_q.bias": "v.post_ln.bias",
        "visual.merger.mlp.0.weight": "mm.0.weight",
        "visual.merger.mlp.0.bias": "mm.0.bias",
        "visual.merger.mlp.2.weight": "mm.2.weight",
        "visual.merger.mlp.2.bias": "mm.2.bias",
    }
    n_pos = 4

    def __init__(self, weights: Weights, kind: MediaKind = "image") -> None:
        super().__init__(weights, kind)
        if "clip.vision.spatial_merge_size" not in weights.metadata:  # llama.cpp's converter leaves it out
            self.hp = replace(self.hp, n_merge=MERGE)

    @staticmethod
    def metadata(config: Mapping[str, Any], processor: Mapping[str, Any]) -> dict[str, Any]:
        """config.json (old flat style or new nested) and preprocessor_config.json → the `clip.*` metadata.

        Raises FileError when the checkpoint's tower is not one that Qwen2-VL's code would build.
        """
        vision = config["vision_config"]
        _check_tower(vision)
        text = {**config, **config.get("text_config", {})}
        size = processor.get("size") or {}
        width, patch = int(vision.get("embed_dim", 1280)), int(vision.get("patch_size", 14))
        return {
            "clip.has_vision_encoder": True,
            "clip.projector_type": "qwen2vl_merger",
            "clip.vision.projection_dim": int(vision.get("hidden_size", text["hidden_size"])),
            "clip.vision.image_size": int(vision.get("image_size", 560)),  # nominal: any size goes
            "clip.vision.patch_size": patch,
            "clip.vision.spatial_merge_size": int(vision.get("spatial_merge_size", MERGE)),
            "clip.vision.embedding_length": width,
            "clip.vision.feed_forward_length": int(width * vision.get("mlp_ratio", 4)),
            "clip.vision.block_count": int(vision.get("depth", 32)),
            "clip.vision.attention.head_count": int(vision.get("num_heads", 16)),
            "clip.vision.attention.layer_norm_epsilon": EPS,
            "clip.vision.image_mean": [float(v) for v in processor.get("image_mean") or MEAN],
            "clip.vision.image_std": [float(v) for v in processor.get("image_std") or STD],
            "clip.vision.image_min_pixels": _pixels(processor, size, "min_pixels", "shortest_edge", MIN_PIXELS),
            "clip.vision.image_max_pixels": _pixels(processor, size, "max_pixels", "longest_edge", MAX_PIXELS),
        }

    def preprocess(self, media: Media, settings: MediaSettings) -> list[MediaChunk]:
        """One chunk of one piece, its patches (n_patch, 3 · 2 · 14 · 14) in 2×2 merge order.

        Raises MediaError when one side of the picture is more than 200 times the other.
        """
        hp, (height, width, _) = self.hp, media.data.shape
        low = settings.min_pixels or hp.min_pixels or MIN_PIXELS
        high = settings.max_pixels or hp.max_pixels or MAX_PIXELS
        used = fit(width, height, hp.patch_size * hp.n_merge, low, high)
        patches = patchify(resize(media.data, *used, "bicubic"), hp.patch_size, hp.n_merge, self._levels)
        grid = Grid(1, used[1] // hp.patch_size, used[0] // hp.patch_size)
        key = hashlib.sha256(b"qwen2vl %dx%d " % used + media.key).digest()
        piece = Piece("image", {"patches": patches}, (grid.t, grid.h, grid.w), key)
        merged = replace(grid, h=grid.h // hp.n_merge, w=grid.w // hp.n_merge)
        return [MediaChunk("image", merged.h * merged.w, merged, key, (piece,), (width, height), used)]

    @cached_property
    def _levels(self) -> NDArray[np.float32]:
        """(256, 3): what a level becomes in each channel, rescaled in float64 and normalised in float32 as in transformers."""
        mean, std = np.array(self.hp.mean, np.float32), np.array(self.hp.std, np.float32)
        scaled = (np.arange(256) * (1 / 255)).astype(np.float32)
        levels: NDArray[np.float32] = (scaled[:, None] - mean) / std
        return levels

    def layout(self, chunks: Sequence[MediaChunk], ordinal: int) -> list[Part]:
        """A picture between its start and end tokens."""
        return ["<|vision_start|>", *chunks, "<|vision_end|>"]

    def positions(self, chunk: MediaChunk, start: int, ordinal: int = 0) -> tuple[Positions, int]:
        """M-RoPE's four planes."""
        return mrope(chunk, start, ordinal)

    def batch_key(self, piece: Piece) -> Hashable:
        """Pictures of all sizes go in one run, their patches one after the other."""
        return piece.kind

    def explain(self) -> dict[str, str]:
        """How a picture becomes patches, and what stands beside them."""
        hp, patch, m = self.hp, self.hp.patch_size, self.hp.n_merge
        low, high = hp.min_pixels or MIN_PIXELS, hp.max_pixels or MAX_PIXELS
        return {
            "patches": (
                f"RGB picture stretched (bicubic, as Pillow) to sides that are multiples of {patch * m}, {low} to {high} pixels "
                f"in all; each level / 255, minus {_numbers(hp.mean)}, over {_numbers(hp.std)}; a row is a patch of {patch} × "
                f"{patch} pixels, (channel, frame, row, column) with the picture in both frames; the {m} × {m} patches of a cell "
                "stand together, cells and the patches in them row by row"
            ),
            "cos": "cosine of a patch's angles: first half row · f, second half column · f, f(i) = 10000 ** (-i / (width / 2))",
            "sin": "sine of the same angles",
            "bounds": "0, then the row behind the last patch of each picture; the patches of several stand one after the other",
            "embeddings": f"one row for each cell of {m} × {m} patches, cells row by row",
        }

    def feed(self, pieces: Sequence[Piece]) -> dict[str, NDArray[Any]]:
        """The patches of all pieces, the angles of each patch, and where each piece begins and ends."""
        angles = np.concatenate([self._angles(p.grid) for p in pieces])
        patches = [p.inputs["patches"] for p in pieces]
        bounds = np.cumsum([0, *map(len, patches)])
        return {"patches": np.concatenate(patches), "cos": np.cos(angles), "sin": np.sin(angles), "bounds": bounds}

    def split(self, pieces: Sequence[Piece], output: NDArray[np.float32]) -> list[Rows]:
        """One row for each merged cell of a piece."""
        cells = [p.n_patches // self.hp.n_merge**2 for p in pieces]
        return np.split(output, np.cumsum(cells)[:-1])

    def _angles(self, grid: tuple[int, ...]) -> NDArray[np.float32]:
        """(n_patch, d / 2) in merge order: the first half turns by the patch's row, the second by its column."""
        _, h, w = grid
        m, n_freq = self.hp.n_merge, self.hp.n_embd // self.hp.n_head // 4
        frequencies = ROPE_THETA ** -(np.arange(n_freq, dtype=np.float32) / n_freq)
        cells = np.indices((h, w), np.float32).reshape(2, h // m, m, w // m, m).transpose(1, 3, 2, 4, 0)  # (…, y and x)
        return (cells[..., None] * frequencies).astype(np.float32).reshape(h * w, 2 * n_freq)

    def graph(self, g: Graph, kind: str) -> None:
        """patches (n_patch, 3 · 2 · 14 · 14), cos and sin (n_patch, d / 2), bounds of the pictures → (n_token, n_embd)."""
        hp, head = self.hp, self.hp.n_embd // self.hp.n_head
        patches = g.input("patches", ("n_patch", 3 * FRAMES * hp.patch_size**2))
        cos, sin = g.input("cos", ("n_patch", head // 2)), g.input("sin", ("n_patch", head // 2))
        bounds = g.input("bounds", ("n_bound",), np.int64)
        x = g.Gemm(patches, _kernel(g, self.hp.patch_size), transB=1)
        for i in range(hp.n_layer):
            x = self._block(g, x, f"v.blk.{i}", cos, sin, bounds)
        x = nn.layer_norm(g, x, "v.post_ln", EPS)
        x = g.Reshape(x, [-1, hp.n_merge**2 * hp.n_embd])  # a cell's patches stand together
        n_patch = patches.shape[0] if patches.shape else None
        n_token = n_patch // hp.n_merge**2 if isinstance(n_patch, int) else "n_token"
        g.output("embeddings", nn.mlp(g, x, "mm.0", "mm.2", nn.gelu), (n_token, hp.n_embd_out))

    def _block(self, g: Graph, x: Value, name: str, cos: Value, sin: Value, bounds: Value) -> Value:
        n_head = self.hp.n_head
        q, k, v = nn.qkv(g, nn.layer_norm(g, x, f"{name}.ln1", EPS), name)
        with g.scope(name):
            q, k = nn.rotate(g, q, n_head, cos, sin), nn.rotate(g, k, n_head, cos, sin)
            y = nn.attention(g, q, k, v, bounds, n_head, (self.hp.n_embd // n_head) ** -0.5)
        x = g.Add(x, nn.linear(g, y, f"{name}.attn_out"))
        up, down = self._mlp(g, name)
        return g.Add(x, nn.mlp(g, nn.layer_norm(g, x, f"{name}.ln2", EPS), up, down, nn.quick_gelu))

    def _mlp(self, g: Graph, name: str) -> tuple[str, str]:
        """The two matrices of a layer's MLP by their shapes: old converters gave each the other's name."""
        pair = f"{name}.ffn_up", f"{name}.ffn_down"
        return pair if g.shape(f"{pair[0]}.weight")[1] == self.hp.n_embd else pair[::-1]


def fit(width: int, height: int, unit: int, low: int, high: int) -> tuple[int, int]:
    """The (width, height) a picture is stretched to: multiples of `unit` with `low` to `high` pixels in all.

    As `smart_resize` of transformers, Python's rounding to even included. Raises MediaError for an aspect over 200.
    """
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise MediaError(f"the picture is {width}×{height}, and a side may be at most {MAX_ASPECT} times the other; crop it")
    area = round(width / unit) * round(height / unit) * unit**2
    if area > high:
        shrink = math.sqrt(width * height / high)
        return max(unit, math.floor(width / shrink / unit) * unit), max(unit, math.floor(height / shrink / unit) * unit)
    if area < low:
        grow = math.sqrt(low / (width * height))
        return math.ceil(width * grow / unit) * unit, math.ceil(height * grow / unit) * unit
    return round(width / unit) * unit, round(height / unit) * unit


def patchify(image: NDArray[np.uint8], patch: int, merge: int, levels: NDArray[np.float32]) -> NDArray[np.float32]:
    """(height, width, 3) levels → (n_patch, 3 · 2 · patch²), the patches of a merged cell one after the other."""
    height, width, _ = image.shape
    y, x = height // (patch * merge), width // (patch * merge)
    cells = image.reshape(y, merge, patch, x, merge, patch, 3).transpose(0, 3, 1, 4, 6, 2, 5)
    pixels = levels[cells, np.arange(3)[:, None, None]]  # (y, x, merge, merge, 3, patch, patch)
    frames = np.repeat(pixels.reshape(-1, 3, 1, patch**2), FRAMES, axis=2)
    return frames.reshape(len(frames), -1)


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(str(np.float32(v)) for v in values)  # as a GGUF keeps them


def _kernel(g: Graph, patch: int) -> Value:
    """The kernels of the two frames as one matrix (n_embd, 3 · 2 · patch²), its columns in the patches' order."""
    frames = [g.Reshape(g.weight(f"v.patch_embd.weight{t}"), [0, 3, 1, patch**2]) for t in ("", ".1")]
    return g.Flatten(g.Concat(*frames, axis=2), axis=1)


def _pixels(processor: Mapping[str, Any], size: Mapping[str, Any], name: str, edge: str, default: int) -> int:
    """One pixel limit of preprocessor_config.json, which has been spelt in three ways."""
    return int(processor.get(name) or size.get(edge) or size.get(name) or default)


def _check_tower(vision: Mapping[str, Any]) -> None:
    wanted = {"hidden_act": "quick_gelu", "temporal_patch_size": 2, "in_channels": 3, "in_chans": 3}
    for name, value in wanted.items():
        if vision.get(name, value) != value:
            raise FileError(f"config.json's vision_config has {name} {vision[name]!r}, and Qwen2-VL's encoder needs {value!r}")
    theta = (vision.get("rope_parameters") or {}).get("rope_theta", ROPE_THETA)
    if theta != ROPE_THETA:
        raise FileError(f"config.json's vision_config has rope_theta {theta}, and Qwen2-VL's encoder needs {ROPE_THETA:g}")
