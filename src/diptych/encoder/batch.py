"""Batches of chunks, for those who encode without an engine."""

from __future__ import annotations

from diptych.encoder.half import encoded
from diptych.encoder.limits import Limits, Run
from diptych.encoder.rows import check_rows, checked
from diptych.errors import EngineError, InputError
from diptych.families.base import MediaHalf, Rows
from diptych.options import Options
from diptych.types import MediaChunk


class MediaBatch:
    """Chunks that are encoded in one run of a media half, at most `encode_max_patches` and `encode_max_tokens` together.

    `add` chunks until it says no, `encode`, and fetch the `embeddings` of each. They are those that the chunk gets alone:
    to the bit in ONNX Runtime up to `load.PREPACK` weights, elsewhere up to the rounding of the precision. Not for several
    threads at once.
    """

    def __init__(self, half: MediaHalf, options: Options | None = None) -> None:
        """Without options the limits are the default ones."""
        self._half = half
        self._run = Run(half.batch_key, Limits.of(half, options or Options()))
        self._chunks: dict[bytes, MediaChunk] = {}
        self._rows: dict[bytes, Rows] | None = None

    @property
    def chunks(self) -> list[MediaChunk]:
        """Those in it, in the order they came; the same one twice is one."""
        return list(self._chunks.values())

    @property
    def n_patches(self) -> int:
        """Patches of what is to be encoded."""
        return self._run.n_patches

    @property
    def n_tokens(self) -> int:
        """Rows that will be made."""
        return self._run.n_tokens

    def add(self, chunk: MediaChunk) -> bool:
        """Take a chunk; False when it does not fit: its pieces go in no run with those here, or it is too much with them.

        The first always fits, and what is here already or brings its rows costs nothing. Raises InputError once encoded,
        EngineError for a chunk that has neither pieces nor rows, UnusableMedia for one whose rows are no embeddings.
        """
        if self._rows is not None:
            raise InputError("the batch is encoded, and a chunk was added; make a new one for it")
        if chunk.key in self._chunks:
            return True
        if chunk.rows is not None:
            check_rows(chunk.rows, chunk, self._half.n_embd)
        elif not chunk.pieces:
            raise EngineError("a media chunk has neither pieces to encode nor rows")
        elif not self._run.add(chunk.pieces, chunk.n_tokens):
            return False
        self._chunks[chunk.key] = chunk
        return True

    def encode(self) -> None:
        """Run the media half for all chunks together; a second call does nothing.

        Raises EngineError when that fails or gives rows that would spoil a KV cache.
        """
        if self._rows is not None:
            return
        waiting = [chunk for chunk in self._chunks.values() if chunk.rows is None]
        made = encoded(self._half, waiting)
        self._rows = {chunk.key: checked(rows, chunk, self._half.n_embd) for chunk, rows in zip(waiting, made, strict=True)}

    def embeddings(self, chunk: MediaChunk) -> Rows:
        """The (n_tokens, n_embd) rows of a chunk, read-only. Raises InputError before `encode`, or for a chunk not in here."""
        if chunk.key not in self._chunks:
            raise InputError("the chunk is not in the batch; add it before encode()")
        if self._rows is None:
            raise InputError("the batch is not encoded yet; call encode() first")
        rows = self._chunks[chunk.key].rows
        return self._rows[chunk.key] if rows is None else rows
