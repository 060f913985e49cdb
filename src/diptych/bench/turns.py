"""Run the measurements: sides take turns, a process each, and no two at once."""

from __future__ import annotations

import json
import pickle
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from diptych.bench.job import Job
from diptych.bench.results import Failure, Row
from diptych.errors import EngineError, InputError

CHILD = "diptych.bench.child"
Tell = Callable[[str, int, int], None]  # what comes next, processes done, processes in all


@dataclass
class _Kept:
    """What the processes of one job told, round by round."""

    job: Job
    told: list[Mapping[str, Any]] = field(default_factory=list)
    failure: Failure | None = None

    @property
    def name(self) -> str:
        return self.job.side.name if self.job.side else "text half"


def run(jobs: list[list[Job]], tell: Tell = lambda _what, _done, _total: None) -> tuple[list[Row], list[Failure]]:
    """Measure every list of jobs, whose sides take turns in each of its rounds; what could be measured, and what not.

    A side that fails is not tried again in its list. Raises InputError where the first job cannot be done as asked.
    """
    rows: list[Row] = []
    failures: list[Failure] = []
    done, total = 0, sum(job.amounts.rounds for group in jobs for job in group)
    for group in jobs:
        kept = [_Kept(job) for job in group]
        for n in range(group[0].amounts.rounds if group else 0):
            for one in kept:
                tell(f"{one.job.title} · {one.name} · round {n + 1}", done, total)
                if one.failure is None:
                    _once(one, first=not rows and not any(other.told for other in kept))
                done += 1
        rows += _in_order([row for one in kept for row in _rows(one)])
        failures += [one.failure for one in kept if one.failure]
    tell("", total, total)
    return rows, failures


def measured(job: Job) -> Mapping[str, Any]:
    """What a process of its own tells of a job (see `child`). It is gone when this returns, whatever happens.

    Raises InputError for a job that cannot be done, EngineError where it fails or the process dies.
    """
    command = [sys.executable, "-m", CHILD]
    with (
        tempfile.TemporaryFile() as said,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said) as process,
    ):
        assert process.stdin
        assert process.stdout
        try:
            process.stdin.write(pickle.dumps(job))
            process.stdin.flush()  # and it stays open: when it ends, so does the process
            written = process.stdout.read()
            code = process.wait()
        except BrokenPipeError:
            written, code = b"", process.wait()
        finally:
            process.kill()
        said.seek(0)
        return _told(written, code, said.read())


def _told(written: bytes, code: int, said: bytes) -> Mapping[str, Any]:
    """What a process wrote before it ended with `code`, having `said` something on standard error."""
    if code or not written:
        raise EngineError(_death(code, said.decode(errors="replace")))
    told: Mapping[str, Any] = json.loads(written)
    if "error" in told:
        raise (InputError if told["fatal"] else EngineError)(told["error"])
    return told


def _death(code: int, said: str) -> str:
    if code == -signal.SIGKILL:
        return "the process was killed, most likely as memory ran out; measure a smaller picture or precision"
    if code < 0:
        return f"the process died of {signal.Signals(-code).name}"
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return f"the process failed: {lines[-1] if lines else f'it ended with {code} and said nothing'}"


def _once(one: _Kept, *, first: bool) -> None:
    """Measure one side once. What is wrong with the job ends it all as long as there is nothing to lose."""
    try:
        one.told.append(measured(one.job))
    except (InputError, EngineError) as error:
        if first and isinstance(error, InputError):
            raise
        one.failure = Failure(one.job.title, one.name, str(error))


def _rows(one: _Kept) -> Iterator[Row]:
    """A row for each figure, with the times of all rounds."""
    if not one.told or one.failure:
        return
    first, picture = one.told[0], one.job.picture
    for i, figure in enumerate(first["figures"]):
        yield Row(
            measure=figure["name"],
            picture=picture.name if picture else None,
            side=_label(one, first),
            seconds=tuple(s for told in one.told for s in told["figures"][i]["seconds"]),
            tokens=figure["tokens"],
            load_s=statistics.median(told["load_s"] for told in one.told),
            peak_bytes=max(told["peak_bytes"] for told in one.told),
            origin=figure["origin"],
        )


def _label(one: _Kept, told: Mapping[str, Any]) -> str:
    """What ran, which is not always what was asked for."""
    side = one.job.side
    if side is None or told["backend"] == "mtmd":
        return told["backend"] or one.name
    return f"{told['backend']} {told['precision']}" + (" (auto)" if side.precision == "auto" else "")


def _in_order(rows: list[Row]) -> list[Row]:
    """Rows of one title behind each other."""
    titles = list(dict.fromkeys(row.title for row in rows))
    return sorted(rows, key=lambda row: titles.index(row.title))
