"""What an engine is doing, and what it has done since it was loaded."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field

from diptych.encoder.encoder import Counters
from diptych.engine.sequence import Kind

GAPS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)  # seconds between two tokens of an answer


@dataclass
class Work:
    """What the engine thread has done: decode calls and the rows in them by kind, the seconds its steps took, and what
    became of sequences. `schedule_seconds` is all of a step that is neither llama.cpp's decode nor the sampling; `gaps`
    counts the times between two tokens of an answer up to each of `GAPS`, and longer ones, `gap_seconds` is their sum."""

    token_calls: int = 0
    media_calls: int = 0
    token_rows: int = 0
    media_rows: int = 0
    schedule_seconds: float = 0.0
    decode_seconds: float = 0.0
    sample_seconds: float = 0.0
    preemptions: int = 0
    aborted: int = 0
    gaps: list[int] = field(default_factory=lambda: [0] * (len(GAPS) + 1))
    gap_seconds: float = 0.0

    def gap(self, seconds: float) -> None:
        """A token came this long behind the one before it."""
        self.gaps[bisect_left(GAPS, seconds)] += 1
        self.gap_seconds += seconds

    def count(self, kind: Kind, rows: int) -> None:
        """A decode call."""
        if kind == "tokens":
            self.token_calls += 1
            self.token_rows += rows
        else:
            self.media_calls += 1
            self.media_rows += rows


@dataclass(frozen=True)
class Stats:
    """Requests that run, that wait for a slot, that are being prepared, and that were turned away; rows of the KV cache in
    use and in all, and those that were reused instead of decoded (`n_reused`); what the engine and the encoder did."""

    running: int
    waiting: int
    preparing: int
    refused: int
    n_slots: int
    n_ctx: int
    kv_rows: int
    n_reused: int
    token_calls: int
    media_calls: int
    token_rows: int
    media_rows: int
    schedule_seconds: float
    decode_seconds: float
    sample_seconds: float
    preemptions: int
    aborted: int
    gaps: list[int]
    gap_seconds: float
    encoder: Counters = field(default_factory=Counters)
