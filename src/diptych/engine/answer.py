"""What the client of a sequence is told: text as it comes, and at the end the usage and where the time went."""

from __future__ import annotations

import time
from collections.abc import Callable

from diptych.engine.detokenize import Detokenizer
from diptych.errors import DiptychError
from diptych.types import FinishReason, Output, Timings, Usage

Emit = Callable[[Output | DiptychError], None]


class Answer:
    """The answer so far. `encode_ms` and `prefill_ms` are added to by the engine; `started` is on `time.perf_counter`."""

    def __init__(self, emit: Emit, stop: tuple[str, ...], started: float, preprocess_ms: float) -> None:
        self.encode_ms = self.prefill_ms = 0.0
        self._emit = emit
        self._text = Detokenizer(stop)
        self._tokens: list[int] = []
        self._n = 0
        self._started, self._preprocess_ms = started, preprocess_ms
        self._first: float | None = None

    def push(self, token: int, piece: bytes) -> bool:
        """Take a token and hand out the text that is sure; True when a stop string ends the answer."""
        if self._first is None:
            self._first = time.perf_counter()
        self._n += 1
        self._tokens.append(token)
        if text := self._text.push(piece):
            self._emit(Output(text, self._taken()))
        return self._text.stopped

    def finish(self, reason: FinishReason, usage: Usage) -> None:
        """Hand out the last of the text, with the usage and timings of the whole."""
        text = self._text.push(b"", final=True)
        self._emit(Output(text, self._taken(), reason, usage, self._timings()))

    def fail(self, error: DiptychError) -> None:
        """End with an error, which is raised where the answer is awaited."""
        self._emit(error)

    def _taken(self) -> tuple[int, ...]:
        """The tokens not handed out yet."""
        out = tuple(self._tokens)
        self._tokens.clear()
        return out

    def _timings(self) -> Timings:
        now = time.perf_counter()
        first = self._first if self._first is not None else now
        decode = now - first
        return Timings(
            preprocess_ms=self._preprocess_ms,
            encode_ms=self.encode_ms,
            prefill_ms=self.prefill_ms,
            decode_ms=1e3 * decode,
            time_to_first_token_ms=1e3 * (first - self._started),
            # the first token comes out of the prefill
            tokens_per_second=(self._n - 1) / decode if self._n > 1 and decode > 0 else 0.0,
        )
