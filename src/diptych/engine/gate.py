"""A bounded queue: how many requests are inside, and when to ask again where that is too many."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from diptych.errors import Overloaded

_WEIGHT = 0.1  # of the newest request in the running mean of how long one takes


class Gate:
    """Lets `n_slots` requests in to be served and `max_queue` more to wait. `n_refused` counts those it turned away."""

    def __init__(self, n_slots: int, max_queue: int) -> None:
        self.n_inside = self.n_refused = 0
        self._n_slots, self._most = n_slots, n_slots + max_queue
        self._seconds = 1.0
        self._lock = threading.Lock()

    @contextmanager
    def inside(self) -> Iterator[None]:
        """For as long as a request is being prepared, waits or is answered. Raises Overloaded where it must not come in."""
        start = time.perf_counter()
        with self._lock:
            if self.n_inside >= self._most:
                self.n_refused += 1
                raise Overloaded(
                    f"{self.n_inside} requests are being served or wait, and {self._most} are the most; "
                    "ask again later, or start with a larger max_queue",
                    retry_after=self._seconds * (self.n_inside - self._n_slots + 1) / self._n_slots,
                )
            self.n_inside += 1
        try:
            yield
        finally:
            with self._lock:
                self.n_inside -= 1
                self._seconds += _WEIGHT * (time.perf_counter() - start - self._seconds)
