"""`diptych serve` as a user starts it, in a process of its own."""

from __future__ import annotations

import os
import queue
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

DIPTYCH = Path(sys.executable).parent / "diptych"
SECONDS = 90


class Process:
    """A server with what it has said so far. `url` is there once it listens."""

    def __init__(self, *arguments: str, **variables: str) -> None:
        environment = {**os.environ, "DIPTYCH_THREADS": "1", "DIPTYCH_MEDIA_BACKEND": "onnx", **variables}
        command = [str(DIPTYCH), "serve", *arguments]
        self.process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.lines: list[str] = []
        self._new = queue.SimpleQueue[str | None]()
        self._reading = threading.Thread(target=self._read)
        self._reading.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line.rstrip("\n"))
            self._new.put(self.lines[-1])
        self._new.put(None)

    def said(self, pattern: str) -> re.Match[str]:
        """The first line from here on that matches."""
        end = time.monotonic() + SECONDS
        while (line := self._new.get(timeout=end - time.monotonic())) is not None:
            if found := re.search(pattern, line):
                return found
        raise AssertionError(f"the server ended and did not say {pattern}: {self.lines}")

    def listens(self) -> str:
        """Its address, once it can be called."""
        return self.said(r"listening on (http://\S+?)\"?}?$")[1]

    def ready(self) -> httpx.Client:
        """A client, once requests are taken."""
        url = self.listens()
        self.said("is ready")
        return httpx.Client(base_url=url, timeout=SECONDS)

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def ends(self, seconds: float = SECONDS) -> int:
        """The code that it ends with."""
        code = self.process.wait(seconds)
        self._reading.join(5)
        return code

    @property
    def text(self) -> str:
        return "\n".join(self.lines)


@contextmanager
def started(*arguments: str, **variables: str) -> Iterator[Process]:
    """A server of the reader on a free port, which is ended if it still runs."""
    found = Process("reader", "--port", "0", *arguments, **variables)
    try:
        yield found
    finally:
        if found.process.poll() is None:
            found.process.kill()
        found.ends()
        assert found.process.stdout is not None
        found.process.stdout.close()
        assert found.process.stderr is not None
        found.process.stderr.close()
