"""Encoded media in memory, so that the same picture elsewhere costs no run of the encoder."""

from __future__ import annotations

import threading
from collections import OrderedDict

from diptych.families.base import Rows


class Cache:
    """Rows of chunks by chunk key, which covers content and settings: those used last, in at most `max_bytes`.

    Rows that are handed out stay valid when they have to make room here. Any thread may call.
    """

    def __init__(self, max_bytes: int) -> None:
        """With 0 bytes nothing is kept."""
        self.max_bytes = max_bytes
        self.n_bytes = 0
        self.n_evicted = 0
        self._rows: OrderedDict[bytes, Rows] = OrderedDict()  # the one used last is at the end
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._rows)

    def get(self, key: bytes) -> Rows | None:
        """The (n_tokens, n_embd) rows of a chunk, if they are still here."""
        with self._lock:
            if key in self._rows:
                self._rows.move_to_end(key)
            return self._rows.get(key)

    def put(self, key: bytes, rows: Rows) -> None:
        """Keep the rows of a chunk, which have their memory to themselves; rows larger than the cache are not kept."""
        if rows.nbytes > self.max_bytes:
            return
        with self._lock:
            if (old := self._rows.pop(key, None)) is not None:
                self.n_bytes -= old.nbytes
            self._rows[key] = rows
            self.n_bytes += rows.nbytes
            while self.n_bytes > self.max_bytes:
                self.n_bytes -= self._rows.popitem(last=False)[1].nbytes
                self.n_evicted += 1
