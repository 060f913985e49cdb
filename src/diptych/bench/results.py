"""What was measured: rows of times, their medians and quartiles, and how they compare; to JSON and back."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from diptych.errors import FileError

FORMAT = 1  # of the JSON


@dataclass(frozen=True)
class Row:
    """Times of one measure on one side, in seconds. `tokens` are those made or taken in a run, `load_s` seconds to load (the
    median), `peak_bytes` the most memory a process had; `origin` tells where the rows of the picture came from."""

    measure: str
    picture: str | None
    side: str
    seconds: tuple[float, ...]
    tokens: int
    load_s: float
    peak_bytes: int
    origin: str | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """The first and the third, between runs where they fall there."""
        if len(self.seconds) < 2:
            return self.median, self.median
        first, _, third = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return first, third

    @property
    def title(self) -> str:
        return ", ".join([self.measure, *([self.picture] if self.picture else [])])


@dataclass(frozen=True)
class Failure:
    """What could not be measured, and why."""

    measure: str
    side: str
    message: str


@dataclass(frozen=True)
class Results:
    """All rows, in the order they are told; those of one title are compared with the first of them.

    `machine` and `versions` are facts by name, `notes` lines about what stands in the way of comparing.
    """

    model: str
    machine: Mapping[str, str]
    versions: Mapping[str, str]
    rounds: int
    runs: int
    rows: tuple[Row, ...] = ()
    failures: tuple[Failure, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def conditions(self) -> str:
        """What the times were taken on, and how, in a line."""
        threads = self.machine.get("threads", "?")
        times = f"median of {self.rounds} × {self.runs} runs"
        return f"{self.machine.get('processor', '?')} · {threads} thread{'s' * (threads != '1')} · {times}"

    def like(self, title: str) -> list[Row]:
        """The rows that are compared under a title."""
        return [row for row in self.rows if row.title == title]

    @property
    def titles(self) -> list[str]:
        return list(dict.fromkeys(row.title for row in self.rows))

    def speed(self, row: Row) -> float:
        """How many times as fast as the first row of its title."""
        return self.like(row.title)[0].median / row.median

    def memory(self, row: Row) -> float:
        """How many times the memory of the first row of its title."""
        return row.peak_bytes / self.like(row.title)[0].peak_bytes

    def to_json(self) -> dict[str, Any]:
        """All of it, with what follows from the times."""
        rows = [
            {
                **asdict(row), "median_s": row.median, "quartiles_s": row.quartiles,
                "tokens_per_second": row.tokens / row.median, "speed_ratio": self.speed(row), "memory_ratio": self.memory(row),
            }
            for row in self.rows
        ]  # fmt: skip
        return {"diptych_bench": FORMAT, **asdict(self), "rows": rows}


def with_notes(results: Results) -> Results:
    """The same, with a note for each title whose sides did not make the same number of tokens, or had no rows cached."""
    notes = [
        f"{row.title}: on {row.side} the rows came from the {row.origin}, not from the cache"
        for row in results.rows
        if row.measure.endswith("cached") and row.origin != "cache"
    ]
    for title in results.titles:
        counts = {row.side: row.tokens for row in results.like(title)}
        if len(set(counts.values())) > 1:
            told = ", ".join(f"{side} {n}" for side, n in counts.items())
            notes.append(
                f"{title}: not the same number of tokens ({told}); set --max-pixels or --image-max-tokens, or give a --size"
            )
    return replace(results, notes=tuple(notes))


def read(path: Path) -> Results:
    """Results from the JSON of a file. Raises FileError when it is missing or not what `to_json` gives."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror}; check the path") from error
    except (ValueError, RecursionError) as error:
        raise FileError(f"{path} is not JSON; give what `diptych bench --json` printed") from error
    if not isinstance(found, dict) or found.get("diptych_bench") != FORMAT:
        raise FileError(f"{path} holds no results of this version; give what `diptych bench --json` printed")
    try:
        return _results(found)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FileError(f"{path} is damaged: {type(error).__name__} {error}; measure again") from error


def _results(found: Mapping[str, Any]) -> Results:
    return Results(
        model=str(found["model"]),
        machine={str(k): str(v) for k, v in found["machine"].items()},
        versions={str(k): str(v) for k, v in found["versions"].items()},
        rounds=int(found["rounds"]),
        runs=int(found["runs"]),
        rows=tuple(_row(row) for row in found["rows"]),
        failures=tuple(Failure(str(f["measure"]), str(f["side"]), str(f["message"])) for f in found["failures"]),
        notes=tuple(map(str, found["notes"])),
    )


def _row(found: Mapping[str, Any]) -> Row:
    def text(name: str) -> str | None:
        return None if found[name] is None else str(found[name])

    return Row(
        measure=str(found["measure"]),
        picture=text("picture"),
        side=str(found["side"]),
        seconds=_positive(found["seconds"]),
        tokens=int(found["tokens"]),
        load_s=float(found["load_s"]),
        peak_bytes=int(*_positive([found["peak_bytes"]])),
        origin=text("origin"),
    )


def _positive(numbers: Sequence[object]) -> tuple[float, ...]:
    found = tuple(float(n) for n in numbers if isinstance(n, int | float))
    if not found or len(found) < len(numbers) or not all(0 < n < math.inf for n in found):
        raise ValueError("a row has no numbers over 0 where they are needed")
    return found
