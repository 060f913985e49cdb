"""What the client of a sequence is told: text as it comes, and at the end the usage and where the time went."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from diptych.engine.detokenize import Detokenizer
from diptych.errors import DiptychError
from diptych.types import FinishReason, Logprob, MediaUse, Output, Progress, Timings, Usage

Emit = Callable[[Output | DiptychError], None]


@dataclass
class Clock:
    """When a request came, got a slot and gave its first and its latest token, on `time.perf_counter`, and what it has
    taken so far, in milliseconds. The engine adds to it."""

    came: float
    preprocess_ms: float = 0.0
    waited_ms: float = 0.0
    encode_ms: float = 0.0
    prefill_ms: float = 0.0
    media_prefill_ms: float = 0.0
    first: float | None = None
    latest: float | None = None

    def admitted(self) -> None:
        """It has a slot now, the first time or again."""
        if not self.waited_ms:
            self.waited_ms = 1e3 * (time.perf_counter() - self.came) - self.preprocess_ms

    def prefilled(self, kind: str, ms: float) -> None:
        """A step decoded rows of its prompt, of one kind."""
        self.prefill_ms += ms
        if kind == "media":
            self.media_prefill_ms += ms

    def timings(self, n: int) -> Timings:
        """The timings of an answer of `n` tokens that ends now."""
        now = time.perf_counter()
        first = self.first if self.first is not None else now
        decode = now - first
        return Timings(
            queue_ms=self.waited_ms,
            preprocess_ms=self.preprocess_ms,
            encode_ms=self.encode_ms,
            prefill_ms=self.prefill_ms,
            media_prefill_ms=self.media_prefill_ms,
            decode_ms=1e3 * decode,
            time_to_first_token_ms=1e3 * (first - self.came),
            # the first token comes out of the prefill
            tokens_per_second=(n - 1) / decode if n > 1 and decode > 0 else 0.0,
        )


class Answer:
    """The answer so far, and its clock. `usage` is what is known of the prompt, `slot` who computes it."""

    def __init__(self, emit: Emit, stop: tuple[str, ...], clock: Clock) -> None:
        self.clock = clock
        self.usage = Usage()
        self.slot: int | None = None
        self.has_new_line = False
        self._emit = emit
        self._text = Detokenizer(stop)
        self._tokens: list[int] = []
        self._logprobs: list[Logprob] = []
        self._n = 0

    def push(self, token: int, piece: bytes, logprob: Logprob | None = None) -> bool:
        """Take a token and hand out the text that is sure; True when a stop string ends the answer."""
        if self.clock.first is None:
            self.clock.first = time.perf_counter()
        self._n += 1
        self._tokens.append(token)
        if logprob is not None:
            self._logprobs.append(logprob)
        if text := self._text.push(piece):
            self.has_new_line = self.has_new_line or "\n" in text
            usage, timings = replace(self.usage, completion_tokens=self._n), self.clock.timings(self._n)
            self._emit(Output(text, self._taken(), None, usage, timings, self._reported(), slot=self.slot))
        return self._text.stopped

    def progress(self, processed: int) -> None:
        """Tell how many rows of the prompt are in the KV cache."""
        ms = 1e3 * (time.perf_counter() - self.clock.came)
        progress = Progress(self.usage.prompt_tokens, self.usage.cached_tokens, processed, ms)
        self._emit(Output("", usage=self.usage, timings=self.clock.timings(0), slot=self.slot, progress=progress))

    def finish(self, reason: FinishReason, usage: Usage, media: tuple[MediaUse, ...] = ()) -> None:
        """Hand out the last of the text, with the usage and timings of the whole."""
        text = self._text.push(b"", final=True)
        tokens, logprobs = self._taken(), self._reported()
        timings = self.clock.timings(self._n)
        self._emit(Output(text, tokens, reason, usage, timings, logprobs, self._text.stopped_by, media, self.slot))

    def fail(self, error: DiptychError) -> None:
        """End with an error, which is raised where the answer is awaited."""
        self._emit(error)

    def _taken(self) -> tuple[int, ...]:
        """The tokens not handed out yet."""
        out = tuple(self._tokens)
        self._tokens.clear()
        return out

    def _reported(self) -> tuple[Logprob, ...]:
        out = tuple(self._logprobs)
        self._logprobs.clear()
        return out
