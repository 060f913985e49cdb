"""GLM-4.1V, GLM-4.5V, GLM-4.6V and GLM-OCR: RMSNorm, gated SiLU, a strided convolution as merger, M-RoPE positions.

All have one projector type. What tells GLM-OCR apart is its tensors: norms of queries and keys, and biases, but no table of
positions and no norm before the blocks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from diptych.errors import FileError
from diptych.families import lattice
from diptych.families.base import Table
from diptych.families.lattice import POSITIONS
from diptych.families.packed import MERGE, Packed, Size, check_aspect, check_tower, fit, processed
from diptych.graph import nn
from diptych.types import MediaKind

if TYPE_CHECKING:
    from diptych.graph.graph import Graph, Value

LIMITS = 112 * 112 // 2, 28 * 28 * 15000 // 2  # pixels: the processor's defaults, which count the two frames of a patch
MERGER_EPS = 1e-5  # of PyTorch's LayerNorm; config.json's rms_norm_eps is that of the other norms
CUBIC = -0.75  # the free parameter of PyTorch's cubic kernel

GLM_OCR = "GlmOcrForConditionalGeneration"
# what the configuration classes of transformers say where config.json is silent
TOWER = {"hidden_size": 1536, "num_heads": 12, "out_hidden_size": 4096, "intermediate_size": 13696, "attention_bias": False}
OCR_TOWER = {"hidden_size": 1024, "num_heads": 16, "out_hidden_size": 1536, "intermediate_size": 4096, "attention_bias": True}

AXES = {"down": "line", "across": "column"}  # the graph's inputs that say where a patch stands on the table of positions
OF_OTHERS = {
    "visual.post_conv_layernorm.weight": "v.norm_embd.weight",
    "visual.embeddings.position_embedding.weight": POSITIONS,
}
OF_OCR = {
    "visual.blocks.{i}.attn.q_norm.weight": "v.blk.{i}.attn_q_norm.weight",
    "visual.blocks.{i}.attn.k_norm.weight": "v.blk.{i}.attn_k_norm.weight",
}
BIASES = {"visual.blocks.{i}.attn.qkv.bias": "v.blk.{i}.attn_qkv.bias"}
OCR_BIASES = {
    **BIASES,
    "visual.blocks.{i}.attn.proj.bias": "v.blk.{i}.attn_out.bias",
    "visual.blocks.{i}.mlp.gate_proj.bias": "v.blk.{i}.ffn_gate.bias",
    "visual.blocks.{i}.mlp.up_proj.bias": "v.blk.{i}.ffn_up.bias",
    "visual.blocks.{i}.mlp.down_proj.bias": "v.blk.{i}.ffn_down.bias",
}


class Glm4v(Packed):
    """GLM's encoder: two frames a patch, rotary and learned 2-D positions, full attention within a picture, 2×2 merger."""

    projectors: ClassVar[Mapping[MediaKind, tuple[str, ...]]] = {"image": ("glm4v",)}
    architectures = (
        "Glm4vForConditionalGeneration",
        "Glm4vMoeForConditionalGeneration",
        "Glm46VForConditionalGeneration",
        GLM_OCR,
    )
    placeholders: ClassVar[Mapping[MediaKind, tuple[str, ...]]] = {
        "image": ("<|begin_of_image|><|image|><|end_of_image|>", "<|image|>")
    }
    tensors: ClassVar[Table] = {
        "visual.patch_embed.proj.weight": ("v.patch_embd.weight", "v.patch_embd.weight.1"),
        "visual.patch_embed.proj.bias": "v.patch_embd.bias",
        "visual.blocks.{i}.norm1.weight": "v.blk.{i}.ln1.weight",
        "visual.blocks.{i}.attn.qkv.weight": "v.blk.{i}.attn_qkv.weight",
        "visual.blocks.{i}.attn.proj.weight": "v.blk.{i}.attn_out.weight",
        "visual.blocks.{i}.norm2.weight": "v.blk.{i}.ln2.weight",
        "visual.blocks.{i}.mlp.gate_proj.weight": "v.blk.{i}.ffn_gate.weight",
        "visual.blocks.{i}.mlp.up_proj.weight": "v.blk.{i}.ffn_up.weight",
        "visual.blocks.{i}.mlp.down_proj.weight": "v.blk.{i}.ffn_down.weight",
        "visual.post_layernorm.weight": "v.post_ln.weight",
        "visual.downsample.weight": "mm.patch_merger.weight",
        "visual.downsample.bias": "mm.patch_merger.bias",
        "visual.merger.proj.weight": "mm.model.fc.weight",
        "visual.merger.post_projection_norm.weight": "mm.post_norm.weight",
        "visual.merger.post_projection_norm.bias": "mm.post_norm.bias",
        "visual.merger.gate_proj.weight": "mm.gate.weight",
        "visual.merger.up_proj.weight": "mm.up.weight",
        "visual.merger.down_proj.weight": "mm.down.weight",
    }
    wide = ("mm.",)  # the projector multiplies two branches: of tiny models int8 turned a row to a cosine of 0.997 there
    limits = LIMITS
    around = ("<|begin_of_image|>", "<|end_of_image|>")

    @classmethod
    def table(cls, config: Mapping[str, Any]) -> Table:
        """The tensors of all, those of GLM-OCR or of the others alone, and the biases if config.json has them."""
        own, biases = (OF_OCR, OCR_BIASES) if _is_ocr(config) else (OF_OTHERS, BIASES)
        return {**cls.tensors, **own, **(biases if _vision(config)["attention_bias"] else {})}

    @staticmethod
    def metadata(config: Mapping[str, Any], processor: Mapping[str, Any]) -> dict[str, Any]:
        """config.json and preprocessor_config.json → the `clip.*` metadata.

        The limits of pixels are of one frame. Raises FileError when the checkpoint's tower is not one that GLM's code
        would build.
        """
        vision = _vision(config)
        check_tower(vision, "GLM", hidden_act="silu", temporal_patch_size=2, in_channels=3)
        _check_expansion(processor)
        pixels = processed(processor, (2 * LIMITS[0], 2 * LIMITS[1]))
        return {
            "clip.has_vision_encoder": True,
            "clip.projector_type": "glm4v",
            "clip.use_silu": True,
            "clip.vision.projection_dim": int(vision["out_hidden_size"]),
            "clip.vision.image_size": int(vision.get("image_size", 336)),  # of the table of positions: any size goes
            "clip.vision.patch_size": int(vision.get("patch_size", 14)),
            "clip.vision.spatial_merge_size": int(vision.get("spatial_merge_size", MERGE)),
            "clip.vision.embedding_length": int(vision["hidden_size"]),
            "clip.vision.feed_forward_length": int(vision["intermediate_size"]),  # as llama.cpp's converter, of whatever MLP
            "clip.vision.block_count": int(vision.get("depth", 24)),
            "clip.vision.attention.head_count": int(vision["num_heads"]),
            "clip.vision.attention.layer_norm_epsilon": float(vision.get("rms_norm_eps", 1e-5)),
            **pixels,
            "clip.vision.image_min_pixels": -(-pixels["clip.vision.image_min_pixels"] // 2),
            "clip.vision.image_max_pixels": pixels["clip.vision.image_max_pixels"] // 2,
        }

    def used(self, width: int, height: int, low: int, high: int) -> Size:
        """As the others of its kind, but a picture with a side below one merged cell is first enlarged until it has one."""
        unit = self.hp.patch_size * self.hp.n_merge
        check_aspect(width, height)
        if min(width, height) < unit:
            scale = max(unit / height, unit / width)
            width, height = int(width * scale), int(height * scale)
        return fit(width, height, unit, low, high)

    def tables(self, grid: tuple[int, ...]) -> dict[str, NDArray[Any]]:
        """The angles, and how much of each line and column of the table of positions a patch takes (n_patch, side)."""
        if self._of_ocr:
            return super().tables(grid)
        _, h, w = grid
        side = lattice.side_of(self.weights)
        down, across = cubic(h, side)[:, None], cubic(w, side)[None]
        shares = {"down": np.broadcast_to(down, (h, w, side)), "across": np.broadcast_to(across, (h, w, side))}
        return {**super().tables(grid), **{name: self.in_merge_order(share) for name, share in shares.items()}}

    def graph(self, g: Graph, kind: str) -> None:
        """patches (n_patch, 3 · 2 · 14 · 14), what `tables` gives, spans (n, 2) → (n_token, n_embd)."""
        inputs, eps = self.inputs(g), self.hp.eps
        x = self._placed(g, self.embedded(g, inputs))
        for i in range(self.hp.n_layer):
            name = f"v.blk.{i}"
            x = nn.add(g, x, self.attention(g, nn.rms_norm(g, x, f"{name}.ln1", eps), name, inputs))
            x = nn.add(g, x, nn.gated_mlp(g, nn.rms_norm(g, x, f"{name}.ln2", eps), f"{name}.ffn", nn.silu))
        self.output(g, self._merged(g, nn.rms_norm(g, x, "v.post_ln", eps)), inputs)

    def explain(self) -> dict[str, str]:
        """How a picture becomes patches, and what stands beside them."""
        kernel = f"a cubic kernel (a = {CUBIC}, half-pixel centres, taps kept within, no antialias)"
        shares = {n: f"how much of each {what} of the table of positions, by {kernel}" for n, what in AXES.items()}
        return {**super().explain(), **({} if self._of_ocr else shares)}

    def _placed(self, g: Graph, x: Value) -> Value:
        """Embedded patches, normalised and each with its learned position; in GLM-OCR as they are."""
        if self._of_ocr:
            return x
        side = lattice.side_of(self.weights)
        down, across = (g.input(name, ("n_patch", side)) for name in AXES)
        with g.scope("positions"):
            return g.Add(nn.rms_norm(g, x, "v.norm_embd", self.hp.eps), nn.resampled(g, g.weight(POSITIONS), down, across))

    def _merged(self, g: Graph, x: Value) -> Value:
        """Patches → rows: a convolution over each cell, as one matrix, then projection, LayerNorm and a gated MLP."""
        with g.scope("mm.patch_merger"):
            cells = g.Reshape(x, [-1, self.hp.n_merge**2, self.hp.n_embd])
            cells = g.Flatten(g.Transpose(cells, perm=[0, 2, 1]), axis=1)  # (n_token, channel · row · column), as the kernel
            kernel = g.Flatten(g.weight("mm.patch_merger.weight"), axis=1)
            x = g.Gemm(cells, kernel, g.weight("mm.patch_merger.bias"), transB=1)
        x = nn.gelu(g, nn.layer_norm(g, nn.linear(g, x, "mm.model.fc"), "mm.post_norm", MERGER_EPS))
        return nn.linear(g, g.Mul(nn.silu(g, nn.linear(g, x, "mm.gate")), nn.linear(g, x, "mm.up")), "mm.down")

    @property
    def _of_ocr(self) -> bool:
        """Whether the file is of GLM-OCR. The projector type does not tell, the norms of queries do."""
        return "v.blk.0.attn_q_norm.weight" in self.weights.tensors


def cubic(n: int, side: int) -> NDArray[np.float32]:
    """(n, side): the shares of `side` samples in each of `n` points spread evenly over them, by PyTorch's cubic kernel.

    Half-pixel centres, no antialias; taps beyond the ends take the end's sample (`grid_sample`, padding "border").
    """
    at = (np.arange(n) + 0.5) * side / n - 0.5
    first = np.floor(at)
    shares = np.zeros((n, side))
    for tap in range(-1, 3):
        far = np.abs(at - first - tap)
        near = ((CUBIC + 2) * far - (CUBIC + 3)) * far**2 + 1
        outer = ((far - 5) * far + 8) * far * CUBIC - 4 * CUBIC
        np.add.at(shares, (np.arange(n), np.clip(first + tap, 0, side - 1).astype(int)), np.where(far <= 1, near, outer))
    return shares.astype(np.float32)


def _is_ocr(config: Mapping[str, Any]) -> bool:
    return GLM_OCR in config["architectures"]


def _vision(config: Mapping[str, Any]) -> dict[str, Any]:
    return {**(OCR_TOWER if _is_ocr(config) else TOWER), **config["vision_config"]}


def _check_expansion(processor: Mapping[str, Any]) -> None:
    """GlmgaImageProcessor rounds to larger units where it is asked to; no other checkpoint says so."""
    factor = processor.get("patch_expand_factor", 1)
    if factor != 1:
        raise FileError(f"preprocessor_config.json has patch_expand_factor {factor!r}, and GLM's encoder takes 1 alone")
