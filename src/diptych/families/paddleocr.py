"""PaddleOCR-VL: SigLIP blocks with rotary positions beside a learned table, full attention, 2×2 projector, M-RoPE positions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from diptych.families import lattice
from diptych.families.base import Table
from diptych.families.lattice import POSITIONS, Taps
from diptych.families.packed import MERGE, Packed, Size, check_aspect, check_tower, fit, processed
from diptych.graph import nn
from diptych.types import MediaKind

if TYPE_CHECKING:
    from diptych.graph.graph import Graph

LIMITS = 384 * 384, 1536 * 1536  # pixels, the defaults of PaddleOCRVLImageProcessor
PROJECTOR_EPS = 1e-5  # a constant of the model's code


class PaddleOCR(Packed):
    """PaddleOCR-VL's encoder: learned and 2-D rotary positions, full attention within a picture, cells merged by the projector.

    The model's own code takes patches row by row and merges at the end. Here they come in merge order from the start, which
    changes no row: what depends on a patch's place stands in the tables beside it.
    """

    projectors: ClassVar[Mapping[MediaKind, tuple[str, ...]]] = {"image": ("paddleocr",)}
    architectures = ("PaddleOCRVLForConditionalGeneration",)
    placeholders: ClassVar[Mapping[MediaKind, tuple[str, ...]]] = {
        "image": ("<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>", "<|IMAGE_PLACEHOLDER|>")
    }
    tensors: ClassVar[Table] = {
        "visual.vision_model.embeddings.patch_embedding.weight": "v.patch_embd.weight",
        "visual.vision_model.embeddings.patch_embedding.bias": "v.patch_embd.bias",
        "visual.vision_model.embeddings.position_embedding.weight": POSITIONS,
        "visual.vision_model.embeddings.packing_position_embedding.weight": None,  # the model's code does not read it
        "visual.vision_model.head.": None,  # nor this, which would pool a picture into one row
        **{
            f"visual.vision_model.encoder.layers.{{i}}.{theirs}.{kind}": f"v.blk.{{i}}.{ours}.{kind}"
            for theirs, ours in {
                "layer_norm1": "ln1",
                "self_attn.q_proj": "attn_q",
                "self_attn.k_proj": "attn_k",
                "self_attn.v_proj": "attn_v",
                "self_attn.out_proj": "attn_out",
                "layer_norm2": "ln2",
                "mlp.fc1": "ffn_up",
                "mlp.fc2": "ffn_down",
            }.items()
            for kind in ("weight", "bias")
        },
        "visual.vision_model.post_layernorm.weight": "v.post_ln.weight",
        "visual.vision_model.post_layernorm.bias": "v.post_ln.bias",
        "mlp_AR.pre_norm.weight": "mm.input_norm.weight",
        "mlp_AR.pre_norm.bias": "mm.input_norm.bias",
        "mlp_AR.linear_1.weight": "mm.1.weight",
        "mlp_AR.linear_1.bias": "mm.1.bias",
        "mlp_AR.linear_2.weight": "mm.2.weight",
        "mlp_AR.linear_2.bias": "mm.2.bias",
    }
    n_frames = 1
    limits = LIMITS
    around = ("<|IMAGE_START|>", "<|IMAGE_END|>")

    @staticmethod
    def metadata(config: Mapping[str, Any], processor: Mapping[str, Any]) -> dict[str, Any]:
        """config.json (old flat style or new nested) and preprocessor_config.json → the `clip.*` metadata.

        Raises FileError when the checkpoint's tower is not one that PaddleOCR-VL's code would build.
        """
        vision = config["vision_config"]
        check_tower(vision, "PaddleOCR-VL", hidden_act="gelu_pytorch_tanh", num_channels=3)
        text = {**config, **config.get("text_config", {})}
        pixels = processed(processor, LIMITS)
        return {
            "clip.has_vision_encoder": True,
            "clip.projector_type": "paddleocr",
            "clip.use_gelu": True,
            "clip.vision.projection_dim": int(text.get("hidden_size", 1024)),
            "clip.vision.image_size": math.isqrt(pixels["clip.vision.image_max_pixels"]),  # nominal: any size goes
            "clip.vision.patch_size": int(vision.get("patch_size", 14)),
            "clip.vision.spatial_merge_size": int(vision.get("spatial_merge_size", MERGE)),
            "clip.vision.embedding_length": int(vision.get("hidden_size", 1152)),
            "clip.vision.feed_forward_length": int(vision.get("intermediate_size", 4304)),
            "clip.vision.block_count": int(vision.get("num_hidden_layers", 27)),
            "clip.vision.attention.head_count": int(vision.get("num_attention_heads", 16)),
            "clip.vision.attention.layer_norm_epsilon": float(vision.get("layer_norm_eps", 1e-6)),
            **pixels,
        }

    def used(self, width: int, height: int, low: int, high: int) -> Size:
        """As for every packed family, but of the picture with both sides made a cell's at least."""
        unit = self.hp.patch_size * self.hp.n_merge
        check_aspect(width, height)
        return fit(*at_least(width, height, unit), unit, low, high)

    def tables(self, grid: tuple[int, ...]) -> dict[str, NDArray[Any]]:
        """The angles, and of the position table the four rows about a patch, `taps`, and the `shares` they have."""
        taps, shares = between(grid[1:], lattice.side_of(self.weights))
        return {**super().tables(grid), "taps": self.in_merge_order(taps), "shares": self.in_merge_order(shares)}

    def graph(self, g: Graph, kind: str) -> None:
        """patches (n_patch, 3 · 14 · 14), cos and sin, taps and shares (n_patch, 4), spans → (n_token, n_embd)."""
        inputs, eps = self.inputs(g), self.hp.eps
        x = lattice.placed(g, self.weights, self.embedded(g, inputs))
        for i in range(self.hp.n_layer):
            name = f"v.blk.{i}"
            x = nn.add(g, x, self.attention(g, nn.layer_norm(g, x, f"{name}.ln1", eps), name, inputs))
            rows = nn.layer_norm(g, x, f"{name}.ln2", eps)
            x = nn.add(g, x, nn.mlp(g, rows, f"{name}.ffn_up", f"{name}.ffn_down", nn.gelu_tanh))
        x = nn.layer_norm(g, x, "v.post_ln", eps)
        cells = self.cells(g, nn.layer_norm(g, x, "mm.input_norm", PROJECTOR_EPS))
        self.output(g, nn.mlp(g, cells, "mm.1", "mm.2", nn.gelu), inputs)

    def explain(self) -> dict[str, str]:
        """What every packed graph takes, and the position table's part."""
        said = super().explain()
        return {
            **said,
            "patches": f"{said['patches']} (transformers' own processor gives all patches of a picture row by row)",
            "taps": "the rows of the position table about a patch: above left, above right, below left, below right; the edges "
            "of the table stand on those of the picture",
            "shares": "how much of each tap a patch takes, by how near its centre is to the tap's (bilinear)",
        }


def at_least(width: int, height: int, side: int) -> Size:
    """(width, height) with both sides `side` at least, stretched as `smart_resize` of PaddleOCR-VL does: height first.

    Sides are rounded, to even at a half.
    """
    if height < side:
        width, height = round(width * side / height), side
    if width < side:
        width, height = side, round(height * side / width)
    return width, height


def between(grid: tuple[int, ...], side: int) -> Taps:
    """(h, w, 4) rows of a table (side · side, …) and their shares, for h × w places spread over it edge to edge.

    The first of 2 places over a table of side 4 has its centre at 0.5, half between 0 and 1. In float32, as in transformers.
    """
    half = np.float32(0.5)
    down, across = ((np.arange(n, dtype=np.float32) + half) * np.float32(side) / np.float32(n) - half for n in grid)
    return lattice.between(down, across, side)
