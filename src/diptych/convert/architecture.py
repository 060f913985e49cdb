"""The architectures whose text half converts: one table entry each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from gguf import ExpertGatingFuncType

from diptych.convert import blocks, layers
from diptych.convert.blocks import Table
from diptych.convert.checkpoint import Checkpoint, part, setting
from diptych.convert.layers import Layers
from diptych.convert.settings import Settings, linear_layers, normalised, rotary_width
from diptych.errors import FileError, UnknownModel

Sizes = Mapping[str, tuple[type[int] | type[float], tuple[str, ...]]]
"""GGUF name behind the architecture's → type, and names in config.json, the first that is there. With a ? it may be missing."""

SIZES: Sizes = {
    "context_length": (int, ("max_position_embeddings",)),
    "embedding_length": (int, ("hidden_size",)),
    "feed_forward_length": (int, ("intermediate_size",)),
    "attention.head_count": (int, ("num_attention_heads",)),
    "attention.head_count_kv": (int, ("num_key_value_heads", "num_attention_heads")),
    "attention.key_length?": (int, ("head_dim",)),
    "attention.value_length?": (int, ("head_dim",)),
    "attention.layer_norm_rms_epsilon": (float, ("rms_norm_eps",)),
}
MIXTURE: Sizes = {
    **SIZES,
    "expert_count": (int, ("num_experts", "num_local_experts", "n_routed_experts")),
    "expert_used_count": (int, ("num_experts_per_tok",)),
    "expert_feed_forward_length": (int, ("moe_intermediate_size",)),
}
LINEAR: Sizes = {
    "ssm.conv_kernel": (int, ("linear_conv_kernel_dim",)),
    "ssm.state_size": (int, ("linear_key_head_dim",)),
    "ssm.group_count": (int, ("linear_num_key_heads",)),
    "ssm.time_step_rank": (int, ("linear_num_value_heads",)),
}


@dataclass(frozen=True)
class Architecture:
    """What is special about one. `defaults` are those of its class in transformers, where config.json leaves something out."""

    name: str  # GGUF's
    layers: Layers
    defaults: Settings
    sizes: Sizes = field(default_factory=lambda: SIZES)
    more: Callable[[Settings, int], dict[str, Any]] = lambda *_: {}  # of settings and blocks: what is not one value
    top: Table = field(default_factory=lambda: blocks.TOP)
    mrope: bool = True  # positions of several planes, each with its section of the frequencies
    pre: str = "qwen2"  # how text is split before BPE, by llama.cpp's name, where no file says
    special: Mapping[str, str] = field(default_factory=dict)  # special tokens that no file names: GGUF's name → text

    def settings(self, checkpoint: Checkpoint) -> Settings:
        """config.json with the text half's settings on top, and below it what its class fills in."""
        return {**self.defaults, **{name: v for name, v in checkpoint.text_config.items() if v is not None}}


def architecture(checkpoint: Checkpoint) -> Architecture:
    """The table entry of a checkpoint. Raises UnknownModel listing the known architectures."""
    name = checkpoint.architecture
    kind = part(checkpoint.config, "text_config").get("model_type")
    if isinstance(kind, str) and f"{name} {kind}" in ARCHITECTURES:
        name = f"{name} {kind}"
    if name not in ARCHITECTURES:
        known = ", ".join(n for n in ARCHITECTURES if " " not in n)
        raise UnknownModel(f"config.json names the architecture {name!r}, and these can be converted: {known}")
    return ARCHITECTURES[name]


def _deepstack(config: Settings, _n_block: int) -> dict[str, Any]:
    """How many layers take rows of their own beside the input's."""
    taps = part(config, "vision_config").get("deepstack_visual_indexes", (8, 16, 24))
    if not isinstance(taps, list | tuple):
        raise FileError(f"config.json has {taps!r} for deepstack_visual_indexes, and a list of layers is expected")
    return {"n_deepstack_layers": len(taps)}


