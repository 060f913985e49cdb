"""Tensors that checkpoints lay out in another way than llama.cpp: experts, rotary pairs, heads of linear attention, norms."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from diptych.convert import layout
from diptych.convert.checkpoint import setting
from diptych.convert.layout import expect_shape
from diptych.convert.settings import Settings, head_dim, n_expert, rotary_width
from diptych.errors import FileError
from diptych.weights import Tensor


def gate_and_up(tensor: Tensor, config: Settings) -> list[Tensor]:
    """(expert, gate then up, n_embd) → two of (expert, n_ff, n_embd)."""
    n_ff = setting(config, "moe_intermediate_size", int)
    experts = _experts(tensor, config, 2 * n_ff, setting(config, "hidden_size", int))
    return [layout.stacked([layout.rows(e, start, start + n_ff) for e in experts]) for start in (0, n_ff)]


def down(tensor: Tensor, config: Settings) -> Tensor:
    """(expert, n_embd, n_ff), each expert on its own."""
    width, n_ff = setting(config, "hidden_size", int), setting(config, "moe_intermediate_size", int)
    return layout.stacked(_experts(tensor, config, width, n_ff))


def _experts(tensor: Tensor, config: Settings, height: int, width: int) -> list[Tensor]:
    """(expert, height, width) → its experts. Some are saved as (expert, width, height): as in transformers, the shape tells."""
    n, *shape = expect_shape(tensor, n_expert(config), None, None)
    experts = layout.unstacked(tensor)
    if shape != [height, width]:
        expect_shape(tensor, n, width, height)
        experts = [layout.transposed(e) for e in experts]
    return experts


def neox(tensor: Tensor, config: Settings) -> Tensor:
    """Heads whose rotary pairs stand side by side → the first of all pairs, then the second, as llama.cpp's M-RoPE has them."""
    width, n_rot = head_dim(config), rotary_width(config)
    if not tensor.shape or 0 in tensor.shape or tensor.shape[0] % width:
        raise FileError(
            f"tensor {tensor.name} has the shape {tensor.shape}, and heads of {width} are expected; is config.json its own?"
        )
    order = np.concatenate([np.arange(0, n_rot, 2), np.arange(1, n_rot, 2), np.arange(n_rot, width)])
    heads = np.arange(0, tensor.shape[0], width)
    return layout.taken(tensor, (heads[:, None] + order).ravel())


def qkv(tensor: Tensor, config: Settings) -> Tensor:
    """Queries, keys and values of linear attention in one."""
    _, keys, values = _widths(config)
    expect_shape(tensor, 2 * keys + values, None)
    return layout.taken(tensor, _channels(config))


def convolution(tensor: Tensor, config: Settings) -> Tensor:
    """(channel, 1, kernel) → (channel, kernel), the channels as those of `qkv`."""
    _, keys, values = _widths(config)
    n, _, width = expect_shape(tensor, 2 * keys + values, 1, None)
    return layout.taken(layout.reshaped(tensor, (n, width)), _channels(config))


def gate(tensor: Tensor, config: Settings) -> Tensor:
    """What gates the values: one row each."""
    head, _, values = _widths(config)
    expect_shape(tensor, values, None)
    return layout.taken(tensor, _value_heads(config, head))


def out(tensor: Tensor, config: Settings) -> Tensor:
    """What takes the values: one column each."""
    head, _, values = _widths(config)
    expect_shape(tensor, None, values)
    return layout.taken(tensor, _value_heads(config, head), axis=1)


def per_head(tensor: Tensor, config: Settings) -> Tensor:
    """One row, or one number, for each value head."""
    expect_shape(tensor, setting(config, "linear_num_value_heads", int), *[None] * (len(tensor.shape) - 1))
    return layout.taken(tensor, _value_heads(config, 1))


def decay(tensor: Tensor, config: Settings) -> Tensor:
    """The logarithm of how fast each value head forgets → what llama.cpp multiplies the time step with."""
    return layout.computed(per_head(tensor, config), lambda a: -np.exp(a, dtype=np.float64).astype(np.float32))


def one_more(tensor: Tensor, config: Settings) -> Tensor:
    """A norm whose weight is kept as its distance from 1."""
    return layout.computed(tensor, lambda a: a + np.float32(1))


def _channels(config: Settings) -> NDArray[np.intp]:
    """The order of the joined queries, keys and values: only the values move."""
    head, keys, _ = _widths(config)
    return np.concatenate([np.arange(2 * keys), 2 * keys + _value_heads(config, head)])


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


def _widths(config: Settings) -> tuple[int, int, int]:
    """Width of a value head, of all keys, of all values."""
    key, value = (setting(config, f"linear_{x}_head_dim", int) for x in ("key", "value"))
    n_key, n_value = (setting(config, f"linear_num_{x}_heads", int) for x in ("key", "value"))
    return value, key * n_key, value * n_value
