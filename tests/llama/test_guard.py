"""Where llama.cpp would abort, the caller gets an error and the process goes on."""

from __future__ import annotations

import subprocess
import sys
import threading

import llama_cpp.llama_cpp as lib
import pytest

from diptych.errors import EngineError
from diptych.llama.guard import guarded

ABORT = 'lib._lib.ggml_abort(b"/build/vendor/x.cpp", 7, b"GGML_ASSERT(%s) failed", b"a == b")'


def abort() -> None:
    eval(ABORT)  # the text that the process of its own below runs


def test_a_call_gives_what_it_gives_and_its_errors() -> None:
    assert guarded(lambda: 7) == (7, [])


def test_an_error_of_the_call_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        guarded(lambda: 1 // 0)


def test_an_abort_becomes_an_error_and_calls_go_on() -> None:
    for _ in range(3):
        with pytest.raises(EngineError, match=r"^llama.cpp gave up: x.cpp:7: GGML_ASSERT\(a == b\) failed$"):
            guarded(abort)
        assert guarded(lambda: lib.llama_max_devices() > 0)[0]


def test_aborts_on_several_threads_reach_each_its_own_caller() -> None:
    caught: list[str] = []

    def one() -> None:
        try:
            guarded(abort)
        except EngineError as error:
            caught.append(str(error))

    threads = [threading.Thread(target=one) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(caught) == 8


@pytest.mark.parametrize(("call", "code"), [(f"print(guarded(lambda: {ABORT}))", 1), (ABORT, -6)])
def test_the_process_ends_as_it_should_with_a_thread_stuck_and_aborts_where_no_guard_stands(call: str, code: int) -> None:
    source = (
        "import logging; logging.basicConfig()\nimport llama_cpp.llama_cpp as lib\nfrom diptych.llama.guard import guarded\n"
        f"guarded(lambda: 1)\n{call}"
    )
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code, done.stderr
    assert "GGML_ASSERT(a == b) failed" in done.stderr
    assert ("llama.cpp ends the process" in done.stderr) == (code == -6)
