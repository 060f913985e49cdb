"""The architectures whose text half converts: one table entry each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from diptych.convert import blocks
from diptych.convert.blocks import Block, Settings, Table
from diptych.convert.checkpoint import Checkpoint, part, setting
from diptych.errors import FileError, UnknownModel

Layers = Callable[[Checkpoint, Settings], Sequence[Block]]
Kind = type[int] | type[float]

SIZES: Mapping[str, tuple[Kind, tuple[str, ...]]] = {
    "context_length": (int, ("max_position_embeddings",)),
    "embedding_length": (int, ("hidden_size",)),
    "feed_forward_length": (int, ("intermediate_size",)),
    "attention.head_count": (int, ("num_attention_heads",)),
    "attention.head_count_kv": (int, ("num_key_value_heads", "num_attention_heads")),
    "attention.layer_norm_rms_epsilon": (float, ("rms_norm_eps",)),
}  # GGUF name behind the architecture's → type, names in config.json, the first that is there
HEAD_SIZES = {f"attention.{x}_length": (int, ("head_dim",)) for x in ("key", "value")}
EXPERT_SIZES = {
    "expert_count": (int, ("num_experts", "num_local_experts", "n_routed_experts")),
    "expert_used_count": (int, ("num_experts_per_tok",)),
    "expert_feed_forward_length": (int, ("moe_intermediate_size",)),
}


@dataclass(frozen=True)
class Architecture:
    """What is special about one. `defaults` are those of its class in transformers, where config.json leaves something out."""

    name: str  # GGUF's
    layers: Layers
    defaults: Settings
    sizes: Mapping[str, tuple[Kind, tuple[str, ...]]] = field(default_factory=lambda: SIZES)
    more: Callable[[Settings], dict[str, Any]] = lambda _: {}  # further metadata, without the architecture's name in front
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


def _plain(table: Table) -> Layers:
    """The same table for every layer."""

    def layers(checkpoint: Checkpoint, config: Settings) -> list[Block]:
        return [Block(f"layers.{i}.", i, table) for i in range(_n_layer(checkpoint, config))]

    return layers


def _mixture(table: Table) -> Layers:
    """The same table for every layer, and a mixture of experts."""

    def layers(checkpoint: Checkpoint, config: Settings) -> list[Block]:
        return [_with_experts(checkpoint, block) for block in _plain({**table, **blocks.ROUTER})(checkpoint, config)]

    return layers


def _with_experts(checkpoint: Checkpoint, block: Block) -> Block:
    """A block with its experts, which are saved one by one or all in one."""
    single = f"{block.prefix}mlp.experts.0.up_proj.weight" in checkpoint.tensors
    return replace(block, table={**block.table, **(blocks.EXPERTS if single else blocks.FUSED_EXPERTS)})


def _n_layer(checkpoint: Checkpoint, config: Settings) -> int:
    n = setting(config, "num_hidden_layers", int)
    if n > len(checkpoint.tensors):  # said before a table of that length is made
        raise FileError(f"config.json says {n} layers, and {checkpoint.folder} has {len(checkpoint.tensors)} tensors in all")
    return n


def _deepstack(config: Settings) -> dict[str, Any]:
    """How many layers take rows of their own beside the input's."""
    taps = part(config, "vision_config").get("deepstack_visual_indexes", (8, 16, 24))
    if not isinstance(taps, list | tuple):
        raise FileError(f"config.json has {taps!r} for deepstack_visual_indexes, and a list of layers is expected")
    return {"n_deepstack_layers": len(taps)}


_QWEN2 = {**blocks.NORMS, **blocks.ATTENTION, **blocks.QKV_BIAS, **blocks.MLP}
_QWEN3 = {**blocks.NORMS, **blocks.ATTENTION, **blocks.QK_NORM, **blocks.MLP}
_QWEN3_MOE = {**blocks.NORMS, **blocks.ATTENTION, **blocks.QK_NORM}
_QWEN_DEFAULTS = {"rms_norm_eps": 1e-6, "rope_theta": 1e6, "hidden_act": "silu"}
_QWEN3_SIZES = {**SIZES, **HEAD_SIZES}

QWEN2VL = Architecture("qwen2vl", _plain(_QWEN2), _QWEN_DEFAULTS)
OMNI = Architecture("qwen2vl", _plain(_QWEN2), _QWEN_DEFAULTS, left_out=("talker.", "token2wav."))
QWEN3VL = Architecture(
    "qwen3vl", _plain(_QWEN3), {**_QWEN_DEFAULTS, "rope_theta": 5e5, "head_dim": 128}, sizes=_QWEN3_SIZES, more=_deepstack
)
QWEN3VL_MOE = Architecture(
    "qwen3vlmoe",
    _mixture(_QWEN3_MOE),
    {**_QWEN_DEFAULTS, "rope_theta": 5e5},
    sizes={**_QWEN3_SIZES, **EXPERT_SIZES},
    more=_deepstack,
)

ARCHITECTURES: Mapping[str, Architecture] = {
    "Qwen2VLForConditionalGeneration": QWEN2VL,
    "Qwen2_5_VLForConditionalGeneration": QWEN2VL,
    "Qwen2_5OmniModel": OMNI,
    "Qwen2_5OmniForConditionalGeneration": OMNI,
    "Qwen2_5OmniThinkerForConditionalGeneration": OMNI,
    "Qwen3VLForConditionalGeneration": QWEN3VL,
    "Qwen3VLMoeForConditionalGeneration": QWEN3VL_MOE,
}  # names in config.json; behind a space the model_type of text_config, where one name stands for two
