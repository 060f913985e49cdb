"""The engine thread: schedule, decode, sample. Nothing else touches the context or a sampler."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from functools import partial

from diptych.encoder.encoder import Counters, Encoder, Encoding
from diptych.engine.about import SlotState
from diptych.engine.inbox import Inbox
from diptych.engine.scheduler import Step, schedule
from diptych.engine.sequence import Kind, Sequence
from diptych.engine.slots import Slots
from diptych.engine.stats import Stats
from diptych.errors import DiptychError, EngineError, InputError
from diptych.llama.context import Context
from diptych.llama.model import TextModel
from diptych.llama.sampler import Sampler
from diptych.types import Batch, FinishReason, TextChunk

log = logging.getLogger(__name__)


class Loop:
    """Sequences that wait for a slot and that run, oldest first, and the thread that serves them.

    Other threads call `add`, `abort`, `close` and `stats`; all else happens on its own.
    """

    def __init__(self, model: TextModel, context: Context, encoder: Encoder | None, n_slots: int) -> None:
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []
        self._slots = Slots(n_slots, context)
        self._n_slots = n_slots
        self._calls: Counter[Kind] = Counter()
        self._rows: Counter[Kind] = Counter()
        self._model, self._context, self._encoder = model, context, encoder
        self._crowded = False  # one was put back, and none has ended since
        self._inbox = Inbox()
        self._last: Kind | None = None
        self._thread = threading.Thread(target=self._run, name="diptych-engine", daemon=True)
        self._thread.start()

    def add(self, sequence: Sequence) -> None:
        """Put a sequence in line. Raises EngineError once closed."""
        if not self._inbox.put(partial(self._add, sequence)):
            raise EngineError("the engine is closed; load it again before using it")

    def abort(self, sequence: Sequence) -> None:
        """End a sequence without a word; nothing happens where it has ended already."""
        self._inbox.put(partial(self._end, sequence))

    def close(self) -> None:
        """End the thread behind the step it is in, and all sequences with an error; a second call does nothing."""
        self._inbox.close()
        self._thread.join()

    def stats(self) -> Stats:
        """The counts of this moment; those that belong together may be one step apart."""
        kv_rows = sum(sequence.cursor for sequence in list(self._running)) + self._slots.n_idle_rows
        return Stats(
            len(self._running), len(self._waiting), self._n_slots, self._context.n_ctx, kv_rows, self._slots.n_reused,
            self._calls["tokens"], self._calls["media"], self._rows["tokens"], self._rows["media"],
            self._encoder.counters if self._encoder else Counters(),
        )  # fmt: skip

    def slots(self) -> list[SlotState]:
        """What each slot does, as of this moment."""
        out = [SlotState() for _ in range(self._n_slots)]
        for s in list(self._running):
            if (at := s.slot) is not None:
                done, limit = min(s.cursor, s.n_prompt), s.request.max_tokens
                left = -1 if limit is None else limit - len(s.output)
                out[at] = SlotState(True, s.n_prompt, done, s.n_cached, len(s.output), left)
        return out

    def _run(self) -> None:
        idle = True
        while True:
            try:
                if not self._inbox.take(wait=idle):
                    break
                idle = not self._step()
            except Exception as error:  # a fault in here must not leave anyone waiting for ever
                log.exception("the engine thread failed")
                self._fail_all(f"the engine failed: {type(error).__name__}: {error}")
        self._fail_all("the engine was closed before the answer was complete")

    def _step(self) -> bool:
        """One decode call and what comes of it; False when there is nothing to decode."""
        self._admit()
        step = schedule(self._running, self._context.n_batch, self._last)
        if step is None:
            return False
        self._last = step.kind
        self._decode(step)
        return True

    def _admit(self) -> None:
        """Give free slots to those who wait, in order, as far as the KV cache has room for what is known of them."""
        while self._waiting and self._slots.free:
            needed = sum(s.n_rows for s in [*self._running, self._waiting[0]])
            if self._running and (self._crowded or needed > self._context.n_ctx):
                return
            self._running.append(sequence := self._waiting.popleft())
            self._slots.take(sequence)
            self._encode(sequence, sequence.cursor)

    def _decode(self, step: Step) -> None:
        """Decode a batch and sample for those who are at the end of their rows; see to it when that cannot be done."""
        start = time.perf_counter()
        try:
            done = self._context.decode(step.batch)
        except InputError as error:  # llama.cpp was not called, so the cache is as it was
            return self._separate(step, error)
        except DiptychError as error:
            for sequence in step.sequences:
                self._end(sequence, error, forget=True)
            return
        if not done:
            if not self._slots.forget_idle():
                self._put_back()
            return
        self._advance(step, 1e3 * (time.perf_counter() - start))
        wanting = [s for s, g in zip(step.sequences, step.batch.segments, strict=True) if g.wants_logits]
        for i, sequence in enumerate(wanting):
            self._sample(sequence, i)

    def _advance(self, step: Step, ms: float) -> None:
        self._calls[step.kind] += 1
        for sequence, segment in zip(step.sequences, step.batch.segments, strict=True):
            sequence.answer.prefill_ms += 0.0 if sequence.decoding else ms
            sequence.cursor += segment.n_rows
            self._rows[step.kind] += segment.n_rows

    def _separate(self, step: Step, error: InputError) -> None:
        """A batch was refused for what one sequence put into it: decode each alone, so that only that one ends."""
        if len(step.sequences) == 1:
            return self._end(step.sequences[0], error)
        for sequence, segment in zip(step.sequences, step.batch.segments, strict=True):
            if sequence in self._running:  # else an earlier one of them has put it back in line
                self._decode(Step(step.kind, Batch((segment,)), (sequence,)))

    def _put_back(self) -> None:
        """The KV cache is full: the newest sequence leaves it and is first in line again."""
        newest = self._running[-1]
        if len(self._running) == 1:
            error = EngineError(f"the KV cache has no room for {newest.n_rows} rows; set a larger n_ctx")
            return self._end(newest, error, forget=True)
        self._waiting.appendleft(self._running.pop())
        self._slots.give_back(newest, forget=True)
        self._crowded = True

    def _sample(self, sequence: Sequence, i: int) -> None:
        """Choose the next token from the `i`-th row of logits, and see whether it is the last."""
        assert sequence.sampler is not None
        try:
            token = sequence.sampler.sample(self._context, i).token
        except DiptychError as error:
            return self._end(sequence, error)
        sequence.output.append(token)
        ended = self._model.is_end(token)
        stopped = sequence.answer.push(token, b"" if ended else self._model.piece(token))
        if ended or stopped:
            self._end(sequence, "stop")
        elif len(sequence.output) == sequence.request.max_tokens or sequence.n_rows > self._context.n_ctx:
            self._end(sequence, "length")

    def _add(self, sequence: Sequence) -> None:
        self._waiting.append(sequence)
        try:
            sequence.sampler = Sampler(self._model, sequence.request.sampling)
        except DiptychError as error:
            return self._end(sequence, error)
        for span in sequence.spans:
            if isinstance(span.chunk, TextChunk):
                sequence.sampler.feed(span.chunk.tokens)
        # pictures are encoded while others are being answered, save those that a slot seems to hold
        self._encode(sequence, self._slots.reusable(sequence))

    def _encode(self, sequence: Sequence, row: int) -> None:
        """Ask for the rows of every media chunk from `row` on, unless that was done before."""
        for i, start, chunk in sequence.media:
            if start >= row and i not in sequence.encodings:
                assert self._encoder is not None
                sequence.encodings[i] = encoding = self._encoder.submit(chunk)
                encoding.add_done_callback(partial(self._encoded, sequence, i, encoding))

    def _encoded(self, sequence: Sequence, i: int, encoding: Encoding, _future: object) -> None:
        """On the encoder's thread: hand the rows over to this one."""
        self._inbox.put(partial(self._receive, sequence, i, encoding))

    def _receive(self, sequence: Sequence, i: int, encoding: Encoding) -> None:
        """Take the rows of a media chunk from the encoder."""
        if encoding.cancelled():
            return
        error = encoding.exception()
        if isinstance(error, DiptychError):
            return self._end(sequence, error)
        sequence.rows[i] = encoding.result()
        sequence.answer.encode_ms += encoding.ms

    def _end(self, sequence: Sequence, outcome: FinishReason | DiptychError | None = None, *, forget: bool = False) -> None:
        """Take a sequence out wherever it is, and tell its client the outcome; nothing happens where it has ended already.

        `forget` what the cache holds of it, where that is not to be trusted.
        """
        line = next((line for line in (self._waiting, self._running) if sequence in line), None)
        if line is None:
            return
        line.remove(sequence)
        try:
            self._release(sequence, forget)
        finally:
            if isinstance(outcome, DiptychError):
                sequence.answer.fail(outcome)
            elif outcome is not None:
                sequence.answer.finish(outcome, sequence.usage)

    def _release(self, sequence: Sequence, forget: bool) -> None:
        for encoding in sequence.encodings.values():
            encoding.cancel()
        self._slots.give_back(sequence, forget=forget)
        self._crowded = False
        sequence.rows.clear()
        if sequence.sampler is not None:
            sequence.sampler.close()

    def _fail_all(self, message: str) -> None:
        for sequence in [*self._running, *self._waiting]:
            self._end(sequence, EngineError(message), forget=True)
        while self._slots.forget_idle():
            pass
