"""The engine thread: schedule, decode, sample. Nothing else touches the context or a sampler."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import nullcontext
from functools import partial
from typing import TypeVar

from diptych.encoder import kernels
from diptych.encoder.encoder import Encoder, Encoding
from diptych.engine.about import SlotState
from diptych.engine.inbox import Inbox
from diptych.engine.lanes import Lanes
from diptych.engine.scheduler import Step, schedule
from diptych.engine.sequence import Kind, Sequence
from diptych.engine.slots import Slots
from diptych.engine.stats import Work
from diptych.errors import DiptychError, EngineError, InputError, TimedOut, Unavailable
from diptych.llama.context import Context
from diptych.llama.model import TextModel
from diptych.options import Options
from diptych.trace import OFF, Trace
from diptych.types import Batch, FinishReason, Request

T = TypeVar("T")
log = logging.getLogger(__name__)


class Loop:
    """Sequences that wait for a slot and that run, oldest first, and the thread that serves them.

    Other threads call `add`, `abort`, `close` and what only looks; all else happens on its own.
    """

    def __init__(self, model: TextModel, context: Context, encoder: Encoder | None, options: Options, trace: Trace = OFF) -> None:
        self.work = Work()
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []
        self._slots = Slots(options.n_parallel, context)
        self._n_slots, self._n_prefill = options.n_parallel, options.prefill_chunk
        self._model, self._context, self._encoder = model, context, encoder
        self._n_threads = context.n_threads
        self._n_beside = _beside(options, self._n_threads)
        self._lanes = Lanes(trace)
        self._crowded = False  # one was put back, and none has ended since
        self._inbox = Inbox()
        self._last: Kind | None = None
        self._thread = threading.Thread(target=self._run, name="diptych-engine", daemon=True)
        self._thread.start()

    def add(self, sequence: Sequence) -> None:
        """Put a sequence in line. Raises Unavailable once closed."""
        if not self._inbox.put(partial(self._add, sequence)):
            raise Unavailable("the engine is closed; load it again before using it")

    def abort(self, sequence: Sequence) -> None:
        """End a sequence without a word; nothing happens where it has ended already."""
        self._inbox.put(partial(self._end, sequence))

    def between(self, work: Callable[[Slots], T]) -> Future[T]:
        """Do something with the slots between two steps. Raises Unavailable once closed."""
        done: Future[T] = Future()

        def call() -> None:
            try:
                done.set_result(work(self._slots))
            except Exception as error:
                done.set_exception(error)

        if not self._inbox.put(call):
            raise Unavailable("the engine is closed; load it again before using it")
        return done

    def close(self) -> None:
        """End the thread behind the step it is in, and all sequences with an error; a second call does nothing."""
        self._inbox.close()
        self._thread.join()

    @property
    def n_running(self) -> int:
        return len(self._running)

    @property
    def n_waiting(self) -> int:
        return len(self._waiting)

    @property
    def kv_rows(self) -> int:
        """Rows of the KV cache that somebody has or has left there; shared ones count for each."""
        return sum(sequence.cursor for sequence in list(self._running)) + self._slots.n_idle_rows

    @property
    def n_reused(self) -> int:
        return self._slots.n_reused

    def slots(self) -> list[SlotState]:
        """What each slot does, as of this moment."""
        out = [SlotState() for _ in range(self._n_slots)]
        for s in list(self._running):
            if (at := s.slot) is not None:
                limit = s.request.max_tokens
                left = -1 if limit is None else limit - len(s.output)
                out[at] = SlotState(True, s.n_prompt, min(s.cursor, s.n_prompt), s.n_cached, len(s.output), left)
        return out

    def _run(self) -> None:
        idle = True
        while True:
            try:
                if not self._inbox.take(idle, self._expire()):
                    break
                idle = not self._step()
            except Exception as error:  # a fault in here must not leave anyone waiting for ever
                log.exception("the engine thread failed")
                self._fail_all(EngineError(f"the engine failed: {type(error).__name__}: {error}"))
        self._fail_all(Unavailable("the engine was closed before the answer was complete"))

    def _step(self) -> bool:
        """One decode call and what comes of it; False when there is nothing to decode."""
        start, before = time.perf_counter(), self.work.decode_seconds + self.work.sample_seconds
        self._admit()
        step = schedule(self._running, self._context.n_batch, self._last, self._n_prefill)
        if step is not None:
            self._last = step.kind
            self._decode(step)
            others = self.work.decode_seconds + self.work.sample_seconds - before
            self.work.schedule_seconds += time.perf_counter() - start - others
        return step is not None

    def _expire(self) -> float | None:
        """End those whose time is over; the seconds until the next one's is, if any has a limit."""
        limited = [(s.deadline, s) for s in [*self._running, *self._waiting] if s.deadline is not None]
        if not limited:
            return None
        now = time.perf_counter()
        for sequence in [s for deadline, s in limited if deadline <= now]:
            error = TimedOut(f"no token came within the {sequence.request.max_seconds:g} s that the request may take")
            self._end(sequence, "length" if sequence.output else error)
        return max(0.001, min((deadline for deadline, _ in limited if deadline > now), default=now + 1) - now)

    def _admit(self) -> None:
        """Give free slots to those who wait, in order, as far as the KV cache has room for what is known of them."""
        for sequence in list(self._waiting):
            if not self._slots.free:
                return
            if not self._slots.is_free(sequence.request.slot):
                continue  # it waits for one slot alone, and holds nobody up
            needed = sum(s.n_rows for s in [*self._running, sequence])
            if self._running and (self._crowded or needed > self._context.n_ctx):
                return
            self._waiting.remove(sequence)
            self._running.append(sequence)
            self._slots.take(sequence)
            sequence.answer.usage, sequence.answer.slot = sequence.usage, sequence.slot
            sequence.answer.clock.admitted()
            self._lanes.took(sequence)
            self._tell(sequence)
            self._encode(sequence, sequence.cursor)

    def _decode(self, step: Step) -> None:
        """Decode a batch and sample for those who are at the end of their rows; see to it when that cannot be done."""
        encoding = self._encoder is not None and self._encoder.running
        self._context.use_threads(self._n_beside if encoding else self._n_threads)
        start = time.perf_counter()
        try:
            with kernels.at_most(max(1, self._n_threads - self._n_beside)) if encoding else nullcontext():
                done = self._context.decode(step.batch)
        except InputError as error:  # llama.cpp was not called, so the cache is as it was
            return self._separate(step, error)
        except DiptychError as error:
            for sequence in step.sequences:
                self._end(sequence, error, forget=True)
            return
        finally:
            end = time.perf_counter()
            self.work.decode_seconds += end - start
        if not done:
            if not self._slots.forget_idle():
                self._put_back()
            return
        self._lanes.decoded(step, start, end)
        self._advance(step, 1e3 * (end - start))
        wanting = [s for s, g in zip(step.sequences, step.batch.segments, strict=True) if g.wants_logits]
        for i, sequence in enumerate(wanting):
            self._sample(sequence, i)

    def _advance(self, step: Step, ms: float) -> None:
        self.work.count(step.kind, sum(segment.n_rows for segment in step.batch.segments))
        for sequence, segment in zip(step.sequences, step.batch.segments, strict=True):
            if not sequence.decoding:
                sequence.answer.clock.prefilled(step.kind, ms)
            sequence.cursor += segment.n_rows
            self._tell(sequence)

    def _tell(self, sequence: Sequence) -> None:
        """Tell who wants to know how far the prompt is."""
        if sequence.request.progress and not sequence.output:
            sequence.answer.progress(sequence.cursor)

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
        self.work.preemptions += 1
        self._crowded = True

    def _sample(self, sequence: Sequence, i: int) -> None:
        """Choose the next token from the `i`-th row of logits, and see whether it is the last."""
        assert sequence.sampler is not None
        start = time.perf_counter()
        try:
            request = sequence.request
            choice = sequence.sampler.sample(self._context, i, request.logprobs, after_chain=request.probs_after_chain)
        except DiptychError as error:
            return self._end(sequence, error)
        end = time.perf_counter()
        self.work.sample_seconds += end - start
        self._lanes.sampled(sequence, start, end)
        clock = sequence.answer.clock
        if clock.latest is not None:
            self.work.gap(end - clock.latest)
        clock.latest = end
        sequence.output.append(token := choice.token)
        ended = self._model.is_end(token) or token in request.stop_tokens
        stopped = sequence.answer.push(token, b"" if ended else self._piece(request, token), choice.logprob)
        if ended or stopped:
            self._end(sequence, "stop")
        elif sequence.out_of_room(self._context.n_ctx_slot) or sequence.out_of_time():
            self._end(sequence, "length")

    def _piece(self, request: Request, token: int) -> bytes:
        """The bytes of a token, as far as they are part of the answer."""
        piece = self._model.piece(token, special=request.keep_special)
        if piece or not request.special_texts:
            return piece
        whole = self._model.piece(token, special=True)
        return whole if whole.decode(errors="replace") in request.special_texts else b""

    def _add(self, sequence: Sequence) -> None:
        self._waiting.append(sequence)
        # pictures are encoded while others are being answered, save those that a slot seems to hold
        self._encode(sequence, self._slots.reusable(sequence))

    def _encode(self, sequence: Sequence, row: int) -> None:
        """Ask for the rows of every media chunk from `row` on, unless that was done before."""
        for i, start, chunk in sequence.media:
            if start >= row and i not in sequence.encodings:
                assert self._encoder is not None
                sequence.encodings[i] = encoding = self._encoder.submit(chunk, sequence.request.id)
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
        sequence.origins[i] = encoding.origin
        sequence.answer.clock.encode_ms += encoding.ms

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
                sequence.answer.finish(outcome, sequence.usage, sequence.media_uses)
            else:
                self.work.aborted += 1

    def _release(self, sequence: Sequence, forget: bool) -> None:
        for encoding in sequence.encodings.values():
            encoding.cancel()
        self._lanes.left(sequence)
        self._slots.give_back(sequence, forget=forget or not sequence.request.cache_prompt)
        self._crowded = False
        sequence.rows.clear()
        if sequence.sampler is not None:
            sequence.sampler.close()

    def _fail_all(self, error: EngineError) -> None:
        for sequence in [*self._running, *self._waiting]:
            self._end(sequence, error, forget=True)
        while self._slots.forget_idle():
            pass


def _beside(options: Options, n_threads: int) -> int:
    """Threads of the text half while the media half computes.

    llama.cpp's wait for each other at every operation, spinning. Where the system gives the core of one to somebody else
    all of them lose that time: with a core too few a token took thirty times as long as with half the threads.
    """
    if options.providers != ("CPUExecutionProvider",) or options.ep_libraries:
        return options.threads_while_encoding or n_threads  # it computes elsewhere
    return min(n_threads, options.threads_while_encoding or max(1, n_threads // 2))
