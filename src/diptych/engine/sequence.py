"""A request in flight: what is to be decoded for it, and how far that has come. Holds no llama object but its sampler."""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from diptych import positions
from diptych.families.base import MediaHalf, Rows
from diptych.positions import Positions
from diptych.types import Chunk, MediaChunk, MediaOrigin, MediaUse, Request, Segment, TextChunk, Usage

if TYPE_CHECKING:
    from diptych.encoder.encoder import Encoding
    from diptych.engine.answer import Answer
    from diptych.llama.sampler import Sampler

Kind = Literal["tokens", "media"]


@dataclass(frozen=True, eq=False)
class Span:
    """A chunk where it stands: its first row in the KV cache and its first position; `planes` (n_pos, n) of media rows."""

    chunk: Chunk
    row: int
    position: int
    planes: Positions | None = None
    causal: bool = True


def place(chunks: Iterable[Chunk], half: MediaHalf | None) -> tuple[tuple[Span, ...], int]:
    """Chunks one behind the other, and the position behind the last. Rows and positions are counted apart:
    behind a picture of M-RoPE the next position is smaller than the next row."""
    spans: list[Span] = []
    row = position = 0
    for chunk in chunks:
        if isinstance(chunk, TextChunk) or half is None:
            spans.append(Span(chunk, row, position))
            position += chunk.n_tokens
        else:
            planes, after = half.positions(chunk, position)
            spans.append(Span(chunk, row, position, planes, half.causal(chunk)))
            position = after
        row += chunk.n_tokens
    return tuple(spans), position


@dataclass(eq=False)
class Sequence:
    """The rows of a prompt and of the answer so far. `cursor` counts those that the KV cache holds.

    `end` is the position behind the prompt, `rows` the encoded rows by span and `origins` where they came from; a token
    that was sampled stands in `output` at once, and is decoded in the next step.
    """

    request: Request
    spans: tuple[Span, ...]
    end: int
    n_pos: int
    answer: Answer
    cursor: int = 0
    slot: int | None = None
    n_cached: int = 0  # rows of the prompt that the KV cache held
    output: list[int] = field(default_factory=list)
    rows: dict[int, Rows] = field(default_factory=dict)
    encodings: dict[int, Encoding] = field(default_factory=dict)
    origins: dict[int, MediaOrigin] = field(default_factory=dict)
    sampler: Sampler | None = None

    @cached_property
    def n_prompt(self) -> int:
        return sum(span.chunk.n_tokens for span in self.spans)

    @property
    def n_rows(self) -> int:
        """Rows of the prompt and the answer so far."""
        return self.n_prompt + len(self.output)

    @property
    def decoding(self) -> bool:
        """Whether one sampled token is all that is left to decode."""
        return bool(self.output) and self.cursor == self.n_rows - 1

    @property
    def ids(self) -> NDArray[np.int64]:
        """(n_rows,) tokens, and stand-ins for media rows."""
        return np.concatenate([*(span.chunk.ids for span in self.spans), np.array(self.output, np.int64)])

    @property
    def media(self) -> list[tuple[int, int, MediaChunk]]:
        """The media chunks, each with the index of its span and its first row."""
        return [(i, span.row, span.chunk) for i, span in enumerate(self.spans) if isinstance(span.chunk, MediaChunk)]

    @property
    def usage(self) -> Usage:
        n_media = sum(chunk.n_tokens for _, _, chunk in self.media)
        return Usage(self.n_prompt, n_media, len(self.output), min(self.n_cached, self.n_prompt))

    @property
    def media_uses(self) -> tuple[MediaUse, ...]:
        """What became of its media."""
        return tuple(
            MediaUse(chunk.kind, chunk.size, chunk.used, chunk.n_tokens, self.origins.get(i, "kv")) for i, _, chunk in self.media
        )

    @property
    def deadline(self) -> float | None:
        """When it has to have ended, on `time.perf_counter`."""
        seconds = self.request.max_seconds
        return None if seconds is None else self.answer.clock.came + seconds

    @property
    def kind(self) -> Kind:
        """What stands at the cursor."""
        span = self._span
        return "media" if span is not None and isinstance(span.chunk, MediaChunk) else "tokens"

    @property
    def causal(self) -> bool:
        """Whether the rows at the cursor see only those before them."""
        span = self._span
        return span is None or span.causal

    @property
    def n_ready(self) -> int:
        """Rows of one kind at the cursor that can be decoded now; 0 while a picture is being encoded."""
        span = self._span
        if span is None:
            return self.n_rows - self.cursor
        if isinstance(span.chunk, MediaChunk) and self._index not in self.rows:
            return 0
        return span.row + span.chunk.n_tokens - self.cursor

    def out_of_room(self, n_ctx: int) -> bool:
        """Whether the answer is as long as it may be."""
        return len(self.output) == self.request.max_tokens or self.n_rows > n_ctx

    def out_of_time(self) -> bool:
        """Whether the answer, at a new line, took longer than it may; llama-server's rule."""
        limit, first = self.request.max_predict_seconds, self.answer.clock.first
        return limit is not None and first is not None and self.answer.has_new_line and time.perf_counter() - first > limit

    def segment(self, n: int) -> Segment:
        """The next `n` rows, at most `n_ready`; the last row of all asks for its logits."""
        assert self.slot is not None
        wants, span = self.cursor + n == self.n_rows, self._span
        if span is None:
            done = self.cursor - self.n_prompt
            return self._tokens(self.output[done : done + n], self.end + done, wants)
        done = self.cursor - span.row
        if isinstance(span.chunk, TextChunk):
            return self._tokens(span.chunk.tokens[done : done + n], span.position + done, wants)
        assert span.planes is not None
        rows = self.rows[self._index][done : done + n]
        return Segment(self.slot, span.planes[:, done : done + n], embeddings=rows, wants_logits=wants)

    def position(self, row: int) -> int:
        """The position of a row that is text or begins a media chunk."""
        if row >= self.n_prompt:
            return self.end + row - self.n_prompt
        span = self.spans[bisect_right(self._starts, row) - 1]
        return span.position + row - span.row

    def _tokens(self, tokens: Iterable[int], start: int, wants: bool) -> Segment:
        assert self.slot is not None
        array = np.array(tokens, np.int32)
        return Segment(self.slot, positions.text(len(array), start, self.n_pos)[0], tokens=array, wants_logits=wants)

    @property
    def _index(self) -> int:
        return bisect_right(self._starts, self.cursor) - 1

    @property
    def _span(self) -> Span | None:
        """The span at the cursor; None behind the prompt."""
        return self.spans[self._index] if self.cursor < self.n_prompt else None

    @cached_property
    def _starts(self) -> list[int]:
        return [span.row for span in self.spans]
