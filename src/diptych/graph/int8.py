"""Matrices as int8 with a scale for each row, symmetric about zero."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_MOST = 127  # -128 is left out, so that a number and its negative are equally far from zero


def row_scales(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """(out,): what the largest number of each row of (out, in) values stands for, over 127; 1 for a row of zeros."""
    largest = np.maximum(values.max(axis=1, initial=0), -values.min(axis=1, initial=0))
    return np.where(largest > 0, largest / np.float32(_MOST), np.float32(1)).astype(np.float32)


def int8(values: NDArray[np.float32]) -> NDArray[np.int8]:
    """(out, in): the whole numbers nearest to the values over their row's scale."""
    out: NDArray[np.int8] = np.rint(values / row_scales(values)[:, None]).astype(np.int8)
    return out
