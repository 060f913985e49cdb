"""The tensors of decoder blocks: names in checkpoints → names in GGUF, and what is made of those that are laid out otherwise."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diptych.convert import layout
from diptych.convert.checkpoint import part, setting
from diptych.convert.layout import expect_shape
from diptych.errors import FileError
from diptych.weights import Tensor

Settings = Mapping[str, Any]  # config.json's, those of the text half on top


@dataclass(frozen=True)
class Made:
    """GGUF names, and how their tensors are made of the checkpoint's."""

    names: tuple[str, ...]
    make: Callable[[Tensor, Settings], Sequence[Tensor]]


Table = Mapping[str, str | Made]
"""Checkpoint name → GGUF name. With {e} in it, the tensors of all experts are stacked. One with a ? may be missing."""


@dataclass(frozen=True)
class Block:
    """Tensors of one block: the table's names stand behind `prefix` in the checkpoint, behind `blk.{number}.` in GGUF."""

    prefix: str
    number: int
    table: Table


def head_dim(config: Settings) -> int:
    """Width of an attention head."""
    n_head = max(1, setting(config, "num_attention_heads", int))
    return max(1, setting(config, "head_dim", int, setting(config, "hidden_size", int) // n_head))


def n_expert(config: Settings) -> int:
    """How many experts a layer chooses from; 0 where it has none."""
    names = ("num_experts", "num_local_experts", "n_routed_experts")
    return next((setting(config, name, int) for name in names if name in config), 0)


def _made(name: str, make: Callable[[Tensor, Settings], Tensor]) -> Made:
    return Made((name,), lambda tensor, config: [make(tensor, config)])


# Experts


def _experts(tensor: Tensor, config: Settings, height: int, width: int) -> list[Tensor]:
    """(expert, height, width) → its experts. Some are saved as (expert, width, height): as in transformers, the shape tells."""
    n, *shape = expect_shape(tensor, n_expert(config), None, None)
    experts = layout.unstacked(tensor)
    if shape != [height, width]:
        expect_shape(tensor, n, width, height)
        experts = [layout.transposed(e) for e in experts]
    return experts


def _gate_and_up(tensor: Tensor, config: Settings) -> list[Tensor]:
    """(expert, gate then up, n_embd) → two of (expert, n_ff, n_embd)."""
    n_ff = setting(config, "moe_intermediate_size", int)
    experts = _experts(tensor, config, 2 * n_ff, setting(config, "hidden_size", int))
    return [layout.stacked([layout.rows(e, start, start + n_ff) for e in experts]) for start in (0, n_ff)]


def _down(tensor: Tensor, config: Settings) -> Tensor:
    """(expert, n_embd, n_ff), each expert on its own."""
    width, n_ff = setting(config, "hidden_size", int), setting(config, "moe_intermediate_size", int)
    return layout.stacked(_experts(tensor, config, width, n_ff))


# Rotary pairs that stand side by side


def _neox(tensor: Tensor, config: Settings) -> Tensor:
    """Heads whose rotary pairs stand side by side → the first of all pairs, then the second, as llama.cpp's M-RoPE has them."""
    width = head_dim(config)
    n_rot = rotary_width(config)
    if not tensor.shape or not tensor.shape[0] or tensor.shape[0] % width or n_rot % 2:
        raise FileError(
            f"tensor {tensor.name} has the shape {tensor.shape}, which is no whole number of heads of {width} values with "
            f"{n_rot} rotary ones; is config.json of the same model?"
        )
    order = np.concatenate([np.arange(0, n_rot, 2), np.arange(1, n_rot, 2), np.arange(n_rot, width)])
    heads = np.arange(0, tensor.shape[0], width)
    return layout.taken(tensor, (heads[:, None] + order).ravel())


def rotary_width(config: Settings) -> int:
    """How many values of a head turn."""
    rope = part(config, "rope_parameters") or part(config, "rope_scaling")
    given = config if rope.get("partial_rotary_factor") is None else rope
    return int(head_dim(config) * setting(given, "partial_rotary_factor", float))


# Linear attention (gated delta net)


def _value_heads(config: Settings, width: int) -> NDArray[np.intp]:
    """The order of value heads of `width` entries that llama.cpp wants: the first of every key head, then the second, ….

    Checkpoints have all value heads of a key head together; ggml repeats key heads as a whole.
    """
    n_key, n_value = (setting(config, f"linear_num_{x}_heads", int) for x in ("key", "value"))
    if n_key < 1 or n_value < n_key or n_value % n_key:
        raise FileError(
            f"config.json has {n_value} value heads for {n_key} key heads of linear attention, and a multiple is expected"
        )
    return np.arange(n_value * width).reshape(n_key, -1, width).swapaxes(0, 1).ravel()


def _linear_widths(config: Settings) -> tuple[int, int, int]:
    """Width of a value head, of all keys, of all values."""
    key, value = (setting(config, f"linear_{x}_head_dim", int) for x in ("key", "value"))
    n_key, n_value = (setting(config, f"linear_num_{x}_heads", int) for x in ("key", "value"))
    return value, key * n_key, value * n_value


def _channels(config: Settings) -> NDArray[np.intp]:
    """The order of the joined queries, keys and values."""
    head, keys, _ = _linear_widths(config)
    return np.concatenate([np.arange(2 * keys), 2 * keys + _value_heads(config, head)])


def _qkv(tensor: Tensor, config: Settings) -> Tensor:
    _, keys, values = _linear_widths(config)
    expect_shape(tensor, 2 * keys + values, None)
    return layout.taken(tensor, _channels(config))


def _convolution(tensor: Tensor, config: Settings) -> Tensor:
    _, keys, values = _linear_widths(config)
    n, _, width = expect_shape(tensor, 2 * keys + values, 1, None)
    return layout.taken(layout.reshaped(tensor, (n, width)), _channels(config))


def _gate(tensor: Tensor, config: Settings) -> Tensor:
    head, _, values = _linear_widths(config)
    expect_shape(tensor, values, None)
    return layout.taken(tensor, _value_heads(config, head))


def _out(tensor: Tensor, config: Settings) -> Tensor:
    head, _, values = _linear_widths(config)
    expect_shape(tensor, None, values)
    return layout.taken(tensor, _value_heads(config, head), axis=1)


def _per_head(tensor: Tensor, config: Settings) -> Tensor:
    expect_shape(tensor, setting(config, "linear_num_value_heads", int), *[None] * (len(tensor.shape) - 1))
    return layout.taken(tensor, _value_heads(config, 1))


def _decay(tensor: Tensor, config: Settings) -> Tensor:
    return layout.computed(_per_head(tensor, config), lambda a: -np.exp(a, dtype=np.float64).astype(np.float32))


def _one_more(tensor: Tensor, config: Settings) -> Tensor:
    """A norm whose weight is kept as its distance from 1."""
    return layout.computed(tensor, lambda a: a + np.float32(1))


# Tables


def centred(table: Table) -> Table:
    """A table whose norms are kept as their distance from 1."""
    return {n: _made(t, _one_more) if isinstance(t, str) and n.endswith("norm.weight") else t for n, t in table.items()}


TOP: Table = {
    "embed_tokens.weight": "token_embd.weight",
    "norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
NORMS: Table = {"input_layernorm.weight": "attn_norm.weight", "post_attention_layernorm.weight": "ffn_norm.weight"}
LATE_NORMS: Table = {**NORMS, "post_attention_layernorm.weight": "post_attention_norm.weight"}
SANDWICH: Table = {
    **NORMS,
    "post_self_attn_layernorm.weight": "post_attention_norm.weight",
    "post_mlp_layernorm.weight": "post_ffw_norm.weight",
}
ATTENTION: Table = {
    **{f"self_attn.{x}_proj.weight": f"attn_{x}.weight" for x in "qkv"},
    "self_attn.o_proj.weight": "attn_output.weight",
}
QKV_BIAS: Table = {f"self_attn.{x}_proj.bias": f"attn_{x}.bias" for x in "qkv"}
SIDE_BY_SIDE: Table = {f"self_attn.{x}_proj.weight": _made(f"attn_{x}.weight", _neox) for x in "qk"}
SIDE_BY_SIDE_BIAS: Table = {f"self_attn.{x}_proj.bias": _made(f"attn_{x}.bias", _neox) for x in "qk"}
QK_NORM: Table = {f"self_attn.{x}_norm.weight": f"attn_{x}_norm.weight" for x in "qk"}
MLP: Table = {f"mlp.{x}_proj.weight": f"ffn_{x}.weight" for x in ("gate", "up", "down")}
FUSED_MLP: Table = {"mlp.gate_up_proj.weight": "ffn_up.weight", "mlp.down_proj.weight": "ffn_down.weight"}
ROUTER: Table = {"mlp.gate.weight": "ffn_gate_inp.weight"}
EXPERTS: Table = {f"mlp.experts.{{e}}.{x}_proj.weight": f"ffn_{x}_exps.weight" for x in ("gate", "up", "down")}
FUSED_EXPERTS: Table = {
    "mlp.experts.gate_up_proj": Made(("ffn_gate_exps.weight", "ffn_up_exps.weight"), _gate_and_up),
    "mlp.experts.down_proj": _made("ffn_down_exps.weight", _down),
}
SHARED_EXPERTS: Table = {f"mlp.shared_experts.{x}_proj.weight": f"ffn_{x}_shexp.weight" for x in ("gate", "up", "down")}
GATED_SHARED_EXPERT: Table = {
    **{f"mlp.shared_expert.{x}_proj.weight": f"ffn_{x}_shexp.weight" for x in ("gate", "up", "down")},
    "mlp.shared_expert_gate.weight": "ffn_gate_inp_shexp.weight",
}
LINEAR_ATTENTION: Table = {
    "linear_attn.in_proj_qkv.weight": _made("attn_qkv.weight", _qkv),
    "linear_attn.in_proj_z.weight": _made("attn_gate.weight", _gate),
    "linear_attn.in_proj_a.weight": _made("ssm_alpha.weight", _per_head),
    "linear_attn.in_proj_b.weight": _made("ssm_beta.weight", _per_head),
    "linear_attn.conv1d.weight": _made("ssm_conv1d.weight", _convolution),
    "linear_attn.A_log": _made("ssm_a", _decay),
    "linear_attn.dt_bias": _made("ssm_dt.bias", _per_head),
    "linear_attn.norm.weight": "ssm_norm.weight",
    "linear_attn.out_proj.weight": _made("ssm_out.weight", _out),
}

# Multi-token prediction: a layer behind the last, which llama.cpp keeps as one more block
MTP: Table = {
    "eh_proj.weight": "nextn.eh_proj.weight",
    "enorm.weight": "nextn.enorm.weight",
    "hnorm.weight": "nextn.hnorm.weight",
    "shared_head.norm.weight": "nextn.shared_head_norm.weight",
    "shared_head.head.weight?": "nextn.shared_head_head.weight",
    "embed_tokens.weight?": "nextn.embed_tokens.weight",
}
QWEN_MTP: Table = {
    "fc.weight": "nextn.eh_proj.weight",
    "pre_fc_norm_embedding.weight": _made("nextn.enorm.weight", _one_more),
    "pre_fc_norm_hidden.weight": _made("nextn.hnorm.weight", _one_more),
    "norm.weight": _made("nextn.shared_head_norm.weight", _one_more),
}
