"""The lattice of tokens over a picture: it follows from their number and the picture's size, and is never guessed."""

from __future__ import annotations

from dataclasses import astuple
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diptych.deploy.contract import cells, form
from diptych.deploy.deployment import Encoder
from diptych.deploy.header import Header, Port
from diptych.errors import FileError

side = st.integers(1, 40)


@given(side, side, st.integers(1, 64))
def test_a_lattice_of_square_cells_is_found_whatever_its_sides(h: int, w: int, unit: int) -> None:
    found = cells((w * unit, h * unit), h * w)
    assert found
    assert astuple(found) == (1, h, w)


@pytest.mark.parametrize(
    ("size", "n_tokens", "lattice"),
    [
        ((756, 336), 324, (1, 12, 27)),
        ((336, 756), 324, (1, 27, 12)),
        ((504, 504), 324, (1, 18, 18)),
        ((768, 768), 576, (1, 24, 24)),
        ((768, 768), 577, None),  # a class token too
        ((100, 50), 7, None),
        ((64, 64), 0, None),
    ],
)
def test_numbers_that_no_lattice_has_give_none(size: tuple[int, int], n_tokens: int, lattice: tuple[int, ...] | None) -> None:
    found = cells(size, n_tokens)
    assert (astuple(found) if found else None) == lattice


def test_a_graph_for_pictures_beyond_all_measure_is_refused() -> None:
    ports = (Port("x", "float32", (1, 3, 65536, 65536)),), (Port("y", "float32", (4, 8)),)
    with pytest.raises(FileError, match="65536x65536"):
        form(Encoder(Path("v.onnx")), Header(*ports, {}, {}, {}))