def _mtp(config: Settings, n_block: int) -> dict[str, Any]:
    n = n_block - setting(config, "num_hidden_layers", int)
    return {"nextn_predict_layers": n} if n else {}


def _glm4(config: Settings, n_block: int) -> dict[str, Any]:
    return {"rope.dimension_count": rotary_width(config), **_mtp(config, n_block)}


def _glm4_moe(config: Settings, n_block: int) -> dict[str, Any]:
    return {
        **_glm4(config, n_block),
        "expert_gating_func": int(ExpertGatingFuncType.SIGMOID),
        "expert_weights_norm": normalised(config),
    }


def _qwen3_moe(config: Settings, _n_block: int) -> dict[str, Any]:
    if not normalised(config):
        raise FileError("config.json says norm_topk_prob is false, and llama.cpp's qwen3moe knows true alone")
    return {}


def _qwen35(config: Settings, n_block: int) -> dict[str, Any]:
    linear, (key, value) = linear_layers(config), [setting(config, f"linear_{x}_head_dim", int) for x in ("key", "value")]
    if key != value:
        raise FileError(f"config.json has heads of linear attention of {key} and {value} values, and llama.cpp's are equal")
    return {
        "rope.dimension_count": rotary_width(config),
        "ssm.inner_size": value * setting(config, "linear_num_value_heads", int),
        "attention.recurrent_layers": linear + [False] * (n_block - len(linear)),
        "full_attention_interval": setting(config, "full_attention_interval", int),
        **_mtp(config, n_block),
    }


_ANY = {"hidden_act": "silu", "rms_norm_eps": 1e-6}
_QWEN2_DEFAULTS = {**_ANY, "rope_theta": 1e6}
_QWEN3_DEFAULTS = {**_ANY, "rope_theta": 5e5, "mrope_section": [24, 20, 20]}
_QWEN3_MOE_DEFAULTS = {**_ANY, "rope_theta": 1e4, "norm_topk_prob": False}
_QWEN35_DEFAULTS = {
    **_ANY, "rope_theta": 1e4, "mrope_section": [11, 11, 10], "partial_rotary_factor": 0.25, "head_dim": 256,
    "full_attention_interval": 4, "linear_conv_kernel_dim": 4, "linear_key_head_dim": 128, "linear_value_head_dim": 128,
    "linear_num_key_heads": 16, "linear_num_value_heads": 32,
}  # fmt: skip
_GLM_DEFAULTS = {**_ANY, "rms_norm_eps": 1e-5, "rope_theta": 1e4, "mrope_section": [8, 12, 12], "partial_rotary_factor": 0.5}
_GLM_MOE_DEFAULTS = {**_GLM_DEFAULTS, "first_k_dense_replace": 1, "n_shared_experts": 1, "norm_topk_prob": True}
_GLM_SPECIAL = {
    "bos": "<|endoftext|>",
    "eos": "<|endoftext|>",
    "unknown": "<|endoftext|>",
    "eot": "<|user|>",
    "eom": "<|observation|>",
}
_GLM_MOE_SPECIAL = {"bos": "[gMASK]", "unknown": "<|endoftext|>", "eot": "<|user|>", "eom": "<|observation|>"}
_GLM_MOE_SIZES: Sizes = {
    **MIXTURE,
    "expert_group_count?": (int, ("n_group",)),
    "expert_group_used_count?": (int, ("topk_group",)),
    "expert_shared_count": (int, ("n_shared_experts",)),
    "expert_weights_scale?": (float, ("routed_scaling_factor",)),
    "leading_dense_block_count": (int, ("first_k_dense_replace",)),
}
_QWEN35_MOE_SIZES: Sizes = {
    **{("feed_forward_length?" if k == "feed_forward_length" else k): v for k, v in MIXTURE.items()},
    "expert_shared_feed_forward_length": (int, ("shared_expert_intermediate_size",)),
    **LINEAR,
}

