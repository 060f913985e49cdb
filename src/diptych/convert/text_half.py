"""The text half of a checkpoint as GGUF: one table entry an architecture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gguf import LlamaFileType

from diptych.convert.checkpoint import Checkpoint, setting
from diptych.convert.general import general
from diptych.convert.rope import rope
from diptych.convert.tensor import check_used, expanded, media_tensors, outtype_of, renamed, retyped, stored_type
from diptych.convert.vocab import vocabulary
from diptych.errors import FileError, UnknownModel
from diptych.weights import Tensor, Weights

_HEAD = "lm_head.weight"
_DENSE = {
    "embed_tokens.weight": "token_embd.weight",
    "layers.{i}.input_layernorm.weight": "blk.{i}.attn_norm.weight",
    "layers.{i}.self_attn.q_proj.weight": "blk.{i}.attn_q.weight",
    "layers.{i}.self_attn.k_proj.weight": "blk.{i}.attn_k.weight",
    "layers.{i}.self_attn.v_proj.weight": "blk.{i}.attn_v.weight",
    "layers.{i}.self_attn.o_proj.weight": "blk.{i}.attn_output.weight",
    "layers.{i}.post_attention_layernorm.weight": "blk.{i}.ffn_norm.weight",
    "layers.{i}.mlp.gate_proj.weight": "blk.{i}.ffn_gate.weight",
    "layers.{i}.mlp.up_proj.weight": "blk.{i}.ffn_up.weight",
    "layers.{i}.mlp.down_proj.weight": "blk.{i}.ffn_down.weight",
    "norm.weight": "output_norm.weight",
    _HEAD: "output.weight",
}
_QKV_BIAS = {f"layers.{{i}}.self_attn.{x}_proj.bias": f"blk.{{i}}.attn_{x}.bias" for x in "qkv"}


@dataclass(frozen=True)
class Architecture:
    """What is special about one. `rope_theta` is the base where config.json has none."""

    name: str  # GGUF's
    pre: str  # how text is split before BPE, by llama.cpp's name
    tensors: Mapping[str, str]
    rope_theta: float
    mrope: bool = False  # positions of several planes, each with its section of the frequencies


ARCHITECTURES = {
    "Qwen2VLForConditionalGeneration": Architecture("qwen2vl", "qwen2", _DENSE | _QKV_BIAS, 1e6, mrope=True),
}


def text(checkpoint: Checkpoint, outtype: str = "f16") -> Weights:
    """The text half, its tensors converted when they are read.

    Raises UnknownModel listing the known architectures, and FileError when a tensor is missing, left over, or not as
    config.json says.
    """
    if checkpoint.architecture not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise UnknownModel(f"config.json names the architecture {checkpoint.architecture!r}, and these can be converted: {known}")
    architecture, (type, file_type) = ARCHITECTURES[checkpoint.architecture], outtype_of(outtype)
    names = _names(checkpoint, architecture)
    check_used(checkpoint, sorted(checkpoint.tensors.keys() - media_tensors(checkpoint)), names)
    tensors = {n: retyped(t, stored_type(n, t.shape, type)) for n, t in renamed(checkpoint, names).items()}
    return Weights(_metadata(checkpoint, architecture, tensors, file_type), tensors)


def _names(checkpoint: Checkpoint, architecture: Architecture) -> dict[str, tuple[str, ...]]:
    names = expanded(checkpoint, architecture.tensors, setting(checkpoint.text_config, "num_hidden_layers", int))
    if _HEAD not in checkpoint.tensors and checkpoint.text_config.get("tie_word_embeddings", True):
        del names[_HEAD]  # the output is the embedding table
    return names


def _metadata(
    checkpoint: Checkpoint, architecture: Architecture, tensors: Mapping[str, Tensor], file_type: LlamaFileType
) -> dict[str, Any]:
    name, config = architecture.name, checkpoint.text_config
    if (activation := config.get("hidden_act", "silu")) != "silu":
        raise FileError(f"config.json has the activation {activation!r}, and llama.cpp's {name} knows silu alone")
    rotary = rope(name, config, architecture.rope_theta)
    if architecture.mrope and f"{name}.rope.dimension_sections" not in rotary:
        raise FileError(f"config.json has no mrope_section, and {name} needs one; use the config.json the model came with")
    return {
        **general(checkpoint, name, "model", tensors, file_type),
        f"{name}.block_count": setting(config, "num_hidden_layers", int),
        f"{name}.context_length": setting(config, "max_position_embeddings", int),
        f"{name}.embedding_length": setting(config, "hidden_size", int),
        f"{name}.feed_forward_length": setting(config, "intermediate_size", int),
        f"{name}.attention.head_count": (n_head := setting(config, "num_attention_heads", int)),
        f"{name}.attention.head_count_kv": setting(config, "num_key_value_heads", int, n_head),
        f"{name}.attention.layer_norm_rms_epsilon": setting(config, "rms_norm_eps", float, 1e-6),
        **rotary,
        **vocabulary(checkpoint, tensors["token_embd.weight"].shape[0], architecture.pre),
    }
