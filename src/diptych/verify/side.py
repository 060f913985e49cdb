"""What one side makes of a picture and a question, in the terms that sides are compared in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diptych.positions import Positions

MEDIA = -1  # stands for a media row among tokens


@dataclass(frozen=True, eq=False)
class Answer:
    """Greedy tokens, and for each by how much it led the second, as a share of the largest logit of its step."""

    tokens: tuple[int, ...]
    leads: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Side:
    """A prompt with one picture. What a side cannot tell is None."""

    rows: NDArray[np.float32]  # (n_media, n_embd) of the encoder
    tokens: tuple[int, ...]  # of the whole prompt, MEDIA for each media row
    positions: Positions  # (n_pos, n) of the whole prompt
    pixels: NDArray[np.float32] | None = field(default=None)  # what the encoder was fed, flat
    answer: Answer | None = None


def lead(logits: NDArray[Any]) -> float:
    """By how much the largest of (n_vocab,) logits leads the second, as a share of the largest absolute value."""
    second, first = np.partition(logits, -2)[-2:]
    return float((first - second) / (np.abs(logits).max() or 1.0))


def parting(ours: Sequence[int], theirs: Sequence[int]) -> int:
    """How many tokens are equal before the first that differs."""
    n = min(len(ours), len(theirs))
    return next((i for i in range(n) if ours[i] != theirs[i]), n)
