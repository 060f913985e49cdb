"""The arrays of one `llama_decode` call: filled from a `Batch`, seen by C through pointers made once.

Two kinds of batch. Tokens have one position each, and llama.cpp widens it. Embedding rows of an M-RoPE model have four,
as planes over the *whole* batch, so the (4, n) arrays of its segments are joined along n and flattened here, in our own
buffer of 4·n (`llama_batch_init` allocates one position a row, and the rest would be read past its end).
"""

from __future__ import annotations

import ctypes
from typing import Any

import llama_cpp.llama_cpp as lib
import numpy as np
from numpy.typing import NDArray

from diptych.errors import EngineError, InputError
from diptych.types import Batch, Segment


class BatchArrays:
    """NumPy arrays for up to `n_batch` rows, and the two C structures that point at them."""

    def __init__(self, n_batch: int, n_pos: int, n_embd: int, n_vocab: int, n_seq: int, n_outputs: int) -> None:
        self.n_batch, self.n_pos, self.n_embd = n_batch, n_pos, n_embd
        self.n_vocab, self.n_seq, self.n_outputs = n_vocab, n_seq, n_outputs
        self._tokens = np.zeros(n_batch, np.int32)
        self._rows: NDArray[np.float32] | None = None  # made by the first embedding batch: text alone never needs it
        self._positions = np.zeros(n_pos * n_batch, np.int32)
        self._n_seq_id = np.ones(n_batch, np.int32)
        self._seq_ids = np.zeros(n_batch, np.int32)
        self._wants = np.zeros(n_batch, np.int8)
        # one pointer a row, each at that row's single sequence id; NULL ends the list as in llama_batch_init
        self._seq_id = np.zeros(n_batch + 1, np.uintp)
        self._seq_id[:-1] = self._seq_ids.ctypes.data + self._seq_ids.itemsize * np.arange(n_batch)
        self._struct = lib.llama_batch(
            0,
            _pointer(self._tokens, lib.llama_token),
            None,
            _pointer(self._positions, lib.llama_pos),
            _pointer(self._n_seq_id, ctypes.c_int32),
            _pointer(self._seq_id, ctypes.POINTER(lib.llama_seq_id)),
            _pointer(self._wants, ctypes.c_int8),
        )

    def fill(self, batch: Batch, every: bool = False) -> tuple[Any, list[int]]:
        """The C structure of a batch, and the rows whose logits it asks for, in segment order; `every` row is an output.

        Raises EngineError for a batch that llama.cpp would misread or abort the process over, and InputError for
        embedding rows that would spoil the KV cache.
        """
        n = self._check(batch, every)
        tokens = batch.segments[0].tokens is not None
        outputs = []
        end = 0
        self._wants[:n] = every
        for segment in batch.segments:
            start, end = end, end + segment.n_rows
            self._seq_ids[start:end] = segment.seq_id
            if segment.wants_logits:
                self._wants[end - 1] = 1
                outputs.append(end - 1)
            if segment.tokens is not None:
                self._tokens[start:end] = segment.tokens
                self._positions[start:end] = segment.positions[0]
            else:
                self._buffer()[start:end] = segment.embeddings
                self._positions[: self.n_pos * n].reshape(self.n_pos, n)[:, start:end] = segment.positions
        self._struct.n_tokens = n
        self._struct.token = _pointer(self._tokens, lib.llama_token) if tokens else None
        self._struct.embd = None if tokens else _pointer(self._buffer(), ctypes.c_float)
        return self._struct, outputs

    def _buffer(self) -> NDArray[np.float32]:
        if self._rows is None:
            self._rows = np.zeros((self.n_batch, self.n_embd), np.float32)
        return self._rows

    def _check(self, batch: Batch, every: bool) -> int:
        """The number of rows of a batch that is fit to be decoded."""
        for segment in batch.segments:
            if segment.positions.ndim != 2 or segment.n_rows < 1:
                raise EngineError(f"a segment has positions {segment.positions.shape}; it needs planes of one or more: (d, n)")
        n = sum(s.n_rows for s in batch.segments)
        if not 1 <= n <= self.n_batch:
            raise EngineError(f"a batch has {n} rows; it must have 1 to n_batch = {self.n_batch}")
        if len({s.tokens is None for s in batch.segments}) > 1:
            raise EngineError("a batch mixes tokens and embeddings, and llama.cpp takes one kind a call; make two batches")
        if (wanted := n if every else sum(s.wants_logits for s in batch.segments)) > self.n_outputs:
            raise EngineError(f"a batch asks for {wanted} rows of logits; the context was made for {self.n_outputs}")
        for segment in batch.segments:
            if not 0 <= segment.seq_id < self.n_seq:
                raise EngineError(f"sequence {segment.seq_id} is out of range; the context has {self.n_seq} (n_parallel)")
            if segment.tokens is not None:
                self._check_tokens(segment, segment.tokens)
            elif segment.embeddings is not None:
                self._check_rows(segment, segment.embeddings)
            else:
                raise EngineError("a segment has neither tokens nor embeddings")
        return n

    def _check_tokens(self, segment: Segment, tokens: NDArray[np.int32]) -> None:
        if segment.embeddings is not None:
            raise EngineError("a segment has both tokens and embeddings; give it one")
        if segment.positions.shape[0] not in (1, self.n_pos) or tokens.shape != (segment.n_rows,):
            raise EngineError(
                f"{tokens.shape} tokens stand at {segment.positions.shape} positions; "
                f"(n,) tokens need (1, n){f' or ({self.n_pos}, n)' if self.n_pos > 1 else ''}"
            )
        if not 0 <= tokens.min() <= tokens.max() < self.n_vocab:
            raise EngineError(f"tokens run from {tokens.min()} to {tokens.max()}; the vocabulary has {self.n_vocab}")

    def _check_rows(self, segment: Segment, rows: NDArray[np.float32]) -> None:
        if rows.shape != (segment.n_rows, self.n_embd):
            raise EngineError(
                f"embeddings are {rows.shape} for {segment.n_rows} positions; "
                f"the text half takes rows of width {self.n_embd}, one a position"
            )
        if segment.positions.shape[0] != self.n_pos:
            raise EngineError(
                f"embedding rows have {segment.positions.shape[0]} planes of positions and this model takes {self.n_pos}; "
                "one position a row where four are due makes a model describe pictures it never saw"
            )
        # A row of NaN, infinities, or nothing at all comes out of the first norm as NaN and, in a cache that sequences
        # share, spoils its neighbours as well.
        squares = np.einsum("ij,ij->i", rows, rows, dtype=np.float32)
        if not (good := np.isfinite(squares) & (squares > 0)).all():
            row = int(np.argmin(good))
            what = "all zeros" if not rows[row].any() else "not finite" if not np.isfinite(rows[row]).all() else "out of range"
            raise InputError(
                f"embedding row {row} of {len(rows)} is {what}, which would spoil the cache; the media half is at fault: "
                "check the picture and the mmproj"
            )


def _pointer(array: NDArray[Any], kind: Any) -> Any:  # noqa: ANN401 - ctypes pointer types are made at run time
    return ctypes.cast(array.ctypes.data, ctypes.POINTER(kind))
