"""Where the rows of a media chunk stand in the decoder: one plane of positions, or the four of M-RoPE."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from diptych.types import MediaChunk

Positions = NDArray[np.int32]


def text(n: int, start: int, n_pos: int) -> tuple[Positions, int]:
    """`n` text tokens from `start` on: (n_pos, n) planes and the next position.

    llama.cpp takes one plane for a token batch and widens it itself; the other planes are what it would fill in,
    t = y = x with a fourth plane of 0.
    """
    planes = np.zeros((n_pos, n), np.int32)
    planes[: min(n_pos, 3)] = np.arange(start, start + n, dtype=np.int32)
    return planes, start + n


def linear(chunk: MediaChunk, start: int) -> tuple[Positions, int]:
    """One row, one position: a (1, n) array and the next position."""
    return np.arange(start, start + chunk.n_tokens, dtype=np.int32)[None], start + chunk.n_tokens


def mrope(chunk: MediaChunk, start: int) -> tuple[Positions, int]:
    """Multimodal rotary positions of an image: (4, n) planes t, y, x and 0, and the next position.

    A 2 × 3 grid from position 5 gives t 5 5 5 5 5 5, y 5 5 5 6 6 6, x 5 6 7 5 6 7, next 8: the text behind an image
    starts past its longer side, not past its number of rows (Qwen2-VL, section 2.1; `get_rope_index` in
    transformers).
    """
    t, h, w = chunk.grid.t, chunk.grid.h, chunk.grid.w
    planes = np.zeros((4, t * h * w), np.int32)
    planes[:3] = np.indices((t, h, w), np.int32).reshape(3, -1) + start
    return planes, start + max(t, h, w)
