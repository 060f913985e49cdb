"""What an engine is doing, and what it has done since it was loaded."""

from __future__ import annotations

from dataclasses import dataclass, field

from diptych.encoder.encoder import Counters
from diptych.engine.sequence import Kind


@dataclass
class Work:
    """What the engine thread has done: decode calls and the rows in them by kind, the seconds its steps took, and what
    became of sequences. `schedule_seconds` is all of a step that is neither llama.cpp's decode nor the sampling."""

    token_calls: int = 0
    media_calls: int = 0
    token_rows: int = 0
    media_rows: int = 0
    schedule_seconds: float = 0.0
    decode_seconds: float = 0.0
    sample_seconds: float = 0.0
    preemptions: int = 0
    aborted: int = 0

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
    encoder: Counters = field(default_factory=Counters)
