"""The chunks that are to be encoded, and whose turn it is: requests in turn, the pieces of each in order."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import count, zip_longest
from typing import Literal

from diptych.encoder.limits import Limits, Run
from diptych.families.base import Rows
from diptych.types import MediaChunk, Piece


class Encoding(Future[Rows]):
    """The (n_tokens, n_embd) rows of a chunk, once encoded; they are read-only and may be shared.

    `ms` is the time it took in the encoder, its share of runs with others; 0 where nothing was run for it: another had
    asked for the same chunk before, or the rows come from the cache, in memory or on disk, or the client (`origin`).
    """

    ms: float = 0.0
    origin: Literal["encoder", "cache", "disk", "client"] = "encoder"


@dataclass(eq=False)
class Job:
    """A chunk in work, all who wait for it with the request they wait for, and its pieces' arrays as far as they are there.

    `sought` once it is known whether its rows are on disk.
    """

    chunk: MediaChunk
    waiters: list[tuple[str, Encoding]]
    arrays: dict[int, Rows] = field(default_factory=dict)
    seconds: float = 0.0
    sought: bool = False

    @property
    def missing(self) -> list[int]:
        return [i for i in range(len(self.chunk.pieces)) if i not in self.arrays]

    @property
    def owners(self) -> list[str]:
        """The requests that still wait for it."""
        return list(dict.fromkeys(owner for owner, waiter in self.waiters if not waiter.cancelled()))


@dataclass(frozen=True)
class Task:
    """A piece of a job."""

    job: Job
    index: int

    @property
    def piece(self) -> Piece:
        return self.job.chunk.pieces[self.index]

    @property
    def n_tokens(self) -> int:
        """Its share of the chunk's rows, by patches."""
        chunk = self.job.chunk
        total = sum(piece.n_patches for piece in chunk.pieces)
        return -(-chunk.n_tokens * self.piece.n_patches // max(total, 1))


class Work:
    """Jobs by chunk key, in the order they came. Not for several threads at once."""

    def __init__(self) -> None:
        self._jobs: dict[bytes, Job] = {}
        self._served: dict[str, int] = {}  # by owner: when it came, or was served last
        self._serving: list[str] = []
        self._clock = count()

    def __len__(self) -> int:
        return len(self._jobs)

    def __contains__(self, job: Job) -> bool:
        return self._jobs.get(job.chunk.key) is job

    def add(self, chunk: MediaChunk, owner: str, waiter: Encoding) -> bool:
        """Put a chunk in line for a request; False when it is in work already, and has one more who waits for it."""
        self._served.setdefault(owner, next(self._clock))
        job = self._jobs.setdefault(chunk.key, Job(chunk, []))
        job.waiters.append((owner, waiter))
        return len(job.waiters) == 1

    def holds(self, key: bytes) -> bool:
        """Whether a chunk is in work."""
        return key in self._jobs

    def jobs(self) -> list[Job]:
        """All that is in work."""
        return list(self._jobs.values())

    def end(self, job: Job) -> None:
        """Take a job out."""
        del self._jobs[job.chunk.key]

    def take(self, batch_key: Callable[[Piece], Hashable], limits: Limits) -> list[Task]:
        """The piece whose turn it is, and those that go in one run with it; none when nothing waits."""
        for owner in self._serving:
            self._served[owner] = next(self._clock)  # from the end of its run on, so that who came meanwhile goes first
        run = Run(batch_key, limits)
        out = [task for task in self._line() if run.add((task.piece,), task.n_tokens)]
        self._serving = [*dict.fromkeys(owner for task in reversed(out) for owner in task.job.owners)][::-1]  # by last piece
        return out

    def _line(self) -> list[Task]:
        """All pieces that wait: one of each request in turn, who was not served for longest first."""
        self._jobs = {key: job for key, job in self._jobs.items() if job.owners}
        lines: dict[str, list[Task]] = {}
        for job in self._jobs.values():
            for owner in job.owners:
                lines.setdefault(owner, []).extend(Task(job, i) for i in job.missing)
        self._served = {owner: self._served[owner] for owner in lines}
        rounds = zip_longest(*(lines[owner] for owner in sorted(lines, key=self._served.__getitem__)))
        return list(dict.fromkeys(task for tasks in rounds for task in tasks if task is not None))
