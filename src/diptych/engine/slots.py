"""Which sequence has which place in the KV cache, and what of another one there can be used again."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from diptych.engine.sequence import Sequence
from diptych.errors import InputError, Unavailable


class Cache(Protocol):
    """A KV cache, `unified` where sequences can share rows.

    `remove` forgets positions `start` to `end` of a sequence, and says False where the model cannot; `copy` lets one
    sequence have the positions up to `end` of another, and says False where that cannot be done. `state` is what it holds
    of a sequence, which `set_state` puts under another; that says False where it cannot.
    """

    unified: bool

    def remove(self, seq_id: int, start: int, end: int = -1) -> bool: ...
    def copy(self, source: int, target: int, end: int) -> bool: ...
    def state(self, seq_id: int) -> NDArray[np.uint8]: ...
    def set_state(self, seq_id: int, data: NDArray[np.uint8]) -> bool: ...


@dataclass(frozen=True, eq=False)
class Held:
    """Rows in the cache: their ids, and of each media chunk's first row its key and number of rows."""

    ids: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    media: dict[int, tuple[bytes, int]] = field(default_factory=dict)


@dataclass(eq=False)
class Slot:
    """A place in the KV cache, numbered with llama.cpp's sequence id: who has it, or what is left in it."""

    seq_id: int
    sequence: Sequence | None = None
    left: Held = field(default_factory=Held)
    used: int = 0  # when it was last given back, in givings-back

    @property
    def held(self) -> Held:
        """What the cache holds under its number."""
        return self.left if self.sequence is None else _held(self.sequence)


