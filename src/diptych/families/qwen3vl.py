"""Qwen3-VL and Qwen3.5: learned positions stretched over the picture, full attention, rows that carry taps of early layers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from diptych.errors import FileError
from diptych.families import lattice, qwen2vl
from diptych.families.base import Table
from diptych.families.lattice import POSITIONS, Taps
from diptych.families.packed import MERGE, Packed, check_tower, processed
from diptych.graph import nn
from diptych.types import MediaKind

if TYPE_CHECKING:
    from diptych.graph.graph import Graph, Value

LIMITS = 256 * 256, 4096 * 4096  # pixels, those of every published preprocessor_config.json
EPS = 1e-6  # a constant of the model's code; config.json's rms_norm_eps is the text half's
DEEPSTACK = (8, 16, 24)  # Qwen3-VL's default; Qwen3.5 has none
MAX_LAYERS = 512  # llama.cpp's


class Qwen3VL(Packed):
    """Qwen3-VL's encoder: two frames a patch, learned and rotary positions, full attention within a picture, 2×2 merger.

    Of some layers (`deepstack`) the merged cells are kept too: they stand behind the rows, and the text half adds each to
    its own layer. Qwen3.5's encoder is the same without them.
    """

    projectors: ClassVar[Mapping[MediaKind, tuple[str, ...]]] = {"image": ("qwen3vl_merger",)}
    architectures = (
        "Qwen3VLForConditionalGeneration",
        "Qwen3VLMoeForConditionalGeneration",
        "Qwen3_5ForConditionalGeneration",
        "Qwen3_5MoeForConditionalGeneration",
    )
    placeholders = qwen2vl.Qwen2VL.placeholders
    tensors: ClassVar[Table] = {
        "visual.patch_embed.proj.weight": ("v.patch_embd.weight", "v.patch_embd.weight.1"),
        "visual.patch_embed.proj.bias": "v.patch_embd.bias",
        "visual.pos_embed.weight": POSITIONS,
        "visual.blocks.{i}.norm1.weight": "v.blk.{i}.ln1.weight",
        "visual.blocks.{i}.norm1.bias": "v.blk.{i}.ln1.bias",
        "visual.blocks.{i}.attn.qkv.weight": "v.blk.{i}.attn_qkv.weight",
        "visual.blocks.{i}.attn.qkv.bias": "v.blk.{i}.attn_qkv.bias",
        "visual.blocks.{i}.attn.proj.weight": "v.blk.{i}.attn_out.weight",
        "visual.blocks.{i}.attn.proj.bias": "v.blk.{i}.attn_out.bias",
        "visual.blocks.{i}.norm2.weight": "v.blk.{i}.ln2.weight",
        "visual.blocks.{i}.norm2.bias": "v.blk.{i}.ln2.bias",
        "visual.blocks.{i}.mlp.linear_fc1.weight": "v.blk.{i}.ffn_up.weight",
        "visual.blocks.{i}.mlp.linear_fc1.bias": "v.blk.{i}.ffn_up.bias",
        "visual.blocks.{i}.mlp.linear_fc2.weight": "v.blk.{i}.ffn_down.weight",
        "visual.blocks.{i}.mlp.linear_fc2.bias": "v.blk.{i}.ffn_down.bias",
        "visual.merger.norm.weight": "v.post_ln.weight",
        "visual.merger.norm.bias": "v.post_ln.bias",
        "visual.merger.linear_fc1.weight": "mm.0.weight",
        "visual.merger.linear_fc1.bias": "mm.0.bias",
        "visual.merger.linear_fc2.weight": "mm.2.weight",
        "visual.merger.linear_fc2.bias": "mm.2.bias",
    }
    limits = LIMITS

    @classmethod
    def table(cls, config: Mapping[str, Any]) -> Table:
        """`tensors`, and the mergers of the deepstack layers, which checkpoints number by themselves and GGUF by the layer."""
        mergers = {
            f"visual.deepstack_merger_list.{n}.{theirs}.{kind}": f"v.deepstack.{layer}.{ours}.{kind}"
            for n, layer in enumerate(_deepstack(config))
            for theirs, ours in (("norm", "norm"), ("linear_fc1", "fc1"), ("linear_fc2", "fc2"))
            for kind in ("weight", "bias")
        }
        return {**cls.tensors, **mergers}

    @staticmethod
    def metadata(config: Mapping[str, Any], processor: Mapping[str, Any]) -> dict[str, Any]:
        """config.json and preprocessor_config.json → the `clip.*` metadata.

        Raises FileError when the checkpoint's tower is not one that Qwen3-VL's code would build, or the second is missing.
        """
        vision, layers = config["vision_config"], _deepstack(config)
        check_tower(vision, "Qwen3-VL", hidden_act="gelu_pytorch_tanh", temporal_patch_size=2, in_channels=3)
        if not processor:
            raise FileError("the checkpoint has no preprocessor_config.json, which says how pictures are prepared; download it")
        n_layer, patch = _depth(vision), int(vision.get("patch_size", 16))
        return {
            "clip.has_vision_encoder": True,
            "clip.projector_type": "qwen3vl_merger",
            "clip.use_gelu": True,
            "clip.vision.projection_dim": int(vision.get("out_hidden_size", 3584)),
            "clip.vision.image_size": math.isqrt(vision.get("num_position_embeddings", 2304)) * patch,  # nominal: any size goes
            "clip.vision.patch_size": patch,
            "clip.vision.spatial_merge_size": int(vision.get("spatial_merge_size", MERGE)),
            "clip.vision.embedding_length": int(vision.get("hidden_size", 1152)),
            "clip.vision.feed_forward_length": int(vision.get("intermediate_size", 4304)),
            "clip.vision.block_count": n_layer,
            "clip.vision.attention.head_count": int(vision.get("num_heads", 16)),
            "clip.vision.attention.layer_norm_epsilon": EPS,
            "clip.vision.is_deepstack_layers": [i in layers for i in range(n_layer)],
            **processed(processor, qwen2vl.LIMITS),  # the processor's own defaults where it is silent
        }

    @cached_property
    def deepstack(self) -> tuple[int, ...]:
        """The layers whose merged cells stand behind the rows, in that order."""
        n_layer = min(self.hp.n_layer, len(self.weights.tensors))  # a damaged file may say any number
        return tuple(i for i in range(n_layer) if f"v.deepstack.{i}.fc1.weight" in self.weights.tensors)

    @property
    def n_embd(self) -> int:
        """Width of the rows: the text half's for the merger, and as much for each deepstack layer."""
        return self.hp.n_embd_out * (1 + len(self.deepstack))

    def tables(self, grid: tuple[int, ...]) -> dict[str, NDArray[Any]]:
        """The angles, and of the position table the four rows about a patch, `taps`, and the `shares` they have."""
        taps, shares = between(grid[1:], lattice.side_of(self.weights))
        return {**super().tables(grid), "taps": self.in_merge_order(taps), "shares": self.in_merge_order(shares)}

    def graph(self, g: Graph, kind: str) -> None:
        """patches (n_patch, 3 · 2 · 16 · 16), cos, sin, taps, shares, spans → (n_token, n_embd · (1 + deepstack))."""
        inputs = self.inputs(g)
        x = lattice.placed(g, self.weights, self.embedded(g, inputs))
        taps: list[Value] = []
        for i in range(self.hp.n_layer):
            name = f"v.blk.{i}"
            x = nn.add(g, x, self.attention(g, nn.layer_norm(g, x, f"{name}.ln1", EPS), name, inputs))
            rows = nn.layer_norm(g, x, f"{name}.ln2", EPS)
            x = nn.add(g, x, nn.mlp(g, rows, f"{name}.ffn_up", f"{name}.ffn_down", nn.gelu_tanh))
            if i in self.deepstack:
                tap = f"v.deepstack.{i}"
                cells = nn.layer_norm(g, self.cells(g, x), f"{tap}.norm", EPS)
                taps.append(nn.tap(g, nn.mlp(g, cells, f"{tap}.fc1", f"{tap}.fc2", nn.gelu), self.hp.n_embd_out))
        rows = nn.mlp(g, self.cells(g, nn.layer_norm(g, x, "v.post_ln", EPS)), "mm.0", "mm.2", nn.gelu)
        self.output(g, rows, inputs, taps)

    def explain(self) -> dict[str, str]:
        """What every packed graph takes, the position table's part, and what is joined in a row."""
        said, layers = super().explain(), "".join(f", then layer {i}'s" for i in self.deepstack)
        return {
            **said,
            "taps": "the rows of the position table about a patch: above left, above right, below left, below right; the corners "
            "of the table stand on those of the picture",
            "shares": "how much of each tap a patch takes, by how near it is to it (bilinear)",
            "embeddings": f"{said['embeddings']}; in a row stand the merger's {self.hp.n_embd_out} values{layers}",
        }


