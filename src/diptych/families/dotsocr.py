"""dots.ocr: RMSNorm, gated SiLU without biases, 2-D rotary positions, full attention, 2×2 merger, one plane of positions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from diptych.families.base import Table
from diptych.families.packed import MERGE, Packed, check_tower, processed
from diptych.families.qwen2vl import LIMITS  # its processor is Qwen2-VL's
from diptych.graph import nn
from diptych.positions import Positions, linear
from diptych.types import MediaChunk, MediaKind

if TYPE_CHECKING:
    from diptych.graph.graph import Graph

MERGER_EPS = 1e-6  # a constant of the model's code; config.json's rms_norm_eps is that of the other norms


class DotsOCR(Packed):
    """dots.ocr's encoder: 2-D rotary positions, full attention within a picture, a norm before the blocks and behind them.

    config.json gives its layers no biases; only the patches' kernel and the merger have some.
    """

    projectors: ClassVar[Mapping[MediaKind, tuple[str, ...]]] = {"image": ("dots_ocr",)}
    architectures = ("DotsOCRForCausalLM",)
    placeholders: ClassVar[Mapping[MediaKind, tuple[str, ...]]] = {"image": ("<|img|><|imgpad|><|endofimg|>", "<|imgpad|>")}
    tensors: ClassVar[Table] = {
        "vision_tower.patch_embed.patchifier.proj.weight": "v.patch_embd.weight",
        "vision_tower.patch_embed.patchifier.proj.bias": "v.patch_embd.bias",
        "vision_tower.patch_embed.patchifier.norm.weight": "v.pre_ln.weight",
        "vision_tower.blocks.{i}.norm1.weight": "v.blk.{i}.ln1.weight",
        "vision_tower.blocks.{i}.attn.qkv.weight": "v.blk.{i}.attn_qkv.weight",
        "vision_tower.blocks.{i}.attn.proj.weight": "v.blk.{i}.attn_out.weight",
        "vision_tower.blocks.{i}.norm2.weight": "v.blk.{i}.ln2.weight",
        "vision_tower.blocks.{i}.mlp.fc1.weight": "v.blk.{i}.ffn_gate.weight",
        "vision_tower.blocks.{i}.mlp.fc2.weight": "v.blk.{i}.ffn_down.weight",
        "vision_tower.blocks.{i}.mlp.fc3.weight": "v.blk.{i}.ffn_up.weight",
        "vision_tower.post_trunk_norm.weight": "mm.post_norm.weight",
        "vision_tower.merger.ln_q.weight": "mm.input_norm.weight",
        "vision_tower.merger.ln_q.bias": "mm.input_norm.bias",
        "vision_tower.merger.mlp.0.weight": "mm.0.weight",
        "vision_tower.merger.mlp.0.bias": "mm.0.bias",
        "vision_tower.merger.mlp.2.weight": "mm.2.weight",
        "vision_tower.merger.mlp.2.bias": "mm.2.bias",
    }
    n_pos = 1
    n_frames = 1
    limits = LIMITS
    around = ("<|img|>", "<|endofimg|>")

    @staticmethod
    def metadata(config: Mapping[str, Any], processor: Mapping[str, Any]) -> dict[str, Any]:
        """config.json and preprocessor_config.json → the `clip.*` metadata.

        Raises FileError when the checkpoint's tower is another than every published dots.ocr has.
        """
        vision = config["vision_config"]
        check_tower(vision, "dots.ocr", num_channels=3, temporal_patch_size=1, use_bias=False, post_norm=True, is_causal=False)
        return {
            "clip.has_vision_encoder": True,
            "clip.projector_type": "dots_ocr",
            "clip.use_silu": True,
            "clip.vision.projection_dim": int(vision.get("hidden_size", 1536)),
            "clip.vision.image_size": 0,  # any size goes
            "clip.vision.patch_size": int(vision.get("patch_size", 14)),
            "clip.vision.projector.scale_factor": int(vision.get("spatial_merge_size", MERGE)),
            "clip.vision.embedding_length": int(vision.get("embed_dim", 1536)),
            "clip.vision.feed_forward_length": int(vision.get("intermediate_size", 4224)),
            "clip.vision.block_count": int(vision.get("num_hidden_layers", 42)),
            "clip.vision.attention.head_count": int(vision.get("num_attention_heads", 12)),
            "clip.vision.attention.layer_norm_epsilon": float(vision.get("rms_norm_eps", 1e-5)),
            **processed(processor, LIMITS),
        }

    def positions(self, chunk: MediaChunk, start: int) -> tuple[Positions, int]:
        """One row, one position: the text half is Qwen2."""
        return linear(chunk, start)

    def graph(self, g: Graph, kind: str) -> None:
        """patches (n_patch, 3 · 14 · 14), cos and sin (n_patch, d / 2), spans (n, 2) → (n_token, n_embd)."""
        inputs, eps = self.inputs(g), self.hp.eps
        x = nn.rms_norm(g, self.embedded(g, inputs), "v.pre_ln", eps)
        for i in range(self.hp.n_layer):
            name = f"v.blk.{i}"
            x = nn.add(g, x, self.attention(g, nn.rms_norm(g, x, f"{name}.ln1", eps), name, inputs))
            x = nn.add(g, x, nn.gated_mlp(g, nn.rms_norm(g, x, f"{name}.ln2", eps), f"{name}.ffn", nn.silu))
        x = nn.rms_norm(g, x, "mm.post_norm", eps)
        cells = self.cells(g, nn.layer_norm(g, x, "mm.input_norm", MERGER_EPS))
        self.output(g, nn.mlp(g, cells, "mm.0", "mm.2", nn.gelu), inputs)
