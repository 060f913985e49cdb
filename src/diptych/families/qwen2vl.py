"""Qwen2-VL and MinerU2.5: two frames a patch, full attention within a picture, 2×2 merger, M-RoPE positions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from diptych.families.base import Table
from diptych.families.packed import MERGE, Packed, check_tower, processed
from diptych.graph import nn
from diptych.types import MediaKind

if TYPE_CHECKING:
    from diptych.graph.graph import Graph

LIMITS = 56 * 56, 28 * 28 * 1280  # pixels, the defaults of Qwen2VLImageProcessor
EPS = 1e-6  # a constant of the model's code; config.json's rms_norm_eps is the text half's


class Qwen2VL(Packed):
    """Qwen2-VL's encoder: two frames a patch, 2-D rotary positions, full attention within a picture, 2×2 merger."""

    projectors: ClassVar[Mapping[MediaKind, tuple[str, ...]]] = {"image": ("qwen2vl_merger",)}
    architectures = ("Qwen2VLForConditionalGeneration",)
    placeholders: ClassVar[Mapping[MediaKind, tuple[str, ...]]] = {
        "image": ("<|vision_start|><|image_pad|><|vision_end|>", "<|image_pad|>")
    }
    tensors: ClassVar[Table] = {
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
    limits = LIMITS

    @staticmethod
    def metadata(config: Mapping[str, Any], processor: Mapping[str, Any]) -> dict[str, Any]:
        """config.json (old flat style or new nested) and preprocessor_config.json → the `clip.*` metadata.

        Raises FileError when the checkpoint's tower is not one that Qwen2-VL's code would build.
        """
        vision = config["vision_config"]
        check_tower(vision, "Qwen2-VL", hidden_act="quick_gelu", temporal_patch_size=2, in_channels=3, in_chans=3)
        text = {**config, **config.get("text_config", {})}
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
            **processed(processor, LIMITS),
        }

    def graph(self, g: Graph, kind: str) -> None:
        """patches (n_patch, 3 · 2 · 14 · 14), cos and sin (n_patch, d / 2), spans (n, 2) → (n_token, n_embd)."""
        inputs = self.inputs(g)
        x = self.embedded(g, inputs)
        for i in range(self.hp.n_layer):
            name = f"v.blk.{i}"
            x = nn.add(g, x, self.attention(g, nn.layer_norm(g, x, f"{name}.ln1", EPS), name, inputs))
            x = nn.add(g, x, nn.mlp(g, nn.layer_norm(g, x, f"{name}.ln2", EPS), *self._mlp(g, name), nn.quick_gelu))
        cells = self.cells(g, nn.layer_norm(g, x, "v.post_ln", EPS))
        self.output(g, nn.mlp(g, cells, "mm.0", "mm.2", nn.gelu), inputs)

    def _mlp(self, g: Graph, name: str) -> tuple[str, str]:
        """The two matrices of a layer's MLP by their shapes: old converters gave each the other's name."""
        pair = f"{name}.ffn_up", f"{name}.ffn_down"
        return pair if g.shape(f"{pair[0]}.weight")[1] == self.hp.n_embd else pair[::-1]