def between(grid: tuple[int, ...], side: int) -> Taps:
    """(h, w, 4) rows of a table (side · side, …) and their shares, for h × w places from its first corner to its last.

    The middle one of 3 places over a table of side 4 lies at 1.5, half between 1 and 2. In float32, as in transformers.
    """
    down, across = (np.arange(n, dtype=np.float32) * np.float32(side - 1) / np.float32(max(n - 1, 1)) for n in grid)
    return lattice.between(down, across, side)


def _depth(vision: Mapping[str, Any]) -> int:
    n = vision.get("depth", 27)
    if not isinstance(n, int) or not 0 < n <= MAX_LAYERS:
        raise FileError(f"config.json's vision_config has depth {n!r:.40}, and 1 to {MAX_LAYERS} layers are expected")
    return n


def _deepstack(config: Mapping[str, Any]) -> tuple[int, ...]:
    """The layers that are tapped, in the order of their mergers in the checkpoint."""
    match config.get("architectures"):
        case [str(name), *_] if name.startswith("Qwen3_5"):
            return ()
    vision = config["vision_config"]
    layers, n_layer = vision.get("deepstack_visual_indexes", DEEPSTACK), _depth(vision)
    good = isinstance(layers, list | tuple) and all(type(i) is int and 0 <= i < n_layer for i in layers)
    if not good or len(set(layers)) != len(layers):
        raise FileError(
            f"config.json's vision_config has deepstack_visual_indexes {layers!r:.60}, and different layers of 0 to "
            f"{n_layer - 1} are expected"
        )
    return tuple(layers)