class Slots:
    """`n` slots of a cache. `n_reused` counts the rows that did not have to be decoded again."""

    def __init__(self, n: int, cache: Cache) -> None:
        self.n_reused = 0
        self._cache = cache
        self._slots = [Slot(i) for i in range(n)]
        self._returns = 0

    @property
    def free(self) -> list[Slot]:
        return [slot for slot in self._slots if slot.sequence is None]

    @property
    def n_idle_rows(self) -> int:
        """Rows left in the cache by sequences that have ended."""
        return sum(len(slot.left.ids) for slot in self.free)

    def is_free(self, number: int | None) -> bool:
        """Whether the slot of this number can be had; of None, whether any can."""
        return bool(self.free) if number is None else self._slots[number % len(self._slots)].sequence is None

    def reusable(self, sequence: Sequence) -> int:
        """The longest prefix of a sequence that any slot holds, in rows."""
        if not sequence.request.cache_prompt:
            return 0
        return max(common_prefix(slot.held, sequence) for slot in self._slots)

    def take(self, sequence: Sequence) -> None:
        """Give a sequence a free slot, and leave there what of its prompt any slot holds.

        Where another slot, whoever has it, holds more of the prefix, that is copied; no row is computed twice.
        """
        wanted = sequence.request.slot
        slot = self._chosen(sequence) if wanted is None else self._slots[wanted % len(self._slots)]
        n = self._fill(slot, sequence) if sequence.request.cache_prompt else self._forget(slot)
        slot.sequence, slot.left = sequence, Held()
        sequence.slot, sequence.cursor = slot.seq_id, n
        if not sequence.output:
            sequence.n_cached = n
        self.n_reused += n

    def give_back(self, sequence: Sequence, *, forget: bool = False) -> None:
        """Take the slot from a sequence; what the cache holds of it stays for others unless it is to be forgotten."""
        if sequence.slot is None:
            return
        slot = self._slots[sequence.slot]
        self._returns += 1
        slot.left = _held(sequence)
        slot.sequence, slot.used = None, self._returns
        if forget:
            self._forget(slot)
        sequence.slot, sequence.cursor = None, 0

    def state(self, number: int) -> tuple[Held, NDArray[np.uint8]]:
        """What was left in a free slot, and the cache's bytes of it. Raises InputError where there is no such slot,
        Unavailable where somebody has it."""
        slot = self._idle(number)
        return slot.left, self._cache.state(slot.seq_id)

    def restore(self, number: int, held: Held, data: NDArray[np.uint8]) -> None:
        """Leave in a free slot what `state` gave, forgetting what others left where there is no room. Raises InputError for
        what the cache does not take, and as `state` does."""
        slot = self._idle(number)
        self._forget(slot)
        while not self._cache.set_state(slot.seq_id, data):
            if not self.forget_idle():
                raise InputError(
                    f"the KV cache does not take these {len(held.ids)} tokens: they are of another model or KV cache, or too "
                    "many; give the model, --ctx-size and cache types they were saved with"
                )
        self._returns += 1
        slot.left, slot.used = held, self._returns

    def erase(self, number: int) -> int:
        """Forget what was left in a free slot; how many rows that was. Raises as `state` does."""
        slot = self._idle(number)
        n = len(slot.left.ids)
        self._forget(slot)
        return n

    def forget_idle(self) -> bool:
        """Make room: forget the rows of the slot that idles longest. False when no free slot holds any."""
        slot = min((s for s in self.free if len(s.left.ids)), key=lambda s: s.used, default=None)
        if slot is not None:
            self._forget(slot)
        return slot is not None

    def _chosen(self, sequence: Sequence) -> Slot:
        """The free slot with the longest common prefix.

        One that would lose over a quarter of what it holds is left as it is, since that conversation may go on, and its
        prefix copied: then it is the slot that holds nothing, or idles longest.
        """
        oldest = min(self.free, key=lambda s: (len(s.left.ids) > 0, s.used))
        if not sequence.request.cache_prompt:
            return oldest
        best = max(self.free, key=lambda s: (common_prefix(s.left, sequence), -s.used))
        kept = common_prefix(best.left, sequence)
        return best if kept and (4 * kept >= 3 * len(best.left.ids) or not self._cache.unified) else oldest

    def _idle(self, number: int) -> Slot:
        if not 0 <= number < len(self._slots):
            raise InputError(f"there is no slot {str(number)[:20]}; there are {len(self._slots)}, from 0 on")
        if self._slots[number].sequence is not None:
            raise Unavailable(f"slot {number} is answering somebody; ask again when it is idle")
        return self._slots[number]

    def _fill(self, slot: Slot, sequence: Sequence) -> int:
        """Leave in a slot what a sequence can use, its own or another slot's; how many rows that is."""
        n, held = common_prefix(slot.left, sequence), len(slot.left.ids)
        other = max(self._slots, key=lambda s: common_prefix(s.held, sequence))
        if copied := self._cache.unified and (more := common_prefix(other.held, sequence)) > n:
            self._forget(slot)
            n = more if self._cache.copy(other.seq_id, slot.seq_id, sequence.position(more)) else 0
        # recurrent and hybrid models cannot forget a tail alone, and have one in what was copied of them too
        if (copied or n < held) and not self._cache.remove(slot.seq_id, sequence.position(n)):
            return self._forget(slot)
        return n

    def _forget(self, slot: Slot) -> int:
        """Empty a slot; 0, the rows that are left."""
        self._cache.remove(slot.seq_id, 0)
        slot.left = Held()
        return 0


def common_prefix(held: Held, sequence: Sequence) -> int:
    """How many rows of a sequence are held: never a part of a media chunk, and never all, since logits come from a row
    that is decoded."""
    ids = sequence.ids
    n = min(len(held.ids), len(ids))
    differ = np.flatnonzero(held.ids[:n] != ids[:n])
    n = min(int(differ[0]) if len(differ) else n, len(ids) - 1)
    for _, row, chunk in sequence.media:
        # stand-ins hold 63 bits of the key only: the whole key decides
        if row < n and (row + chunk.n_tokens > n or held.media.get(row) != (chunk.key, chunk.n_tokens)):
            return row
    return n


def _held(sequence: Sequence) -> Held:
    return Held(sequence.ids[: sequence.cursor], {row: (chunk.key, chunk.n_tokens) for _, row, chunk in sequence.media})
