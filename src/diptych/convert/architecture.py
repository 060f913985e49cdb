"""The architectures whose text half converts: one table entry each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from gguf import ExpertGatingFuncType

from diptych.convert import blocks
from diptych.convert.blocks import Block, Settings, Table, rotary_width
from diptych.convert.checkpoint import Checkpoint, part, setting
from diptych.errors import FileError, UnknownModel

Layers = Callable[[Checkpoint, Settings], Sequence[Block]]
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
    more: Callable[[Settings, int], dict[str, Any]] = (
        lambda _config, _n_block: {}
    )  # metadata that is not one value of config.json
    top: Table = field(default_factory=lambda: blocks.TOP)
    mrope: bool = True  # positions of several planes, each with its section of the frequencies
    pre: str = "qwen2"  # how text is split before BPE, by llama.cpp's name, where no file says
    special: Mapping[str, str] = field(default_factory=dict)  # special tokens that no file names: GGUF's name → text
    left_out: tuple[str, ...] = ()  # beginnings of names that belong to neither half


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


def settings(checkpoint: Checkpoint) -> Settings:
    """config.json with the text half's settings on top, and below it what its class fills in."""
    config = checkpoint.text_config
    given = {name: value for name, value in config.items() if value is not None}
    return {**architecture(checkpoint).defaults, **given}


# Which tensors each layer has


def _same(table: Table) -> Layers:
    """The same for every layer, and for those of multi-token prediction (MTP) behind them."""

    def layers(checkpoint: Checkpoint, config: Settings) -> list[Block]:
        n = _n_layer(checkpoint, config)
        mtp = range(n, n + _n_mtp(checkpoint, n))
        return [
            *(Block(f"layers.{i}.", i, table) for i in range(n)),
            *(Block(f"layers.{i}.", i, {**table, **blocks.MTP}) for i in mtp),
        ]

    return layers


def _mixture(table: Table) -> Layers:
    """The same for every layer, and a mixture of experts."""

    def layers(checkpoint: Checkpoint, config: Settings) -> list[Block]:
        return [_with_experts(checkpoint, block) for block in _same(table)(checkpoint, config)]

    return layers


def _glm_mixture(checkpoint: Checkpoint, config: Settings) -> list[Block]:
    """The first layers have a single MLP, the others experts and shared ones."""
    n_dense = setting(config, "first_k_dense_replace", int)
    dense, sparse = {**_GLM4_MOE, **blocks.MLP}, {**_GLM4_MOE, **blocks.SHARED_EXPERTS, **_GLM4_ROUTER_BIAS}
    return [
        replace(b, table={**b.table, **dense})
        if b.number < n_dense
        else _with_experts(checkpoint, replace(b, table={**b.table, **sparse}))
        for b in _same({})(checkpoint, config)
    ]


def _hybrid(mlp: Table, *, mixture: bool) -> Layers:
    """Linear attention, and full attention in every fourth layer or where `layer_types` says."""

    def layers(checkpoint: Checkpoint, config: Settings) -> list[Block]:
        n = _n_layer(checkpoint, config)
        kinds = [_LINEAR_LAYER if linear else _FULL_LAYER for linear in _linear(config)]
        mtp = [i for i in range(n) if f"mtp.layers.{i}.input_layernorm.weight" in checkpoint.tensors]
        found = [Block(f"layers.{i}.", i, {**kind, **mlp}) for i, kind in enumerate(kinds)]
        found += [Block(f"mtp.layers.{i}.", n + i, {**_FULL_LAYER, **mlp}) for i in mtp]
        found = [_with_experts(checkpoint, block) for block in found] if mixture else found
        return [*found, Block("mtp.", n, blocks.QWEN_MTP)] if mtp else found

    return layers


def _with_experts(checkpoint: Checkpoint, block: Block) -> Block:
    """A block with its experts, which are saved one by one or all in one."""
    single = f"{block.prefix}mlp.experts.0.up_proj.weight" in checkpoint.tensors
    return replace(block, table={**block.table, **blocks.ROUTER, **(blocks.EXPERTS if single else blocks.FUSED_EXPERTS)})


