"""Token candidates as llama.cpp lays them out: what its samplers weigh, reorder and cut."""

from __future__ import annotations

import ctypes
import math

import llama_cpp.llama_cpp as lib
import numpy as np
from numpy.typing import NDArray

from diptych.llama.native import Native

_TOKEN_DATA = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])  # llama_token_data
_STRIDE = 32  # tokens of which only the likeliest is looked at first; the fastest at 150,000 tokens
_WORTH = 8  # a vocabulary with fewer groups for each token asked for is not worth the search


class Candidates:
    """Candidates with `ids` and `logits`, both (n,). `rows` are those given; samplers leave some of them."""

    def __init__(self, ids: NDArray[np.int32], logits: NDArray[np.float32]) -> None:
        self.rows = np.empty(len(ids), _TOKEN_DATA)
        self._ids = ids
        self.refill(logits)

    def refill(self, logits: NDArray[np.float32]) -> None:
        """Begin again with other logits; samplers have reordered and cut what they were given."""
        self.rows["id"], self.rows["logit"] = self._ids, logits
        data = ctypes.cast(self.rows.ctypes.data, lib.llama_token_data_p)
        self._array = lib.llama_token_data_array(data, len(self.rows), -1, False)

    def apply(self, sampler: Native) -> None:
        """Let a sampler of llama.cpp's work on them."""
        lib.llama_sampler_apply(sampler.pointer, ctypes.byref(self._array))

    @property
    def chosen(self) -> int:
        """The token chosen."""
        return int(self._array.data[self._array.selected].id)

    def probabilities(self, n: int) -> tuple[float, list[tuple[int, float]]]:
        """The natural-log probability of the chosen token, and the `n` likeliest tokens left with theirs."""
        first = (ctypes.cast(self._array.data, ctypes.c_void_p).value or 0) - self.rows.ctypes.data
        left = self.rows[first // _TOKEN_DATA.itemsize :][: self._array.size]  # XTC moves the beginning
        best = left[np.argsort(-left["p"], kind="stable")[:n]]
        return _log(left["p"][self._array.selected]), [(int(r["id"]), _log(r["p"])) for r in best if r["p"] > 0]


def _log(p: float) -> float:
    return math.log(p) if p > 0 else -math.inf


def likeliest(logits: NDArray[np.float32], n: int) -> NDArray[np.int32] | None:
    """Ids, ascending, that hold the `n` tokens with the largest of (n_vocab,) logits; None where the search does not pay.

    The `n`-th largest of the maxima of groups is no larger than the `n`-th largest of all.
    """
    n_groups = len(logits) // _STRIDE
    if n_groups < _WORTH * n:
        return None
    maxima = logits[: n_groups * _STRIDE].reshape(_STRIDE, n_groups).max(axis=0)
    limit = np.partition(maxima, n_groups - n)[n_groups - n]
    return np.flatnonzero(logits >= limit).astype(np.int32)


def log_probabilities(logits: NDArray[np.float32], token: int, n: int) -> tuple[float, list[tuple[int, float]]]:
    """The natural-log probability of a token in the softmax of (n_vocab,) logits, and the `n` likeliest with theirs."""
    top = float(logits.max())
    total = top + math.log(np.exp(logits - top).sum(dtype=np.float64))
    ids = likeliest(logits, n) if n else np.empty(0, np.int32)
    if ids is None:
        ids = np.arange(len(logits), dtype=np.int32)
    best = ids[np.argsort(-logits[ids], kind="stable")[:n]]
    return float(logits[token]) - total, [(int(i), float(logits[i]) - total) for i in best]