QWEN2VL = Architecture("qwen2vl", layers.same(layers.QWEN2), _QWEN2_DEFAULTS)
QWEN2 = Architecture("qwen2", layers.same(layers.QWEN2), {**_QWEN2_DEFAULTS, "rope_theta": 1e4}, mrope=False)
DOTSOCR = replace(QWEN2, special={"eot": "<|endofassistant|>"})  # of its files generation_config.json alone says so
QWEN3 = Architecture("qwen3", layers.same(layers.QWEN3), {**_ANY, "rope_theta": 1e4, "head_dim": 128}, mrope=False)
QWEN3_MOE = Architecture("qwen3moe", layers.mixture(layers.QWEN3_MOE), _QWEN3_MOE_DEFAULTS, MIXTURE, _qwen3_moe, mrope=False)
QWEN3VL = Architecture("qwen3vl", layers.same(layers.QWEN3), {**_QWEN3_DEFAULTS, "head_dim": 128}, more=_deepstack)
QWEN3VL_MOE = Architecture("qwen3vlmoe", layers.mixture(layers.QWEN3_MOE), _QWEN3_DEFAULTS, MIXTURE, _deepstack)
QWEN35 = Architecture(
    "qwen35", layers.hybrid(blocks.MLP), _QWEN35_DEFAULTS, {**SIZES, **LINEAR}, _qwen35, blocks.centred(blocks.TOP), pre="qwen35"
)
QWEN35_MOE = replace(QWEN35, name="qwen35moe", layers=layers.hybrid(blocks.GATED_SHARED_EXPERT), sizes=_QWEN35_MOE_SIZES)
PADDLEOCR = Architecture(
    "paddleocr", layers.same(layers.ERNIE), {**_ANY, "rms_norm_eps": 1e-5, "rope_theta": 5e5, "head_dim": 128}
)
GLM4 = Architecture("glm4", layers.same(layers.GLM4), _GLM_DEFAULTS, more=_glm4, pre="glm4", special=_GLM_SPECIAL)
GLM_OCR = replace(GLM4, layers=layers.same(layers.GLM_OCR))
GLM4_MOE = Architecture(
    "glm4moe", layers.glm_mixture, _GLM_MOE_DEFAULTS, _GLM_MOE_SIZES, _glm4_moe, pre="glm4", special=_GLM_MOE_SPECIAL
)

ARCHITECTURES: Mapping[str, Architecture] = {
    "Qwen2VLForConditionalGeneration": QWEN2VL,
    "Qwen2_5_VLForConditionalGeneration": QWEN2VL,
    "Qwen2_5OmniModel": QWEN2VL,
    "Qwen2_5OmniForConditionalGeneration": QWEN2VL,
    "Qwen2_5OmniThinkerForConditionalGeneration": QWEN2VL,
    "Qwen3VLForConditionalGeneration": QWEN3VL,
    "Qwen3VLMoeForConditionalGeneration": QWEN3VL_MOE,
    "Qwen3_5ForConditionalGeneration": QWEN35,
    "Qwen3_5MoeForConditionalGeneration": QWEN35_MOE,
    "PaddleOCRVLForConditionalGeneration": PADDLEOCR,
    "DotsOCRForCausalLM": DOTSOCR,
    "Glm4vForConditionalGeneration": GLM4,
    "Glm4vMoeForConditionalGeneration": GLM4_MOE,
    "Glm46VForConditionalGeneration": GLM4,
    "Glm46VForConditionalGeneration glm4v_moe_text": GLM4_MOE,
    "GlmOcrForConditionalGeneration": GLM_OCR,
    "Qwen2ForCausalLM": QWEN2,
    "Qwen3ForCausalLM": QWEN3,
    "Qwen3MoeForCausalLM": QWEN3_MOE,
}  # names in config.json; behind a space the model_type of text_config, where one name stands for two