def _n_layer(checkpoint: Checkpoint, config: Settings) -> int:
    n = setting(config, "num_hidden_layers", int)
    if n > len(checkpoint.tensors):  # said before a table of that length is made
        raise FileError(f"config.json says {n} layers, and {checkpoint.folder} has {len(checkpoint.tensors)} tensors in all")
    return n


def _n_mtp(checkpoint: Checkpoint, n_layer: int) -> int:
    """How many layers stand behind the last of config.json. transformers leaves them out when it saves a model."""
    i = n_layer
    while f"layers.{i}.eh_proj.weight" in checkpoint.tensors:
        i += 1
    return i - n_layer


def _linear(config: Settings) -> list[bool]:
    """For each layer whether its attention is linear."""
    n, every = setting(config, "num_hidden_layers", int), max(1, setting(config, "full_attention_interval", int))
    kinds = config.get("layer_types") or ["linear_attention" if (i + 1) % every else "full_attention" for i in range(n)]
    if not isinstance(kinds, list) or len(kinds) != n or not set(kinds) <= {"full_attention", "linear_attention"}:
        raise FileError(
            f"config.json has {kinds!s:.80} for layer_types, and full_attention or linear_attention is expected {n} times"
        )
    return [kind == "linear_attention" for kind in kinds]


# Metadata that is not one value of config.json


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
    normed = config.get("norm_topk_prob")
    return {
        **_glm4(config, n_block),
        "expert_gating_func": int(ExpertGatingFuncType.SIGMOID),
        **({"expert_weights_norm": normed} if isinstance(normed, bool) else {}),
    }


def _qwen35(config: Settings, n_block: int) -> dict[str, Any]:
    linear = _linear(config)
    return {
        "rope.dimension_count": rotary_width(config),
        "ssm.inner_size": setting(config, "linear_value_head_dim", int) * setting(config, "linear_num_value_heads", int),
        "attention.recurrent_layers": linear + [False] * (n_block - len(linear)),
        "full_attention_interval": setting(config, "full_attention_interval", int),
        **_mtp(config, n_block),
    }


_QWEN2 = {**blocks.NORMS, **blocks.ATTENTION, **blocks.QKV_BIAS, **blocks.MLP}
_QWEN3_MOE = {**blocks.NORMS, **blocks.ATTENTION, **blocks.QK_NORM}
_QWEN3 = {**_QWEN3_MOE, **blocks.MLP}
_FULL_LAYER = blocks.centred({**blocks.LATE_NORMS, **blocks.ATTENTION, **blocks.QK_NORM})
_LINEAR_LAYER = {**blocks.centred(blocks.LATE_NORMS), **blocks.LINEAR_ATTENTION}
_ERNIE = {**blocks.NORMS, **blocks.ATTENTION, **blocks.MLP}
_GLM_OCR = {**blocks.SANDWICH, **blocks.ATTENTION, **blocks.SIDE_BY_SIDE, **blocks.FUSED_MLP}
_GLM4 = {**_GLM_OCR, **blocks.QKV_BIAS, **blocks.SIDE_BY_SIDE_BIAS}
_OPTIONAL = {f"{name}?": target for name, target in {**blocks.QKV_BIAS, **blocks.QK_NORM}.items()}
_GLM4_MOE = {**blocks.LATE_NORMS, **blocks.ATTENTION, **_OPTIONAL}
_GLM4_ROUTER_BIAS = {"mlp.gate.e_score_correction_bias": "exp_probs_b.bias"}

_ANY = {"hidden_act": "silu", "rms_norm_eps": 1e-6}
_QWEN2_DEFAULTS = {**_ANY, "rope_theta": 1e6}
_QWEN3_DEFAULTS = {**_ANY, "rope_theta": 5e5, "mrope_section": [24, 20, 20]}
_QWEN35_DEFAULTS = {
    **_ANY, "rope_theta": 1e4, "mrope_section": [11, 11, 10], "partial_rotary_factor": 0.25, "head_dim": 256,
    "full_attention_interval": 4, "linear_conv_kernel_dim": 4, "linear_key_head_dim": 128, "linear_value_head_dim": 128,
    "linear_num_key_heads": 16, "linear_num_value_heads": 32,
}  # fmt: skip
_GLM_DEFAULTS = {**_ANY, "rms_norm_eps": 1e-5, "rope_theta": 1e4, "mrope_section": [8, 12, 12], "partial_rotary_factor": 0.5}
_GLM_MOE_DEFAULTS = {**_GLM_DEFAULTS, "first_k_dense_replace": 1, "n_shared_experts": 1, "norm_topk_prob": True}
_GLM_SPECIAL = {"bos": "<|endoftext|>", "eos": "<|endoftext|>", "unknown": "<|endoftext|>", "eot": "<|user|>"}
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

