"""Rows of encoded media: what is wrong with them, and in what form they are kept."""

from __future__ import annotations

import weakref

import numpy as np
import pytest

from diptych.encoder.rows import beside, check_rows, fault, kept
from diptych.errors import UnusableMedia
from diptych.families.base import Rows
from diptych.types import Grid, MediaChunk


def rows() -> Rows:
    return np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)


def spoilt(row: int, column: int | slice, value: float) -> Rows:
    out = rows()
    out[row, column] = value
    return out


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (rows()[1:], r"rows \(2, 8\) where \(3, 8\)"),
        (rows()[:, 1:], r"rows \(3, 7\) where"),
        (rows()[None], r"rows \(1, 3, 8\) where"),
        (rows().reshape(-1), r"rows \(24,\) where"),
        (spoilt(2, 0, np.nan), "row 2 is not finite"),
        (spoilt(1, 7, -np.inf), "row 1 is not finite"),
        (spoilt(0, slice(None), 0), "row 0 is of zeros alone"),
        (spoilt(1, 0, 1e30), "row 1 is out of range"),  # its square is no float32
        (spoilt(1, slice(None), 1e-40), "row 1 is out of range"),
    ],
)
def test_rows_of_a_client_that_would_spoil_the_cache_are_refused(bad: Rows, words: str) -> None:
    chunk = MediaChunk("image", 3, Grid(1, 1, 3), bytes(32), ())
    check_rows(rows(), chunk, 8)
    with pytest.raises(UnusableMedia, match=words) as caught:
        check_rows(bad, chunk, 8)
    assert caught.value.status == 422


def test_rows_that_are_kept_are_read_only_and_hold_no_more_memory_than_theirs() -> None:
    run = np.arange(1, 81, dtype=np.float32).reshape(10, 8)
    one = kept(run[2:4])
    assert one.base is None
    np.testing.assert_array_equal(one, run[2:4])
    whole = kept(run)
    assert np.shares_memory(whole, run)
    assert run.flags.writeable
    for made in (one, whole):
        with pytest.raises(ValueError, match="read-only"):
            made[0] = 0


def test_rows_of_half_precision_are_kept_as_float32() -> None:
    half = rows().astype(np.float16)
    assert kept(half).dtype == np.float32
    assert fault(half, (3, 8)) is None


def test_parts_stand_beside_each_other_and_each_is_free_once_it_is_copied() -> None:
    parts = [rows(), rows().astype(np.float16), rows()[:, :3] + 1]
    wanted = np.hstack(parts)
    gone = [weakref.ref(part) for part in parts]
    joined = beside(parts)
    assert joined.dtype == np.float32
    np.testing.assert_array_equal(joined, wanted)
    assert not parts
    assert not any(part() is not None for part in gone[:-1])
    assert kept(joined).base is not None, "they are not copied to be kept"


def test_one_part_is_handed_on_and_none_of_its_rows_copied() -> None:
    (part,) = parts = [rows()]
    assert beside(parts) is part
    assert beside([part[:0], part[:0]]).shape == (0, 16)
