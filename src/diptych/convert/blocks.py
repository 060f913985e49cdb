"""The tensors of decoder blocks: names in checkpoints → names in GGUF."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from diptych.convert import reorder
from diptych.convert.settings import Settings
from diptych.weights import Tensor


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


def _made(name: str, make: Callable[[Tensor, Settings], Tensor]) -> Made:
    return Made((name,), lambda tensor, config: [make(tensor, config)])


def centred(table: Table) -> Table:
    """A table whose norms are kept as their distance from 1."""
    return {n: _made(t, reorder.one_more) if isinstance(t, str) and n.endswith("norm.weight") else t for n, t in table.items()}


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
SIDE_BY_SIDE: Table = {f"self_attn.{x}_proj.weight": _made(f"attn_{x}.weight", reorder.neox) for x in "qk"}
SIDE_BY_SIDE_BIAS: Table = {f"self_attn.{x}_proj.bias": _made(f"attn_{x}.bias", reorder.neox) for x in "qk"}
QK_NORM: Table = {f"self_attn.{x}_norm.weight": f"attn_{x}_norm.weight" for x in "qk"}
MLP: Table = {f"mlp.{x}_proj.weight": f"ffn_{x}.weight" for x in ("gate", "up", "down")}
FUSED_MLP: Table = {"mlp.gate_up_proj.weight": "ffn_up.weight", "mlp.down_proj.weight": "ffn_down.weight"}
ROUTER: Table = {"mlp.gate.weight": "ffn_gate_inp.weight"}
ROUTER_BIAS: Table = {"mlp.gate.e_score_correction_bias": "exp_probs_b.bias"}
EXPERTS: Table = {f"mlp.experts.{{e}}.{x}_proj.weight": f"ffn_{x}_exps.weight" for x in ("gate", "up", "down")}
FUSED_EXPERTS: Table = {
    "mlp.experts.gate_up_proj": Made(("ffn_gate_exps.weight", "ffn_up_exps.weight"), reorder.gate_and_up),
    "mlp.experts.down_proj": _made("ffn_down_exps.weight", reorder.down),
}
SHARED_EXPERTS: Table = {f"mlp.shared_experts.{x}_proj.weight": f"ffn_{x}_shexp.weight" for x in ("gate", "up", "down")}
GATED_SHARED_EXPERT: Table = {
    **{f"mlp.shared_expert.{x}_proj.weight": f"ffn_{x}_shexp.weight" for x in ("gate", "up", "down")},
    "mlp.shared_expert_gate.weight": "ffn_gate_inp_shexp.weight",
}
LINEAR_ATTENTION: Table = {
    "linear_attn.in_proj_qkv.weight": _made("attn_qkv.weight", reorder.qkv),
    "linear_attn.in_proj_z.weight": _made("attn_gate.weight", reorder.gate),
    "linear_attn.in_proj_a.weight": _made("ssm_alpha.weight", reorder.per_head),
    "linear_attn.in_proj_b.weight": _made("ssm_beta.weight", reorder.per_head),
    "linear_attn.conv1d.weight": _made("ssm_conv1d.weight", reorder.convolution),
    "linear_attn.A_log": _made("ssm_a", reorder.decay),
    "linear_attn.dt_bias": _made("ssm_dt.bias", reorder.per_head),
    "linear_attn.norm.weight": "ssm_norm.weight",
    "linear_attn.out_proj.weight": _made("ssm_out.weight", reorder.out),
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
    "pre_fc_norm_embedding.weight": _made("nextn.enorm.weight", reorder.one_more),
    "pre_fc_norm_hidden.weight": _made("nextn.hnorm.weight", reorder.one_more),
    "norm.weight": _made("nextn.shared_head_norm.weight", reorder.one_more),
}
