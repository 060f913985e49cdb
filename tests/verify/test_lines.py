"""What counts as equal, and what is found when something is not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from diptych.verify.lines import PIXELS, compared
from diptych.verify.side import MEDIA, Answer, Side, lead, parting

ROWS = np.random.default_rng(0).standard_normal((4, 8), np.float32)
SIDE = Side(
    rows=ROWS,
    tokens=(7, MEDIA, MEDIA, MEDIA, MEDIA, 8),
    positions=np.array([[0, 1, 1, 1, 1, 3], [0, 1, 1, 2, 2, 3], [0, 1, 2, 1, 2, 3], [0] * 6], np.int32),
    pixels=np.linspace(-1, 1, 48, dtype=np.float32),
    answer=Answer((1, 2, 3), (0.5, 0.002, 0.5)),
)


def found(theirs: Side, rows: float = 1e-5, lead: float | None = 1e-3) -> dict[str, bool | None]:
    return {line.what: line.ok for line in compared("a", "b", SIDE, theirs, rows, lead)}


def test_equal_sides_are_within_every_bound() -> None:
    assert found(SIDE) == dict.fromkeys(("pixels", "tokens", "positions", "embeddings", "answer"), True)


@pytest.mark.parametrize(
    ("theirs", "wrong"),
    [
        (replace(SIDE, pixels=SIDE.pixels + 3 * PIXELS), "pixels"),
        (replace(SIDE, pixels=SIDE.pixels[:-1]), "pixels"),
        (replace(SIDE, tokens=(7, MEDIA, MEDIA, MEDIA, 8, 8)), "tokens"),
        (replace(SIDE, tokens=(6, *SIDE.tokens[1:])), "tokens"),
        (replace(SIDE, positions=SIDE.positions + np.array([[0, 0, 0, 0, 0, 1]], np.int32)), "positions"),
        (replace(SIDE, positions=SIDE.positions[[0, 2, 1, 3]]), "positions"),
        (replace(SIDE, positions=SIDE.positions[:, 1:]), "positions"),
        (replace(SIDE, rows=ROWS + 1e-3), "embeddings"),
        (replace(SIDE, rows=ROWS[::-1]), "embeddings"),
        (replace(SIDE, rows=ROWS[:3]), "embeddings"),
        (replace(SIDE, rows=np.concatenate([ROWS, ROWS], 1)), "embeddings"),
        (replace(SIDE, rows=np.full_like(ROWS, np.nan)), "embeddings"),
        (replace(SIDE, answer=Answer((1, 4, 3), (0.5, 0.002, 0.5))), "answer"),
    ],
)
def test_what_differs_is_found_and_nothing_else(theirs: Side, wrong: str) -> None:
    assert {what for what, ok in found(theirs).items() if not ok} == {wrong}


def test_the_fourth_plane_is_llama_cpps_own() -> None:
    assert found(replace(SIDE, positions=SIDE.positions[:3]))["positions"]


def test_patches_in_another_order_are_the_same_pixels() -> None:
    assert found(replace(SIDE, pixels=SIDE.pixels[::-1]))["pixels"]


def test_a_token_that_could_be_either_breaks_no_bound() -> None:
    theirs = replace(SIDE, answer=Answer((1, 4, 3), (0.5, 0.002, 0.5)))
    assert found(theirs, lead=0.01)["answer"]
    assert found(theirs, lead=None)["answer"] is None


def test_what_a_side_cannot_tell_is_not_compared() -> None:
    assert set(found(replace(SIDE, pixels=None, answer=None))) == {"tokens", "positions", "embeddings"}


def test_a_lead_is_a_share_of_the_largest_logit() -> None:
    assert lead(np.array([1.0, -10.0, 4.0, 3.0])) == pytest.approx(0.1)
    assert parting((1, 2, 3), (1, 2, 4)) == 2
    assert parting((1, 2), (1, 2, 4)) == 2
