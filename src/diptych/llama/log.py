"""llama.cpp's log, line by line, as records of the logger `diptych.llama`; and what it said while a call failed."""

from __future__ import annotations

import logging
import re
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import c_void_p

import llama_cpp.llama_cpp as lib

logger = logging.getLogger("diptych.llama")

# ggml_log_level (the names in llama_cpp are of an older one); its INFO is a page of details a load, hence debug here
_LEVELS = {1: logging.DEBUG, 2: logging.DEBUG, 3: logging.WARNING, 4: logging.ERROR}
_CONTINUES = 5  # GGML_LOG_LEVEL_CONT: more of the line before
_EXPECTED = (
    "non-consecutive token position",  # M-RoPE's jump behind a picture, which a recurrent cache remarks on and takes
    "failed to find a memory slot",  # the cache is full: the engine makes room
    "model default pooling_type",  # rows are pooled by us
)
_LEAD = re.compile(r"^(?:[~\w:]+|error loading model): (?=\S)")  # the C++ function that a line begins with, and the obvious


class _State(threading.local):
    """A line that has not ended yet, its level, and where error lines go while somebody watches."""

    line = ""
    level = logging.DEBUG
    errors: list[str] | None = None


_state = _State()


def take(level: int, text: bytes, _data: object) -> None:
    """Collect text into lines. It is called from native code, which an exception must not reach."""
    if level != _CONTINUES:
        _state.level = _LEVELS.get(level, logging.DEBUG)
    *lines, _state.line = (_state.line + text.decode("utf-8", "replace")).split("\n")
    for line in lines:
        if line.strip(" ."):  # a row of dots is its progress bar
            _emit(_state.level, line.rstrip())


def _emit(level: int, line: str) -> None:
    if level == logging.ERROR and _state.errors is not None:
        _state.errors.append(line)
        level = logging.DEBUG  # the exception will say it; a log line as well would say it twice
    elif any(words in line for words in _EXPECTED):
        level = logging.DEBUG
    logger.log(level, "%s", line)


# llama.cpp keeps the pointer: were the callback collected, the next line it logs would crash the process.
_callback = lib.llama_log_callback(take)
_installed: list[weakref.finalize[..., object]] = []


def install() -> None:
    """Take over llama.cpp's log, once; it gets its own back when Python exits, after the last model is freed."""
    if not _installed:
        lib.llama_log_set(_callback, c_void_p())
        lib.llama_backend_init()
        _installed.append(weakref.finalize(take, lib.llama_log_set, lib.llama_log_callback(), c_void_p()))


@contextmanager
def watch() -> Iterator[list[str]]:
    """Collect the error lines of the calls inside, on this thread; `reason` makes one sentence of them."""
    _state.errors = []
    try:
        yield _state.errors
    finally:
        _state.errors = None


def reason(errors: list[str]) -> str:
    """What llama.cpp gave as the cause: its first error line, without the function names it begins with."""
    line = errors[0] if errors else "it gave no reason"
    while match := _LEAD.match(line):
        line = line[match.end() :]
    return line.strip()
