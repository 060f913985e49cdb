"""Learned tables of positions: a square lattice of rows that pictures of all sizes are laid over."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from diptych.errors import FileError
from diptych.graph import nn

if TYPE_CHECKING:
    from diptych.graph.graph import Graph, Value
    from diptych.weights import Weights

POSITIONS = "v.position_embd.weight"  # row by row
N_TAPS = 4  # rows of the table that a place lies between

Taps = tuple[NDArray[np.int64], NDArray[np.float32]]


def side_of(weights: Weights) -> int:
    """Lines and columns of a file's table. Raises FileError when it has none, or one that is not square."""
    table = weights.tensors.get(POSITIONS)
    n = table.shape[0] if table and table.shape else 0
    side = math.isqrt(n)
    if not n or side**2 != n:
        raise FileError(f"the mmproj's {POSITIONS} has {n} rows, and a square number is expected; convert the model again")
    return side


def between(down: NDArray[np.float32], across: NDArray[np.float32], side: int) -> Taps:
    """(h, w, 4) rows of a table (side · side, …) about the places `down` (h,) × `across` (w,) of it, and their shares.

    Above left, above right, below left, below right; bilinear. Beyond an end the row at the end stands twice.
    """
    (rows, y), (columns, x) = (_neighbours(at, side) for at in (down, across))
    taps = rows[:, None, :, None] * side + columns[None, :, None, :]  # (h, w, 2, 2)
    shares = y[:, None, :, None] * x[None, :, None, :]
    shape = len(down), len(across), N_TAPS
    return taps.reshape(shape), shares.reshape(shape)


def placed(g: Graph, weights: Weights, x: Value) -> Value:
    """x (n_patch, width), to each patch its position added. The graph takes what `between` gives, as `taps` and `shares`.

    Raises FileError as `side_of` does.
    """
    side_of(weights)
    taps, shares = g.input("taps", ("n_patch", N_TAPS), np.int64), g.input("shares", ("n_patch", N_TAPS))
    return nn.interpolated(g, x, POSITIONS, taps, shares)


def _neighbours(at: NDArray[np.float32], side: int) -> Taps:
    """(n, 2) neighbours of places on a line of `side`, and their shares."""
    low = np.floor(at)
    neighbours = np.clip(np.stack([low, low + 1], axis=1), 0, side - 1).astype(np.int64)
    return neighbours, np.stack([1 - (at - low), at - low], axis=1)
