"""Which sequence has which place in the KV cache, and what of an earlier one there can be used again."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from diptych.engine.sequence import Sequence


class Cache(Protocol):
    """A KV cache. `remove` forgets positions `start` to `end` of a sequence, and says False where the model cannot."""

    def remove(self, seq_id: int, start: int, end: int = -1) -> bool: ...


@dataclass(eq=False)
class Slot:
    """A place in the KV cache, numbered with llama.cpp's sequence id, and the rows left in it when nobody has it.

    `media` maps the first row of each media chunk to its key and number of rows.
    """

    seq_id: int
    taken: bool = False
    used: int = 0  # when it was last given back, in givings-back
    ids: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    media: dict[int, tuple[bytes, int]] = field(default_factory=dict)


class Slots:
    """`n` slots of a cache. `n_reused` counts the rows that did not have to be decoded again."""

    def __init__(self, n: int, cache: Cache) -> None:
        self.n_reused = 0
        self._cache = cache
        self._slots = [Slot(i) for i in range(n)]
        self._returns = 0

    @property
    def free(self) -> list[Slot]:
        return [slot for slot in self._slots if not slot.taken]

    @property
    def n_idle_rows(self) -> int:
        """Rows left in the cache by sequences that have ended."""
        return sum(len(slot.ids) for slot in self.free)

    def reusable(self, sequence: Sequence) -> int:
        """The longest prefix of a sequence that a free slot holds, in rows."""
        return max((common_prefix(slot, sequence) for slot in self.free), default=0)

    def take(self, sequence: Sequence) -> None:
        """Give a sequence the free slot with the longest common prefix, or of equal ones that idle longest."""
        slot = max(self.free, key=lambda s: (common_prefix(s, sequence), -s.used))
        n = common_prefix(slot, sequence)
        if n < len(slot.ids) and not self._cache.remove(slot.seq_id, sequence.position(n)):
            # recurrent and hybrid models cannot forget a tail alone
            self._cache.remove(slot.seq_id, 0)
            n = 0
        slot.taken, slot.ids, slot.media = True, slot.ids[:0], {}
        sequence.slot, sequence.cursor, sequence.n_cached = slot.seq_id, n, n
        self.n_reused += n

    def give_back(self, sequence: Sequence, *, forget: bool = False) -> None:
        """Take the slot from a sequence; what the cache holds of it stays for others unless it is to be forgotten."""
        if sequence.slot is None:
            return
        slot = self._slots[sequence.slot]
        self._returns += 1
        slot.taken, slot.used = False, self._returns
        if forget:
            self._cache.remove(slot.seq_id, 0)
        else:
            slot.ids = sequence.ids[: sequence.cursor]
            slot.media = {row: (chunk.key, chunk.n_tokens) for _, row, chunk in sequence.media}
        sequence.slot, sequence.cursor = None, 0

    def forget_idle(self) -> bool:
        """Make room: forget the rows of the slot that idles longest. False when no free slot holds any."""
        slot = min((s for s in self.free if len(s.ids)), key=lambda s: s.used, default=None)
        if slot is None:
            return False
        self._cache.remove(slot.seq_id, 0)
        slot.ids, slot.media = slot.ids[:0], {}
        return True


def common_prefix(slot: Slot, sequence: Sequence) -> int:
    """How many rows of a sequence a slot holds: never a part of a media chunk, and never all, since logits come from
    a row that is decoded."""
    ids = sequence.ids
    n = min(len(slot.ids), len(ids))
    differ = np.flatnonzero(slot.ids[:n] != ids[:n])
    n = min(int(differ[0]) if len(differ) else n, len(ids) - 1)
    for _, row, chunk in sequence.media:
        # stand-ins hold 63 bits of the key only: the whole key decides
        if row < n and (row + chunk.n_tokens > n or slot.media.get(row) != (chunk.key, chunk.n_tokens)):
            return row
    return n
