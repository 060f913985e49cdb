"""Matrices as int8 with a scale for each row, symmetric about zero; and as the kernels want to read them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

PANEL = 64  # rows (outputs of a layer) that stand together, as `kernels/avx512_int8.h` has it
GROUP = 256  # inputs of a layer that share a scale of the activations; the same
_FOUR = 4  # numbers that one product takes of a row
_SHIFT = 128  # what activations are shifted by, to be unsigned
_MOST = 127  # -128 is left out, so that a number and its negative are equally far from zero


def quantised(values: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """A matrix (out, in) as int8, and what one of each row's numbers stands for (out,): the largest of the row over 127, and
    1 for a row of zeros."""
    largest = np.maximum(values.max(axis=1, initial=0), -values.min(axis=1, initial=0))
    scales = np.where(largest > 0, largest / np.float32(_MOST), np.float32(1)).astype(np.float32)
    return np.rint(values / scales[:, None]).astype(np.int8), scales


def packed_shape(shape: tuple[int, int]) -> tuple[int, int, int, int]:
    """(n_panel, n_four, PANEL, 4) of a matrix (out, in)."""
    n_out, n_in = shape
    return -(-n_out // PANEL), -(-n_in // _FOUR), PANEL, _FOUR


def packed(values: NDArray[np.int8]) -> NDArray[np.int8]:
    """A matrix (out, in), filled up with zeros, so that four numbers of each of a panel's rows stand side by side."""
    n_panel, n_four, *_ = packed_shape((values.shape[0], values.shape[1]))
    rows = _filled(values, n_panel * PANEL, n_four * _FOUR)
    return np.ascontiguousarray(rows.reshape(n_panel, PANEL, n_four, _FOUR).transpose(0, 2, 1, 3))


def shift(values: NDArray[np.int8]) -> NDArray[np.int32]:
    """(n_group, n_panel · PANEL): what takes back that each row was multiplied with numbers that are 128 too large."""
    n_panel, *_ = packed_shape((values.shape[0], values.shape[1]))
    n_group = -(-values.shape[1] // GROUP)
    groups = _filled(values, n_panel * PANEL, n_group * GROUP).reshape(-1, n_group, GROUP)
    sums: NDArray[np.int32] = groups.sum(axis=2, dtype=np.int32)
    return np.ascontiguousarray(-_SHIFT * sums.T)


def _filled(values: NDArray[np.int8], n_rows: int, n_columns: int) -> NDArray[np.int8]:
    return np.pad(values, ((0, n_rows - values.shape[0]), (0, n_columns - values.shape[1])))
