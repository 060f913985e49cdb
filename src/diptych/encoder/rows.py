"""Rows of encoded media: whether they are fit to be decoded, and in a form to be kept and shared."""

from __future__ import annotations

import mmap
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diptych.errors import EngineError, UnusableMedia
from diptych.families.base import Rows
from diptych.types import MediaChunk


def check_rows(rows: Rows, chunk: MediaChunk, n_embd: int) -> None:
    """Raise UnusableMedia for rows of a client that are of the wrong shape, or such that would spoil a KV cache."""
    if found := fault(rows, (chunk.n_tokens, n_embd)):
        raise UnusableMedia(f"the embeddings of a picture are {found}; send those that this model's encoder gives")


def checked(rows: Rows, chunk: MediaChunk, n_embd: int) -> Rows:
    """The rows that a media half made of a chunk, to be kept. Raises EngineError for those that would spoil a KV cache."""
    if found := fault(rows, (chunk.n_tokens, n_embd)):
        raise EngineError(f"the media half gave {found}; check the mmproj, or use precision f32")
    return kept(rows)


def fault(rows: Rows, shape: tuple[int, int]) -> str | None:
    """What is wrong with rows: their shape, or that one comes out of the text half's first norm as no numbers, for it is
    not finite, of zeros alone, or of a length whose square is no float32. It would spoil its neighbours in a KV cache."""
    if rows.shape != shape:
        return f"rows {rows.shape} where {shape} were expected"
    squares = np.einsum("ij,ij->i", rows, rows, dtype=np.float32)
    good = np.isfinite(squares) & (squares > 0)
    if good.all():
        return None
    row = int(np.argmin(good))
    what = "of zeros alone" if not rows[row].any() else "not finite" if not np.isfinite(rows[row]).all() else "out of range"
    return f"rows of which row {row} is {what}"


def beside(parts: list[NDArray[Any]]) -> Rows:
    """Arrays (n, width), of which the list is emptied as they are copied, side by side: (n, Σ width) in float32."""
    if len(parts) == 1:
        return parts.pop()
    out, at = _by_pages(len(parts[0]), sum(part.shape[1] for part in parts)), 0
    while parts:
        part = parts.pop(0)
        out[:, at : at + part.shape[1]] = part
        at += part.shape[1]
    return out


def _by_pages(n: int, width: int) -> Rows:
    """Room for rows that takes memory page by page as it is written. NumPy's own would take 2 MiB at once on Linux, and so all
    of it with the first of several parts."""
    memory = mmap.mmap(-1, max(1, n * width) * np.dtype(np.float32).itemsize)
    with suppress(AttributeError, OSError):  # a system that has no such pages
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(memory, np.float32, n * width).reshape(n, width)


def kept(rows: Rows) -> Rows:
    """The rows as float32, read-only, and in no larger memory than their own, such as that of a whole run's output."""
    rows = rows.astype(np.float32, copy=False)
    memory = rows
    while isinstance(memory.base, np.ndarray):
        memory = memory.base
    out = rows.copy() if memory.nbytes > rows.nbytes else rows.view()
    out.flags.writeable = False
    return out
