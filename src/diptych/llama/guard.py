"""Calls that must not end the process: llama.cpp aborts where it finds a fault of its own, and often a file is at fault.

Each guarded call has a thread of its own. Where llama.cpp would abort, that thread stops for good, with whatever it
holds, and the caller gets an error. What was in work inside is lost; the rest of the process goes on.
"""

from __future__ import annotations

import ctypes
import logging
import re
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

import llama_cpp.llama_cpp as lib

from diptych.errors import EngineError
from diptych.llama import log

T = TypeVar("T")
logger = logging.getLogger("diptych.llama")

_PLACE = re.compile(r"^\S*?([^\s/\\]+:\d+: )")  # the path of the C++ file, from the machine it was built on


class _Here(threading.local):
    """Who waits for the call of this thread."""

    outcome: Future[Any] | None = None


_here = _Here()


def guarded(call: Callable[[], T]) -> tuple[T, list[str]]:
    """What a call of llama.cpp's gives, and the error lines it logged. Raises EngineError where it would have aborted."""
    _install()
    outcome: Future[tuple[T, list[str]]] = Future()
    threading.Thread(target=_run, args=(call, outcome), name="diptych-guarded", daemon=True).start()
    return outcome.result()


def _run(call: Callable[[], T], outcome: Future[tuple[T, list[str]]]) -> None:
    _here.outcome = outcome
    try:
        with log.watch() as errors:
            made = call()
        outcome.set_result((made, errors))
    except BaseException as error:
        outcome.set_exception(error)


def _stop(message: bytes | None) -> None:
    """llama.cpp is about to abort: it does so when this returns."""
    text = _PLACE.sub(r"\1", (message or b"").decode(errors="replace")).strip()
    if _here.outcome is None:
        logger.critical("llama.cpp ends the process: %s", text)
        return
    _here.outcome.set_exception(EngineError(f"llama.cpp gave up: {text}"))
    threading.Event().wait()  # for ever


_callback = ctypes.CFUNCTYPE(None, ctypes.c_char_p)(_stop)  # kept: llama.cpp has its address
_installed: list[bool] = []


def _install() -> None:
    if not _installed:
        # of a library that libllama brings along; where it cannot be reached through it, calls are made all the same
        if (register := getattr(lib._lib, "ggml_set_abort_callback", None)) is not None:
            register(_callback)
        _installed.append(True)
