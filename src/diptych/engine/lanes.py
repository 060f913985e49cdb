"""The engine's part of a trace: a lane for its thread, and one for each slot."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from diptych.trace import Trace

if TYPE_CHECKING:
    from diptych.engine.scheduler import Step
    from diptych.engine.sequence import Sequence

_THREAD = "engine"
_GAP = 5e-4  # seconds; between two steps of a slot that does not wait there is less


@dataclass
class _Stay:
    """What is known of the sequence that has a slot: when its last span began and ended."""

    ended: float
    begun: float | None = None


class Lanes:
    """What each slot does: prefill, media prefill, decode, sample, and waiting where there is nothing of that.

    The arrows of a request lead from its preparation and its pictures to the first span of its slot, and end at the last.
    """

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self._stays: dict[int, _Stay] = {}  # by slot

    def took(self, sequence: Sequence) -> None:
        """A sequence got a slot."""
        if self._trace.on and sequence.slot is not None:
            now = time.perf_counter()
            self._stays[sequence.slot] = _Stay(now)
            waited = 1e3 * (now - sequence.answer.clock.came)
            self._trace.instant("took the slot", _lane(sequence.slot), request=sequence.request.id, waited_ms=waited)

    def decoded(self, step: Step, start: float, end: float) -> None:
        """A decode call was made."""
        if not self._trace.on:
            return
        rows = [segment.n_rows for segment in step.batch.segments]
        self._trace.complete(f"decode {step.kind}", _THREAD, start, end, rows=sum(rows), sequences=len(rows))
        for sequence, n in zip(step.sequences, rows, strict=True):
            name = "decode" if sequence.decoding else "media prefill" if step.kind == "media" else "prefill"
            self._did(sequence, name, start, end, rows=n)

    def sampled(self, sequence: Sequence, start: float, end: float) -> None:
        """A token was chosen."""
        if self._trace.on:
            self._did(sequence, "sample", start, end)
            self._trace.complete("sample", _THREAD, start, end)

    def left(self, sequence: Sequence) -> None:
        """A sequence is about to give its slot back."""
        if self._trace.on and sequence.slot is not None:
            stay = self._stays.pop(sequence.slot, None)
            if stay is not None and stay.begun is not None:
                self._trace.flow(sequence.request.id, "end", _lane(sequence.slot), stay.begun)

    def _did(self, sequence: Sequence, name: str, start: float, end: float, **args: int) -> None:
        if (slot := sequence.slot) is None:
            return
        lane, stay = _lane(slot), self._stays.setdefault(slot, _Stay(start))
        if start - stay.ended > _GAP:
            self._trace.complete("waiting", lane, stay.ended, start, request=sequence.request.id)
        self._trace.complete(name, lane, start, end, request=sequence.request.id, **args)
        if stay.begun is None:
            self._trace.flow(sequence.request.id, "step", lane, start)
        stay.begun, stay.ended = start, end


def _lane(slot: int) -> str:
    return f"slot {slot}"
