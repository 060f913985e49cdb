"""From the hidden states of a prompt to its embedding: pooled, and normalised."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from diptych.errors import EngineError, InputError
from diptych.options import Pooling

MAX_NORM = 1000  # a p-norm of that is the largest number
_INT16 = 32760.0  # what llama.cpp scales the largest number to
Rows = NDArray[np.float32]


class Pool:
    """Takes the hidden states of a prompt in pieces, as they are decoded, and keeps what its embedding is made of."""

    def __init__(self, pooling: Pooling) -> None:
        self._pooling = pooling
        self._kept: list[Rows] = []
        self._sum: NDArray[np.float64] | float = 0.0
        self._n = 0

    def add(self, rows: Rows) -> None:
        """Take the next (n, n_embd) rows."""
        match self._pooling:
            case "none":
                self._kept.append(rows)
            case "mean":
                self._sum = self._sum + rows.sum(axis=0, dtype=np.float64)
                self._n += len(rows)
            case "cls":
                self._kept = self._kept or [rows[:1]]
            case "last":
                self._kept = [rows[-1:]]

    def rows(self) -> Rows:
        """The embedding: (1, n_embd), or all rows where they are not pooled. Raises EngineError when it is no number."""
        mean = self._pooling == "mean"
        out = (np.asarray(self._sum) / self._n).astype(np.float32)[None] if mean else np.concatenate(self._kept)
        if not np.isfinite(out).all():
            raise EngineError("the text half gives embeddings that are not finite numbers; use a cache type of more bits")
        return out


def normalized(rows: Rows, norm: int) -> Rows:
    """Each row over its norm, as llama-server has them: -1 leaves it, 0 makes its largest number that of an int16, 1 is
    the taxicab norm, 2 the Euclidean, and any other number p the p-norm. Raises InputError for any other."""
    if not -1 <= norm <= MAX_NORM:
        raise InputError(f"embd_normalize is {str(norm)[:20]}; it is -1 for none, 0 for int16, or the p of a norm to {MAX_NORM}")
    if norm == -1:
        return rows
    exact = rows.astype(np.float64)
    largest = abs(exact).max(axis=1, keepdims=True)
    if norm == 0:
        size = largest / _INT16
    else:  # over the largest first, so that no power overflows
        shares = np.divide(abs(exact), largest, out=np.zeros_like(exact), where=largest > 0)
        size = largest * (shares**norm).sum(axis=1, keepdims=True) ** (1 / norm)
    out: Rows = np.divide(exact, size, out=np.zeros_like(exact), where=size > 0).astype(np.float32)
    return out
