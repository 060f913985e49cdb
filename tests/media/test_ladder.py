"""The choice among fixed sizes: aspect first, then detail, then cost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diptych.media.ladder import ALIKE, Size, choose

LADDER = ((224, 224), (504, 504), (1008, 504), (504, 1008), (756, 336))
side = st.integers(1, 5000)
sizes = st.lists(st.tuples(st.integers(28, 2000), st.integers(28, 2000)), min_size=1, max_size=6)


@pytest.mark.parametrize(
    ("picture", "chosen"),
    [
        ((504, 504), (504, 504)),
        ((100, 100), (224, 224)),  # nothing is lost, so the cheapest
        ((225, 225), (504, 504)),  # the smaller would lose detail
        ((3000, 3000), (504, 504)),  # all lose detail, this one least
        ((2000, 1000), (1008, 504)),
        ((1000, 2000), (504, 1008)),
        ((300, 150), (1008, 504)),  # its aspect, though a smaller one would keep its detail
        ((700, 330), (756, 336)),  # as alike as 1008×504 and cheaper
        ((2100, 1000), (1008, 504)),  # as alike as 756×336, and keeps more
        ((5000, 10), (756, 336)),
    ],
)
def test_a_picture_gets_the_size_that_suits_it(picture: Size, chosen: Size) -> None:
    assert choose(*picture, LADDER) == chosen


def test_bounds_leave_out_sizes_and_give_way_where_none_is_left() -> None:
    assert choose(3000, 3000, LADDER, high=100_000) == (224, 224)
    assert choose(50, 50, LADDER, low=100_000) == (504, 504)
    assert choose(3000, 3000, LADDER, high=1000) == (504, 504)


@given(side, side, sizes)
def test_the_order_of_the_sizes_and_doubles_do_not_matter(width: int, height: int, sizes: list[Size]) -> None:
    chosen = choose(width, height, sizes)
    assert chosen in sizes
    assert choose(width, height, [*reversed(sizes), chosen]) == chosen


@given(side, side, sizes)
def test_no_size_is_much_truer_and_none_as_true_keeps_more(width: int, height: int, sizes: list[Size]) -> None:
    def stretch(size: Size) -> float:
        ratio = (size[0] / width) / (size[1] / height)
        return max(ratio, 1 / ratio)

    def kept(size: Size) -> float:
        return min(1.0, size[0] / width, size[1] / height)

    chosen = choose(width, height, sizes)
    least = min(map(stretch, sizes))
    assert stretch(chosen) <= least * ALIKE * (1 + 1e-9)
    assert all(kept(size) <= kept(chosen) for size in sizes if stretch(size) < least * ALIKE * (1 - 1e-9))


@given(side, side, st.integers(1, 20))
def test_a_picture_turned_on_its_side_gets_the_size_turned(width: int, height: int, n: int) -> None:
    ladder = [(28 * n, 56 * n), (56 * n, 28 * n), (14 * n, 14 * n)]
    if width != height:
        assert choose(height, width, ladder) == choose(width, height, ladder)[::-1]
