"""Values of config.json that several parts of a text half need."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diptych.convert.checkpoint import Checkpoint, part, setting
from diptych.errors import FileError

Settings = Mapping[str, Any]  # config.json's, those of the text half on top


def n_layer(checkpoint: Checkpoint, config: Settings) -> int:
    """How many decoder layers there are. Raises FileError when the checkpoint has not as many tensors."""
    n = setting(config, "num_hidden_layers", int)
    if n > len(checkpoint.tensors):  # said before a table of that length is made
        raise FileError(f"config.json says {n} layers, and {checkpoint.folder} has {len(checkpoint.tensors)} tensors in all")
    return n


def n_expert(config: Settings) -> int:
    """How many experts a layer chooses from; 0 where it has none."""
    names = ("num_experts", "num_local_experts", "n_routed_experts")
    return next((setting(config, name, int) for name in names if name in config), 0)


def head_dim(config: Settings) -> int:
    """Width of an attention head."""
    n_head = max(1, setting(config, "num_attention_heads", int))
    return max(1, setting(config, "head_dim", int, setting(config, "hidden_size", int) // n_head))


def rotary_width(config: Settings) -> int:
    """How many values of a head turn. Raises FileError when it is no part of them, or no pairs."""
    rope = part(config, "rope_parameters") or part(config, "rope_scaling")
    given = config if rope.get("partial_rotary_factor") is None else rope
    factor, width = setting(given, "partial_rotary_factor", float), head_dim(config)
    if not 0 < factor <= 1 or int(width * factor) % 2:
        raise FileError(f"config.json has the partial_rotary_factor {factor} for heads of {width}, which leaves no pairs to turn")
    return int(width * factor)


def linear_layers(config: Settings) -> list[bool]:
    """For each layer whether its attention is linear."""
    n, every = setting(config, "num_hidden_layers", int), max(1, setting(config, "full_attention_interval", int))
    kinds = config.get("layer_types") or ["linear_attention" if (i + 1) % every else "full_attention" for i in range(n)]
    known = ("full_attention", "linear_attention")
    if not isinstance(kinds, list) or len(kinds) != n or any(kind not in known for kind in kinds):
        raise FileError(
            f"config.json has {kinds!s:.80} for layer_types, and full_attention or linear_attention is expected {n} times"
        )
    return [kind == "linear_attention" for kind in kinds]


def normalised(config: Settings) -> bool:
    """Whether the weights of the experts chosen sum to 1."""
    value = config.get("norm_topk_prob")
    if not isinstance(value, bool):
        raise FileError(f"config.json has {value!r} for norm_topk_prob, and true or false is expected")
    return value
