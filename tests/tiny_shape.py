"""What the shapes of tiny random models have in common, and their random weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """How the weights of a tiny model are drawn and stored."""

    seed: int = 0
    dtype: str = "float32"


@dataclass(frozen=True, kw_only=True)
class Text(Drawn):
    """The sizes of a tiny text half."""

    hidden: int = 128
    n_layer: int = 2
    n_head: int = 4
    n_head_kv: int = 2
    n_ff: int = 192
    eps: float = 1e-6
    rope_theta: float = 10000.0


@dataclass(frozen=True, kw_only=True)
class MropeText(Text):
    """The sizes of a text half with positions of several planes; `sections` are their shares of the rotary frequencies."""

    sections: tuple[int, int, int] = (6, 5, 5)
    tied: bool = False


@dataclass(frozen=True, kw_only=True)
class Tower(Drawn):
    """The sizes of a tiny tower, and the limits of its pictures."""

    v_depth: int = 2
    v_embd: int = 64
    v_head: int = 4
    min_pixels: int = 56 * 56
    max_pixels: int = 28 * 28 * 100


def draw(model: Any, scale: float) -> None:
    """Spread the initial matrices of a model in transformers, and move its norms and biases off their neutral values."""
    import torch

    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim > 1:
                p.mul_(scale)
            elif "norm" in name or "ln_q" in name:
                p.add_(torch.randn_like(p) * 0.1)
            else:
                p.copy_(torch.randn_like(p) * 0.1)
