"""A stand-in has the rows and positions it was asked for, and says what libmtmd looks for."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from diptych.llama.stand_in import stand_in


@pytest.mark.parametrize(("n_embd", "n_pos"), [(128, 1), (128, 4), (1, 1), (5120, 4), (3 * 1536, 1)])
def test_it_takes_rows_of_a_width_at_planes_of_positions(n_embd: int, n_pos: int) -> None:
    with stand_in(n_embd, n_pos) as text:
        assert (text.n_embd_inp, text.n_pos) == (n_embd, n_pos)


def test_special_tokens_are_one_and_all_else_is_bytes() -> None:
    with stand_in(64, 1) as text:
        assert [text.piece(t, special=True) for t in text.tokenize("<|vision_start|>\n\né<row_1>")] == [
            b"<|vision_start|>", b"\n\n", *(bytes([b]) for b in "é<row_1>".encode()),
        ]  # fmt: skip


def test_its_file_is_gone_at_once() -> None:
    before = set(Path(tempfile.gettempdir()).glob("diptych-*"))
    with stand_in(64, 1):
        assert set(Path(tempfile.gettempdir()).glob("diptych-*")) <= before
