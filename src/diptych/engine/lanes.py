"""The engine's part of a trace: a lane for its thread, and one for each slot."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from diptych.trace import Trace

if TYPE_CHECKING:
    from diptych.engine.scheduler import Step
    from diptych.engine.sequence import Sequence

_THREAD = "engine"
_GAP = 5e-4  # seconds; between two steps of a slot that does not wait there is less


class Lanes:
    """What each slot does: prefill, media prefill, decode, sample, and waiting where there is nothing of that."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self._since: dict[int, float] = {}  # by slot, when its last span ended

    def took(self, sequence: Sequence) -> None:
        """A sequence got a slot."""
        if self._trace.on and sequence.slot is not None:
            self._since[sequence.slot] = now = time.perf_counter()
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
            self._since.pop(sequence.slot, None)

    def _did(self, sequence: Sequence, name: str, start: float, end: float, **args: int) -> None:
        if (slot := sequence.slot) is None:
            return
        since = self._since.get(slot, start)
        if start - since > _GAP:
            self._trace.complete("waiting", _lane(slot), since, start, request=sequence.request.id)
        self._trace.complete(name, _lane(slot), start, end, request=sequence.request.id, **args)
        self._since[slot] = end


def _lane(slot: int) -> str:
    return f"slot {slot}"
