"""Which tensors each layer of an architecture has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from diptych.convert import blocks
from diptych.convert.blocks import Block, Table
from diptych.convert.checkpoint import Checkpoint, setting
from diptych.convert.settings import Settings, linear_layers, n_expert, n_layer

Layers = Callable[[Checkpoint, Settings], Sequence[Block]]

QWEN2 = {**blocks.NORMS, **blocks.ATTENTION, **blocks.QKV_BIAS, **blocks.MLP}
QWEN3_MOE = {**blocks.NORMS, **blocks.ATTENTION, **blocks.QK_NORM}
QWEN3 = {**QWEN3_MOE, **blocks.MLP}
ERNIE = {**blocks.NORMS, **blocks.ATTENTION, **blocks.MLP}
GLM_OCR = {**blocks.SANDWICH, **blocks.ATTENTION, **blocks.SIDE_BY_SIDE, **blocks.FUSED_MLP}
GLM4 = {**GLM_OCR, **blocks.QKV_BIAS, **blocks.SIDE_BY_SIDE_BIAS}
_FULL_LAYER = blocks.centred({**blocks.LATE_NORMS, **blocks.ATTENTION, **blocks.QK_NORM})
_LINEAR_LAYER = {**blocks.centred(blocks.LATE_NORMS), **blocks.LINEAR_ATTENTION}
_GLM4_MOE = {
    **blocks.LATE_NORMS,
    **blocks.ATTENTION,
    **{f"{name}?": target for name, target in {**blocks.QKV_BIAS, **blocks.QK_NORM}.items()},
}


def same(table: Table) -> Layers:
    """The same for every layer, and for those of multi-token prediction (MTP) behind them."""

    def layers(checkpoint: Checkpoint, config: Settings) -> list[Block]:
        n = n_layer(checkpoint, config)
        mtp = range(n, n + _n_mtp(checkpoint, n))
        return [
            *(Block(f"layers.{i}.", i, table) for i in range(n)),
            *(Block(f"layers.{i}.", i, {**table, **blocks.MTP}) for i in mtp),
        ]

    return layers


def mixture(table: Table) -> Layers:
    """The same for every layer, and a mixture of experts."""

    def layers(checkpoint: Checkpoint, config: Settings) -> list[Block]:
        return [_with_experts(checkpoint, block) for block in same(table)(checkpoint, config)]

    return layers


def glm_mixture(checkpoint: Checkpoint, config: Settings) -> list[Block]:
    """The first layers have a single MLP, the others experts and shared ones."""
    n_dense = setting(config, "first_k_dense_replace", int)
    dense, sparse = {**_GLM4_MOE, **blocks.MLP}, {**_GLM4_MOE, **blocks.SHARED_EXPERTS, **blocks.ROUTER_BIAS}
    return [
        replace(b, table={**b.table, **dense})
        if b.number < n_dense
        else _with_experts(checkpoint, replace(b, table={**b.table, **sparse}))
        for b in same({})(checkpoint, config)
    ]


def hybrid(mlp: Table) -> Layers:
    """Linear attention, and full attention in every fourth layer or where `layer_types` says; experts where there are any."""

    def layers(checkpoint: Checkpoint, config: Settings) -> list[Block]:
        n = n_layer(checkpoint, config)
        kinds = [_LINEAR_LAYER if linear else _FULL_LAYER for linear in linear_layers(config)]
        mtp = [i for i in range(n) if f"mtp.layers.{i}.input_layernorm.weight" in checkpoint.tensors]
        found = [Block(f"layers.{i}.", i, {**kind, **mlp}) for i, kind in enumerate(kinds)]
        found += [Block(f"mtp.layers.{i}.", n + i, {**_FULL_LAYER, **mlp}) for i in mtp]
        found = [_with_experts(checkpoint, block) for block in found] if n_expert(config) else found
        return [*found, Block("mtp.", n, blocks.QWEN_MTP)] if mtp else found

    return layers


def _with_experts(checkpoint: Checkpoint, block: Block) -> Block:
    """A block with its experts, which are saved one by one or all in one."""
    single = f"{block.prefix}mlp.experts.0.up_proj.weight" in checkpoint.tensors
    return replace(block, table={**block.table, **blocks.ROUTER, **(blocks.EXPERTS if single else blocks.FUSED_EXPERTS)})


def _n_mtp(checkpoint: Checkpoint, first: int) -> int:
    """How many layers stand behind the last of config.json. transformers leaves them out when it saves a model."""
    n = 0
    while f"layers.{first + n}.eh_proj.weight" in checkpoint.tensors:
        n += 1
    return n
