"""llama.cpp's log ends up in Python's."""

from __future__ import annotations

import gc
import logging

import pytest

from diptych.llama import log
from diptych.llama.context import Context
from diptych.llama.model import TextModel
from diptych.options import Options


def test_lines_that_come_in_pieces_are_joined(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "diptych.llama")
    for level, text in (3, b"part: one "), (5, b"and two\nnext"), (5, b" line\n"), (2, b"....\n"), (4, b"caf\xc3\xa9\xff\n"):
        log.take(level, text, None)
    assert [(r.levelname, r.getMessage()) for r in caplog.records] == [
        ("WARNING", "part: one and two"),
        ("WARNING", "next line"),
        ("ERROR", "café\ufffd"),
    ]


def test_a_jump_of_positions_is_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    """llama.cpp remarks on it behind every picture of a model that has M-RoPE and a recurrent state."""
    caplog.set_level(logging.DEBUG, "diptych.llama")
    log.take(3, b"find_slot: non-consecutive token position 41 after 40 for sequence 0 with 12 new tokens\n", None)
    assert [r.levelname for r in caplog.records] == ["DEBUG"]


def test_an_error_that_is_watched_becomes_the_reason_and_not_a_second_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "diptych.llama")
    with log.watch() as errors:
        log.take(4, b"llama_model_load: error loading model: no such thing\nllama_x: failed\n", None)
    assert log.reason(errors) == "no such thing"
    assert not caplog.records
    assert log.reason([]) == "it gave no reason"


def test_the_callback_outlives_its_registration(text: TextModel) -> None:
    """llama.cpp keeps the pointer only: a callback that is collected crashes the process at the next line."""
    log.install()
    gc.collect()
    for _ in range(3):
        Context(text, Options(n_ctx=256)).close()
