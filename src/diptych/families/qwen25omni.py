"""Qwen2.5-Omni's picture side: Qwen2.5-VL's encoder in the thinker of a larger model. Its audio side is left out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from diptych.families.base import Table
from diptych.families.qwen25vl import Qwen25VL
from diptych.types import MediaKind


class Qwen25Omni(Qwen25VL):
    """Qwen2.5-VL's encoder with marks of its own; checkpoints have queries, keys and values apart."""

    projectors: ClassVar[Mapping[MediaKind, tuple[str, ...]]] = {"image": ("qwen2.5o",)}
    architectures: ClassVar[tuple[str, ...]] = (
        "Qwen2_5OmniModel",
        "Qwen2_5OmniForConditionalGeneration",
        "Qwen2_5OmniThinkerForConditionalGeneration",
    )
    placeholders: ClassVar[Mapping[MediaKind, tuple[str, ...]]] = {
        "image": ("<|vision_bos|><|IMAGE|><|vision_eos|>", "<|IMAGE|>")
    }
    around = "<|vision_bos|>", "<|vision_eos|>"
    tensors: ClassVar[Table] = {
        **{name: target for name, target in Qwen25VL.tensors.items() if ".qkv." not in name},
        **{f"visual.blocks.{{i}}.attn.{x}.{kind}": f"v.blk.{{i}}.attn_{x}.{kind}" for x in "qkv" for kind in ("weight", "bias")},
        "audio_tower.": None,
        "talker.": None,
        "token2wav.": None,
    }

    @staticmethod
    def metadata(config: Mapping[str, Any], processor: Mapping[str, Any]) -> dict[str, Any]:
        """config.json, of the whole model or of its thinker, and preprocessor_config.json → the `clip.*` metadata.

        Raises FileError as Qwen2.5-VL's does.
        """
        thinker = config.get("thinker_config", config)
        return {**Qwen25VL.metadata(thinker, processor), "clip.projector_type": "qwen2.5o"}