QWEN2VL = Architecture("qwen2vl", _same(_QWEN2), _QWEN2_DEFAULTS)
OMNI = replace(QWEN2VL, left_out=("talker.", "token2wav."))
QWEN2 = Architecture("qwen2", _same(_QWEN2), {**_QWEN2_DEFAULTS, "rope_theta": 1e4}, mrope=False)
QWEN3 = Architecture("qwen3", _same(_QWEN3), {**_ANY, "rope_theta": 1e4, "head_dim": 128}, mrope=False)
QWEN3_MOE = Architecture("qwen3moe", _mixture(_QWEN3_MOE), {**_ANY, "rope_theta": 1e4}, MIXTURE, mrope=False)
QWEN3VL = Architecture("qwen3vl", _same(_QWEN3), {**_QWEN3_DEFAULTS, "head_dim": 128}, more=_deepstack)
QWEN3VL_MOE = Architecture("qwen3vlmoe", _mixture(_QWEN3_MOE), _QWEN3_DEFAULTS, MIXTURE, _deepstack)
QWEN35 = Architecture(
    "qwen35",
    _hybrid(blocks.MLP, mixture=False),
    _QWEN35_DEFAULTS,
    {**SIZES, **LINEAR},
    _qwen35,
    blocks.centred(blocks.TOP),
    pre="qwen35",
)
QWEN35_MOE = Architecture(
    "qwen35moe", _hybrid(blocks.GATED_SHARED_EXPERT, mixture=True), _QWEN35_DEFAULTS, _QWEN35_MOE_SIZES, _qwen35,
    blocks.centred(blocks.TOP), pre="qwen35",
)  # fmt: skip
PADDLEOCR = Architecture("paddleocr", _same(_ERNIE), {**_ANY, "rms_norm_eps": 1e-5, "rope_theta": 5e5, "head_dim": 128})
GLM4 = Architecture("glm4", _same(_GLM4), _GLM_DEFAULTS, more=_glm4, pre="glm4", special=_GLM_SPECIAL)
GLM_OCR = replace(GLM4, layers=_same(_GLM_OCR))
GLM4_MOE = Architecture(
    "glm4moe", _glm_mixture, _GLM_MOE_DEFAULTS, _GLM_MOE_SIZES, _glm4_moe, pre="glm4", special=_GLM_MOE_SPECIAL
)

ARCHITECTURES: Mapping[str, Architecture] = {
    "Qwen2VLForConditionalGeneration": QWEN2VL,
    "Qwen2_5_VLForConditionalGeneration": QWEN2VL,
    "Qwen2_5OmniModel": OMNI,
    "Qwen2_5OmniForConditionalGeneration": OMNI,
    "Qwen2_5OmniThinkerForConditionalGeneration": OMNI,
    "Qwen3VLForConditionalGeneration": QWEN3VL,
    "Qwen3VLMoeForConditionalGeneration": QWEN3VL_MOE,
    "Qwen3_5ForConditionalGeneration": QWEN35,
    "Qwen3_5MoeForConditionalGeneration": QWEN35_MOE,
    "PaddleOCRVLForConditionalGeneration": PADDLEOCR,
    "DotsOCRForCausalLM": QWEN2,
    "Glm4vForConditionalGeneration": GLM4,
    "Glm4vMoeForConditionalGeneration": GLM4_MOE,
    "Glm46VForConditionalGeneration": GLM4,
    "Glm46VForConditionalGeneration glm4v_moe_text": GLM4_MOE,
    "GlmOcrForConditionalGeneration": GLM_OCR,
    "Qwen2ForCausalLM": QWEN2,
    "Qwen3ForCausalLM": QWEN3,
    "Qwen3MoeForCausalLM": QWEN3_MOE,
}  # names in config.json; behind a space the model_type of text_config, where one name stands for two
