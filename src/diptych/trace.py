"""What happened when: spans, counters and arrows, in a file for https://ui.perfetto.dev or chrome://tracing.

The file is a JSON array with an event a line. Whole lines are written, at most a second behind the newest, and closing
ends the array; a process that dies leaves it open, and both viewers take it so.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from io import FileIO
from pathlib import Path
from typing import Literal
from zlib import crc32

from diptych.errors import OutputError

log = logging.getLogger(__name__)

Arg = str | int | float | list[str]
_BUFFER = 65536  # characters kept before they are written
_FLUSH = 1.0  # seconds that an event is kept at most, while others come
_BEGIN = '[\n{"name":"process_name"'  # how each of our files starts
_PHASES = {"start": "s", "step": "t", "end": "f"}
_NOTHING: AbstractContextManager[None] = nullcontext()


class Trace:
    """Keeps nothing of what it is told; `TraceFile` does.

    Times are those of `time.perf_counter`, in seconds. Each lane is drawn as a line of its own: spans in it may stand in
    one another, and must not cross. A lane without a name is the calling thread's own. Any thread may call.
    """

    on = False
    ops = False  # whether the operators of the media half are asked for

    def span(self, name: str, lane: str = "", **args: Arg) -> AbstractContextManager[None]:
        """The time that a `with` block takes."""
        return _NOTHING

    def complete(self, name: str, lane: str, start: float, end: float, **args: Arg) -> None:
        """A span that is over."""

    def instant(self, name: str, lane: str = "", **args: Arg) -> None:
        """Something that takes no time and happens now."""

    def counter(self, name: str, value: float) -> None:
        """How many there are of something from now on, drawn as a curve."""

    def flow(self, request: str, step: Literal["start", "step", "end"], lane: str, at: float) -> None:
        """A point of the arrows that lead through the spans of one request; it belongs to the span in `lane` around `at`."""

    def close(self) -> None:
        """End the file; what comes later is dropped, and a second call does nothing."""


OFF = Trace()


class TraceFile(Trace):
    """Writes events to a file as they come; memory holds the last of them only."""

    on = True

    def __init__(self, path: Path, *, ops: bool = False) -> None:
        """Raises OutputError when the file cannot be written, or is there and is no trace."""
        self.ops = ops
        self._path, self._pid = path, os.getpid()
        self._lock = threading.Lock()
        self._lanes: dict[str, int] = {}
        self._buffer: list[str] = []
        self._room = _BUFFER  # characters until they are written
        self._origin = self._flushed = time.perf_counter()
        name = time.strftime("diptych, begun %Y-%m-%d %H:%M:%S")
        first = f'{_BEGIN},"ph":"M","pid":{self._pid},"args":{{"name":"{name}"}}}}'.encode()
        self._file = _begun(path, first)
        self._size = len(first)  # bytes of whole lines in the file

    def span(self, name: str, lane: str = "", **args: Arg) -> AbstractContextManager[None]:
        """The time that a `with` block takes."""
        return _Span(self, name, lane or _own_lane(), args)

    def complete(self, name: str, lane: str, start: float, end: float, **args: Arg) -> None:
        """A span that is over."""
        ts = self._us(start)
        dur = round(max(self._us(end) - ts, 0), 3)  # so that spans which follow each other touch, and do not overlap
        self._put({"name": name, "ph": "X", "ts": ts, "dur": dur, "args": args}, lane or _own_lane())

    def instant(self, name: str, lane: str = "", **args: Arg) -> None:
        """Something that takes no time and happens now."""
        self._put({"name": name, "ph": "i", "s": "t", "ts": self._us(time.perf_counter()), "args": args}, lane or _own_lane())

    def counter(self, name: str, value: float) -> None:
        """How many there are of something from now on."""
        self._put({"name": name, "ph": "C", "ts": self._us(time.perf_counter()), "args": {"value": value}}, None)

    def flow(self, request: str, step: Literal["start", "step", "end"], lane: str, at: float) -> None:
        """A point of the arrows of one request; one without an id has none."""
        if not request:
            return
        event = {"name": "request", "cat": "request", "ph": _PHASES[step], "bp": "e", "ts": self._us(at)}
        self._put({**event, "id": crc32(request.encode(errors="replace"))}, lane or _own_lane())  # Perfetto takes numbers alone

    def close(self) -> None:
        """End the file; what comes later is dropped, and a second call does nothing."""
        with self._lock:
            if self.on:
                self._flush()
            if self.on:  # still
                self._end()

    def _us(self, at: float) -> float:
        """Microseconds since the trace began."""
        return round(1e6 * (at - self._origin), 3)

    def _put(self, event: dict[str, object], lane: str | None) -> None:
        with self._lock:
            if not self.on:
                return
            event["pid"] = self._pid
            event["tid"] = 0 if lane is None else self._lanes.get(lane) or self._named(lane)
            self._add(event)
            if self._room <= 0 or time.perf_counter() - self._flushed > _FLUSH:
                self._flush()

    def _named(self, lane: str) -> int:
        """The number of a new lane; the viewers show its name, and lanes in the order they came."""
        number = self._lanes[lane] = len(self._lanes) + 1
        for name, args in (("thread_name", {"name": lane}), ("thread_sort_index", {"sort_index": number})):
            self._add({"name": name, "ph": "M", "pid": self._pid, "tid": number, "args": args})
        return number

    def _add(self, event: dict[str, object]) -> None:
        line = json.dumps(event, separators=(",", ":"), default=str)
        self._buffer.append(line)
        self._room -= len(line)

    def _flush(self) -> None:
        """Write what is there; where that fails, say so once and end the file behind the last whole line."""
        lines, self._buffer, self._room, self._flushed = self._buffer, [], _BUFFER, time.perf_counter()
        try:
            self._write("".join(f",\n{line}" for line in lines).encode())
        except OSError as error:
            log.warning("the trace %s ends here, it cannot be written any more: %s", self._path, error.strerror)
            with suppress(OSError):
                self._file.truncate(self._size)
                self._file.seek(self._size)
            self._end()

    def _end(self) -> None:
        """Close the array, or leave it open where even that cannot be written."""
        self.on = False
        with suppress(OSError), self._file:
            self._write(b"\n]\n")

    def _write(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[self._file.write(rest) :]
        self._size += len(data)


class _Span(AbstractContextManager[None]):
    """Tells a trace how long a block took."""

    __slots__ = ("_args", "_lane", "_name", "_start", "_trace")

    def __init__(self, trace: Trace, name: str, lane: str, args: dict[str, Arg]) -> None:
        self._trace, self._name, self._lane, self._args = trace, name, lane, args

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *_error: object) -> None:
        self._trace.complete(self._name, self._lane, self._start, time.perf_counter(), **self._args)


def open_trace(path: Path | None, *, ops: bool = False) -> Trace:
    """A trace in a file, or none. Raises OutputError when the file cannot be written, or is there and is no trace."""
    return TraceFile(path, ops=ops) if path else OFF


def _begun(path: Path, first: bytes) -> FileIO:
    """The file with its first line."""
    with ExitStack() as stack:
        try:
            if path.is_file():
                _check_old(path)
            file = stack.enter_context(FileIO(path, "w"))
            file.write(first)
        except OSError as error:
            raise OutputError(f"cannot write the trace {path}: {error.strerror}; name a file you may write to") from error
        stack.pop_all()
    return file


def _check_old(path: Path) -> None:
    with path.open("rb") as file:
        if file.read(len(_BEGIN)) not in (b"", _BEGIN.encode()):
            raise OutputError(f"{path} is there and is no trace of Diptych; name another file for the trace")


def _own_lane() -> str:
    return threading.current_thread().name.removeprefix("diptych-")
