"""The encoder thread: chunks in, rows out. It packs the pieces of all that wait into runs of the media half."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace

import numpy as np

from diptych.errors import DiptychError, EngineError
from diptych.families.base import MediaHalf, Rows
from diptych.types import MediaChunk, Piece

log = logging.getLogger(__name__)


class Encoding(Future[Rows]):
    """The (n_tokens, n_embd) rows of a chunk, once encoded. `ms` is the time it took in the encoder, its share of runs
    with others; 0 where another had asked for the same chunk before."""

    ms: float = 0.0


@dataclass(frozen=True)
class Counters:
    """What the encoder has done: runs of the graph, pieces and patches in them, seconds; and the chunks in work."""

    runs: int = 0
    pieces: int = 0
    patches: int = 0
    seconds: float = 0.0
    waiting: int = 0


@dataclass(eq=False)
class _Job:
    """A chunk in work, all who wait for it, and its pieces' arrays as far as they are there."""

    chunk: MediaChunk
    waiters: list[Encoding]
    arrays: dict[int, Rows] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def missing(self) -> list[int]:
        return [i for i in range(len(self.chunk.pieces)) if i not in self.arrays]


_Task = tuple[_Job, int]  # a piece of a job


class Encoder:
    """Encodes chunks on its own thread, several in one run where they fit and have at most `max_patches` together."""

    def __init__(self, half: MediaHalf, max_patches: int) -> None:
        self._half = half
        self._max_patches = max_patches
        self._work: dict[bytes, _Job] = {}  # by chunk key, in the order they came
        self._changed = threading.Condition()
        self._closed = False
        self._counters = Counters()
        self._thread = threading.Thread(target=self._loop, name="diptych-encoder", daemon=True)
        self._thread.start()

    def submit(self, chunk: MediaChunk) -> Encoding:
        """Ask for the rows of a chunk; one that is in work already is not encoded again. Cancel what is not needed.

        The future raises EngineError when the media half fails or gives rows that would spoil the KV cache.
        """
        out = Encoding()
        with self._changed:
            if self._closed:
                raise EngineError("the encoder is closed; load the engine again before using it")
            if (job := self._work.get(chunk.key)) is not None:
                job.waiters.append(out)
            else:
                self._work[chunk.key] = _Job(chunk, [out])
                self._changed.notify()
        return out

    @property
    def counters(self) -> Counters:
        with self._changed:
            return replace(self._counters, waiting=len(self._work))

    def close(self) -> None:
        """End the thread behind the run it is in, and fail what waits; a second call does nothing."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _loop(self) -> None:
        end = "the encoder was closed before the picture was encoded; load the engine again"
        while not self._closed:
            try:
                self._step(self._next())
            except Exception as error:  # a fault in here must not leave anyone waiting for ever
                log.exception("the encoder thread failed")
                self._fail_all(f"the encoder failed: {type(error).__name__}: {error}")
        self._fail_all(end)

    def _step(self, tasks: Sequence[_Task]) -> None:
        """Run pieces together; where that fails one by one, so that a bad one does not take its neighbours along."""
        tasks = [task for task in tasks if self._work.get(task[0].chunk.key) is task[0]]  # not failed with an earlier piece
        try:
            if tasks:
                self._run(tasks)
        except Exception as error:
            log.info("a run of %d pieces failed: %s", len(tasks), error)
            if len(tasks) == 1:
                return self._fail(tasks[0][0], error)
            for task in tasks:
                self._step([task])

    def _next(self) -> list[_Task]:
        """The oldest piece that waits and those that can go with it, up to the patch budget; none once closed."""
        with self._changed:
            while not self._closed:
                for key in [k for k, job in self._work.items() if all(w.cancelled() for w in job.waiters)]:
                    del self._work[key]
                if waiting := [(job, i) for job in self._work.values() for i in job.missing]:
                    return self._cut(waiting)
                self._changed.wait()
        return []

    def _cut(self, waiting: Sequence[_Task]) -> list[_Task]:
        group, out, room = self._half.batch_key(_piece(waiting[0])), [waiting[0]], self._max_patches
        room -= _piece(waiting[0]).n_patches
        for task in waiting[1:]:
            if self._half.batch_key(_piece(task)) == group and (n := _piece(task).n_patches) <= room:
                out.append(task)
                room -= n
        return out

    def _run(self, tasks: Sequence[_Task]) -> None:
        """Encode pieces together, and hand out the chunks that are now complete."""
        pieces, start = [_piece(task) for task in tasks], time.perf_counter()
        arrays = self._half.encode(pieces)
        seconds, total = time.perf_counter() - start, sum(piece.n_patches for piece in pieces)
        self._count(len(pieces), total, seconds)
        for (job, i), piece, array in zip(tasks, pieces, arrays, strict=True):
            job.arrays[i] = array
            job.seconds += seconds * piece.n_patches / max(total, 1)
        for job in dict.fromkeys(job for job, _ in tasks):
            if not job.missing:
                self._deliver(job)

    def _deliver(self, job: _Job) -> None:
        try:
            rows = self._half.join(job.chunk, [job.arrays[i] for i in range(len(job.arrays))])
            check_rows(rows, job.chunk, self._half.n_embd)
        except Exception as error:
            return self._fail(job, error)
        for i, waiter in enumerate(self._ended(job)):
            waiter.ms = 0.0 if i else 1e3 * job.seconds
            waiter.set_result(rows)

    def _fail(self, job: _Job, error: Exception) -> None:
        if not isinstance(error, DiptychError):
            size = "×".join(map(str, job.chunk.used))
            error = EngineError(f"the media half failed on a picture of {size} pixels: {type(error).__name__}: {error}")
        for waiter in self._ended(job):
            waiter.set_exception(error)

    def _fail_all(self, message: str) -> None:
        for job in list(self._work.values()):
            self._fail(job, EngineError(message))

    def _ended(self, job: _Job) -> list[Encoding]:
        """Take a job out of the work; those who still wait for it."""
        with self._changed:
            self._work.pop(job.chunk.key)
        return [waiter for waiter in job.waiters if waiter.set_running_or_notify_cancel()]

    def _count(self, pieces: int, patches: int, seconds: float) -> None:
        with self._changed:
            old = self._counters
            self._counters = Counters(old.runs + 1, old.pieces + pieces, old.patches + patches, old.seconds + seconds)


def check_rows(rows: Rows, chunk: MediaChunk, n_embd: int) -> None:
    """Raise EngineError for rows of the wrong shape, or such that spoil a KV cache: not finite, or all zeros."""
    if rows.shape != (chunk.n_tokens, n_embd):
        raise EngineError(f"the media half gave rows {rows.shape} where {(chunk.n_tokens, n_embd)} were expected")
    if not np.isfinite(rows).all():
        raise EngineError("the media half gave rows that are not finite numbers; check the mmproj, or use precision f32")
    if not rows.any(axis=1).all():
        raise EngineError("the media half gave rows of zeros alone; check the mmproj")


def _piece(task: _Task) -> Piece:
    job, i = task
    return job.chunk.pieces[i]
