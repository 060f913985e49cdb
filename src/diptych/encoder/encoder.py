"""The encoder thread: chunks in, rows out. It packs the pieces of all that wait into runs of the media half."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal
from weakref import WeakValueDictionary

from diptych.encoder.cache import Cache
from diptych.encoder.disk import Disk
from diptych.encoder.limits import Limits
from diptych.encoder.rows import check_rows, checked
from diptych.encoder.work import Encoding, Job, Task, Work
from diptych.errors import DiptychError, EngineError, UnusableMedia
from diptych.families.base import MediaHalf, Rows
from diptych.trace import OFF, Trace
from diptych.types import MediaChunk, Piece

__all__ = ["Counters", "Encoder", "Encoding"]

log = logging.getLogger(__name__)

_LANE = "encoder"  # in the trace
_MIB = 1 << 20


@dataclass(frozen=True)
class Counters:
    """What the encoder has done: runs of the graph, pieces and patches in them, seconds in them and in joining; and the
    chunks in work.

    A hit is a chunk whose rows were in the cache, in memory or on disk, a miss one that had to be encoded; neither counts
    where another had asked for the chunk and it was in work.
    """

    runs: int = 0
    pieces: int = 0
    patches: int = 0
    encode_seconds: float = 0.0
    join_seconds: float = 0.0
    waiting: int = 0
    cache_hits: int = 0
    cache_disk_hits: int = 0
    cache_misses: int = 0
    cache_evictions: int = 0
    cache_entries: int = 0
    cache_bytes: int = 0
    cache_disk_bytes: int = 0


class Encoder:
    """Encodes chunks on its own thread, several in one run where they fit within the limits together.

    The rows of those used last are kept, in at most `cache_bytes`, and on a disk, which is closed with the encoder.
    """

    def __init__(
        self, half: MediaHalf, limits: Limits, cache_bytes: int = 0, trace: Trace = OFF, disk: Disk | None = None
    ) -> None:
        self._half = half
        self._limits = limits
        self._trace = trace
        self._work = Work()
        self._cache = Cache(cache_bytes)
        self._disk = disk
        self._ours = WeakValueDictionary[int, Rows]()  # by id: all rows made here that somebody still has
        self._changed = threading.Condition()
        self._closed = False
        self._counters = Counters()
        self.running = False  # the media half computes just now
        self._thread = threading.Thread(target=self._loop, name="diptych-encoder", daemon=True)
        self._thread.start()

    def submit(self, chunk: MediaChunk, owner: str = "") -> Encoding:
        """Ask for the rows of a chunk; one that is cached or in work already is not encoded again. Cancel what is not needed.

        `owner` is the id of the request that asks: requests are served in turn, what one asks for in order.

        The future raises EngineError when the media half fails or gives rows that would spoil the KV cache, UnusableMedia
        when the chunk brings such rows.
        """
        out = Encoding()
        with self._changed:
            if self._closed:
                raise EngineError("the encoder is closed; load the engine again before using it")
            rows = chunk.rows
            if rows is None and not self._work.holds(chunk.key):
                rows = self._cache.get(chunk.key)
            if rows is None:
                self._add(chunk, owner, out)
                return out
            ours = self._ours.get(id(rows)) is rows
            self._count(cache_hits=int(ours))
        self._trace.instant("cache hit" if ours else "rows of the client", _LANE, request=owner)
        out.origin = "cache" if ours else "client"
        self._give(out, chunk, rows)
        return out

    def known(self, key: bytes) -> Rows | None:
        """The rows of a chunk that is cached. A chunk that brings them (`MediaChunk.rows`) needs no pieces."""
        return self._cache.get(key)

    @property
    def counters(self) -> Counters:
        with self._changed:
            cache = self._cache
            return replace(
                self._counters, waiting=len(self._work),
                cache_evictions=cache.n_evicted, cache_entries=len(cache), cache_bytes=cache.n_bytes,
                cache_disk_bytes=self._disk.n_bytes if self._disk else 0,
            )  # fmt: skip

    def close(self) -> None:
        """End the thread behind the run it is in, and fail what waits; a second call does nothing."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()
        if self._disk:
            self._disk.close()

    def _add(self, chunk: MediaChunk, owner: str, out: Encoding) -> None:
        """Put a chunk in line."""
        if not chunk.pieces:
            out.set_exception(EngineError("a media chunk has neither pieces to encode nor rows"))
        elif self._work.add(chunk, owner, out):
            self._trace.counter("chunks in the encoder", len(self._work))
            self._changed.notify()

    def _give(self, out: Encoding, chunk: MediaChunk, rows: Rows) -> None:
        """Hand out rows that are there already."""
        out.set_running_or_notify_cancel()
        try:
            if out.origin == "client":
                check_rows(rows, chunk, self._half.n_embd)
            out.set_result(rows)
        except UnusableMedia as error:
            out.set_exception(error)

    def _loop(self) -> None:
        end = "the encoder was closed before the picture was encoded; load the engine again"
        while not self._closed:
            try:
                self._step(self._next())
            except Exception as error:  # a fault in here must not leave anyone waiting for ever
                log.exception("the encoder thread failed")
                self._fail_all(f"the encoder failed: {type(error).__name__}: {error}")
        self._fail_all(end)

    def _next(self) -> list[Task]:
        """Pieces that go in one run, of chunks that are not on disk; none once closed."""
        while not self._closed:
            with self._changed:
                new = [job for job in self._work.jobs() if job.owners and not job.sought]
                if not new:
                    if tasks := self._work.take(self._half.batch_key, self._limits):
                        return tasks
                    if not self._closed:
                        self._changed.wait()
            for job in new:
                self._seek(job)
        return []

    def _seek(self, job: Job) -> None:
        """Look for the rows of a chunk on disk, and hand them out where they are."""
        job.sought = True
        if self._disk:
            with self._trace.span("disk", _LANE, tokens=job.chunk.n_tokens, requests=job.owners):
                rows = self._disk.get(job.chunk)
            if rows is not None:
                self._count(cache_disk_hits=1)
                return self._hand_out(job, rows, "disk")
        self._count(cache_misses=1)

    def _step(self, tasks: Sequence[Task]) -> None:
        """Run pieces together; where that fails one by one, so that a bad one does not take its neighbours along."""
        tasks = [task for task in tasks if task.job in self._work]  # not failed with an earlier piece
        try:
            if tasks:
                self._run(tasks)
        except Exception as error:
            log.info("a run of %d pieces failed: %s", len(tasks), error)
            if len(tasks) == 1:
                return self._fail(tasks[0].job, error)
            for task in tasks:
                self._step([task])

    def _run(self, tasks: Sequence[Task]) -> None:
        """Encode pieces together, and hand out the chunks that are now complete."""
        pieces, start = [task.piece for task in tasks], time.perf_counter()
        total = sum(piece.n_patches for piece in pieces)
        requests = list(dict.fromkeys(owner for task in tasks for owner in task.job.owners))
        with self._trace.span("encode", _LANE, pieces=len(pieces), patches=total, requests=requests):
            for request in requests:
                self._trace.flow(request, "step", _LANE, time.perf_counter())
            arrays = self._encoded(pieces)
        seconds = time.perf_counter() - start
        self._count(runs=1, pieces=len(pieces), patches=total, encode_seconds=seconds)
        for task, array in zip(tasks, arrays, strict=True):
            task.job.arrays[task.index] = array
            task.job.seconds += seconds * task.piece.n_patches / max(total, 1)
        for job in dict.fromkeys(task.job for task in tasks):
            if not job.missing:
                self._deliver(job)

    def _encoded(self, pieces: Sequence[Piece]) -> Sequence[Rows]:
        self.running = True
        try:
            return self._half.encode(pieces)
        finally:
            self.running = False

    def _deliver(self, job: Job) -> None:
        """Join, check and keep the rows of a chunk, and hand them to all who wait for it."""
        start = time.perf_counter()
        try:
            with self._trace.span("join", _LANE, tokens=job.chunk.n_tokens):
                rows = self._joined(job)
        except Exception as error:
            return self._fail(job, error)
        self._count(join_seconds=time.perf_counter() - start)
        self._hand_out(job, rows, "encoder")
        if self._disk:
            self._disk.put(job.chunk, rows)

    def _hand_out(self, job: Job, rows: Rows, origin: Literal["encoder", "disk"]) -> None:
        """Keep the rows of a chunk, and give them to all who wait."""
        self._ours[id(rows)] = rows
        self._cache.put(job.chunk.key, rows)
        self._trace.counter("MiB of encoded media", self._cache.n_bytes / _MIB)
        for i, waiter in enumerate(self._ended(job)):
            waiter.ms, waiter.origin = 0.0 if i else 1e3 * job.seconds, origin
            waiter.set_result(rows)

    def _joined(self, job: Job) -> Rows:
        joined = self._half.join(job.chunk, [job.arrays[i] for i in range(len(job.arrays))])
        rows = checked(joined, job.chunk, self._half.n_embd)
        return rows

    def _fail(self, job: Job, error: Exception) -> None:
        if not isinstance(error, DiptychError):
            size = "×".join(map(str, job.chunk.used))
            error = EngineError(f"the media half failed on a picture of {size} pixels: {type(error).__name__}: {error}")
        for waiter in self._ended(job):
            waiter.set_exception(error)

    def _fail_all(self, message: str) -> None:
        for job in self._work.jobs():
            self._fail(job, EngineError(message))

    def _ended(self, job: Job) -> list[Encoding]:
        """Take a job out of the work; those who still wait for it."""
        with self._changed:
            self._work.end(job)
            self._trace.counter("chunks in the encoder", len(self._work))
        return [waiter for _, waiter in job.waiters if waiter.set_running_or_notify_cancel()]

    def _count(self, **more: float) -> None:
        with self._changed:
            old = self._counters
            self._counters = replace(old, **{name: getattr(old, name) + n for name, n in more.items()})
