"""What an engine is doing, and what it has done since it was loaded."""

from __future__ import annotations

from dataclasses import dataclass

from diptych.encoder.encoder import Counters


@dataclass(frozen=True)
class Stats:
    """Requests that run and that wait for a slot; rows of the KV cache in use and in all; decode calls and the rows in
    them by kind, and the rows that were reused instead (`n_reused`); the encoder's counters."""

    running: int
    waiting: int
    n_slots: int
    n_ctx: int
    kv_rows: int
    n_reused: int
    token_calls: int
    media_calls: int
    token_rows: int
    media_rows: int
    encoder: Counters
