"""How other threads reach the engine thread: they leave calls, and it makes them between two steps."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

Call = Callable[[], None]


class Inbox:
    """Calls in the order they were left."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[Call | None] = queue.SimpleQueue()
        self._gate = threading.Lock()  # nothing comes behind the end
        self._closed = False

    def put(self, call: Call) -> bool:
        """Leave a call; False once closed, when it will not be made."""
        with self._gate:
            if not self._closed:
                self._calls.put(call)
            return not self._closed

    def close(self) -> None:
        """Take no more calls; a second time does nothing."""
        with self._gate:
            if not self._closed:
                self._calls.put(None)
            self._closed = True

    def take(self, wait: bool, seconds: float | None = None) -> bool:
        """Make all calls that are there, and wait for the first where there is none if asked to, at most `seconds`; False
        at the end."""
        while True:
            try:
                call = self._calls.get(block=wait, timeout=seconds)
            except queue.Empty:
                return True
            wait = False
            if call is None:
                return False
            call()
