"""Work on items side by side: while a thread does one, those that are free begin the next."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable
from concurrent.futures import Executor, Future
from contextlib import suppress
from types import TracebackType
from typing import Generic, Self, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Ahead(Generic[K, V]):
    """`work` for items in their order, `n` of them begun ahead in `pool`.

    What the pool has no thread for is done by who asks, so that its own threads may ask too: none waits for what nobody
    does. Items that are equal are begun once. Leave the `with` block to drop what nobody asked for.
    """

    def __init__(self, work: Callable[[K], V], items: Iterable[K], pool: Executor, n: int) -> None:
        self._work, self._pool, self._n = work, pool, n
        self._left = deque(dict.fromkeys(items))
        self._begun: dict[K, Future[V]] = {}

    def __call__(self, item: K) -> V:
        """What `work` makes of an item. Raises what it raises."""
        begun = self._begun.pop(item, None)
        if begun is None:
            with suppress(ValueError):  # it was asked for before, or is none of the items
                self._left.remove(item)
        self._begin()
        if begun is None or begun.cancel():
            return self._work(item)
        self._help(begun)
        return begun.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for future in self._begun.values():
            future.cancel()

    def _help(self, awaited: Future[V]) -> None:
        """Do what waits for a thread rather than wait for one."""
        for item, future in list(self._begun.items()):
            if awaited.done():
                return
            if future.cancel():
                self._begun[item] = _done(self._work, item)

    def _begin(self) -> None:
        """Hand the next items to the pool."""
        while self._left and len(self._begun) < self._n:
            item = self._left.popleft()
            with suppress(RuntimeError):  # the pool is closed
                self._begun[item] = self._pool.submit(self._work, item)


def _done(work: Callable[[K], V], item: K) -> Future[V]:
    out: Future[V] = Future()
    try:
        out.set_result(work(item))
    except Exception as error:
        out.set_exception(error)
    return out
