"""Sequences for tests that need no engine: chunks from short notations, placed by a media half that only places."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence as List
from typing import Any

import numpy as np

from diptych import positions
from diptych.engine.answer import Answer, Clock
from diptych.engine.sequence import Sequence, place
from diptych.types import Chunk, Grid, MediaChunk, Request, TextChunk

N_EMBD = 3


class Places:
    """The part of a media half that says where rows stand, and whether they see only what is before them."""

    def __init__(self, n_pos: int, causal: bool = True) -> None:
        self.positions = positions.mrope if n_pos == 4 else positions.linear
        self.causal = lambda _chunk: causal


def picture(name: str, h: int, w: int) -> MediaChunk:
    return MediaChunk("image", h * w, Grid(1, h, w), hashlib.sha256(name.encode()).digest(), ())


def text(n: int, first: int = 1) -> TextChunk:
    return TextChunk(tuple(range(first, first + n)))


def sequence(chunks: List[Chunk], n_pos: int = 4, causal: bool = True, encoded: bool = True) -> Sequence:
    """A sequence, with the rows of its pictures unless they are still to be encoded."""
    half: Any = Places(n_pos, causal)
    spans, end = place(chunks, half)
    out = Sequence(Request(()), spans, end, n_pos, Answer(lambda _: None, (), Clock(0.0)))
    if encoded:
        for i, _, chunk in out.media:
            out.rows[i] = rows_of(chunk)
    return out


def rows_of(chunk: MediaChunk) -> np.ndarray[Any, np.dtype[np.float32]]:
    """(n_tokens, 3) rows that tell the chunk and the row."""
    rows = np.full((chunk.n_tokens, N_EMBD), chunk.key[0], np.float32)
    rows[:, 1] = np.arange(chunk.n_tokens)
    return rows
