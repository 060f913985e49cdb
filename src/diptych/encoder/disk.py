"""Encoded media on disk, so that the same picture costs no run of the encoder at the next start either."""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from concurrent.futures import Future
from queue import SimpleQueue

from diptych import files
from diptych.encoder.folder import Folder
from diptych.encoder.identity import identity
from diptych.families.base import MediaHalf, Rows
from diptych.types import MediaChunk

log = logging.getLogger(__name__)

_MOST_WAITING = 64 << 20  # bytes of rows that may wait to be written; more are not kept, so that a slow disk takes no memory
_PAUSE = 60  # seconds without writing behind a failure


class Disk:
    """The rows of one media half in Diptych's own folder, in at most `max_bytes` together with those of others.

    Rows are written by a thread of its own, which also finds out what the half is known by: its files may have to be read for
    that. A half that is known by nothing has nothing here. A disk that fails costs a warning, once.
    """

    def __init__(self, half: MediaHalf, max_bytes: int) -> None:
        self._half = half
        self._folder = Folder(files.home() / "media", max_bytes)
        self._identity = Future[str | None]()
        self._line = SimpleQueue[tuple[bytes, Rows] | None]()
        self._lock = threading.Lock()
        self._n_waiting = 0  # bytes
        self._rest = 0.0  # when to write again
        self._warned = False
        self._thread = threading.Thread(target=self._loop, name="diptych-disk", daemon=True)
        self._thread.start()

    @property
    def n_bytes(self) -> int:
        """What all rows in the folder take, whoever wrote them, as of the last time something was written here."""
        return self._folder.n_bytes

    def get(self, chunk: MediaChunk) -> Rows | None:
        """The rows of a chunk, if they are there. It waits for the half to be known."""
        name = self._name(chunk.key)
        return self._folder.get(name, (chunk.n_tokens, self._half.n_embd)) if name else None

    def put(self, chunk: MediaChunk, rows: Rows) -> None:
        """Have the rows of a chunk written soon, unless too many wait for that already."""
        with self._lock:
            if self._n_waiting and self._n_waiting + rows.nbytes > _MOST_WAITING:
                return
            self._n_waiting += rows.nbytes
        self._line.put((chunk.key, rows))

    def close(self) -> None:
        """Return when all that waits is written; a second call does nothing."""
        self._line.put(None)
        self._thread.join()

    def _name(self, key: bytes) -> bytes | None:
        """What the rows of a chunk are known by among those of all media halves."""
        found = self._identity.result()
        return hashlib.sha256(found.encode() + key).digest() if found else None

    def _loop(self) -> None:
        self._identify()
        while (item := self._line.get()) is not None:
            key, rows = item
            try:
                self._write(key, rows)
            except Exception as error:
                self._fail(error)
            with self._lock:
                self._n_waiting -= rows.nbytes

    def _identify(self) -> None:
        found = None
        try:
            found = identity(self._half)
            self._folder.tidy()
        except Exception as error:
            self._fail(error)
        self._identity.set_result(found)

    def _write(self, key: bytes, rows: Rows) -> None:
        if (name := self._name(key)) and time.monotonic() >= self._rest:
            self._folder.put(name, rows)

    def _fail(self, error: Exception) -> None:
        self._rest = time.monotonic() + _PAUSE
        if not self._warned:
            said = error.strerror if isinstance(error, OSError) else error
            log.warning("encoded pictures are not kept on disk in %s: %s", self._folder.path, said)
        self._warned = True
