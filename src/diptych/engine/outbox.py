"""What clients are to be told, kept until the engine thread has nothing better to do than to compute.

Telling one wakes its thread, which takes Python's lock at once; told in the middle of a step, the step would wait for it.
"""

from __future__ import annotations

from collections.abc import Callable

from diptych.errors import DiptychError
from diptych.types import Output

Item = Output | DiptychError
Emit = Callable[[Item], None]


class Outbox:
    """Items in the order they were put; used by one thread."""

    def __init__(self) -> None:
        self._items: list[tuple[Emit, Item]] = []

    def put(self, emit: Emit, item: Item) -> None:
        """Keep an item for who listens at `emit`."""
        self._items.append((emit, item))

    def flush(self) -> None:
        """Tell everyone."""
        items, self._items = self._items, []
        for emit, item in items:
            emit(item)
