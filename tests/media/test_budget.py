"""Limits of how large a picture is seen: whose goes first, and what excludes itself."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diptych.errors import InputError, UnusableMedia
from diptych.media.budget import check, merged, pixels, within
from diptych.types import MediaSettings

side = st.integers(1, 3000)


def test_a_request_goes_before_the_options_on_each_side_whatever_the_unit() -> None:
    options = MediaSettings(min_pixels=1, max_pixels=2, min_tokens=3, max_tokens=4)
    assert merged(MediaSettings(), options) == options
    assert merged(MediaSettings(max_pixels=9), options) == MediaSettings(1, 9, 3, None)
    assert merged(MediaSettings(max_tokens=9), options) == MediaSettings(1, None, 3, 9)
    assert merged(MediaSettings(min_pixels=9), options) == MediaSettings(9, 2, None, 4)
    assert merged(MediaSettings(5, 6, 7, 8, ((1, 1),)), options) == MediaSettings(5, 6, 7, 8, ((1, 1),))


def test_tokens_go_before_pixels() -> None:
    assert pixels(MediaSettings(), 784) == (None, None)
    assert pixels(MediaSettings(100, 200), 784) == (100, 200)
    assert pixels(MediaSettings(100, 10**6, 2, 3), 784) == (1568, 2352)
    assert pixels(MediaSettings(100, None, None, 3), 784) == (100, 2352)


@pytest.mark.parametrize("name", ["min_pixels", "max_pixels", "min_tokens", "max_tokens"])
@pytest.mark.parametrize("value", [0, -1])
def test_limits_under_one_are_refused(name: str, value: int) -> None:
    with pytest.raises(InputError, match=rf"^{name} is {value}; it must be 1 or more$"):
        check(MediaSettings(**{name: value}))  # type: ignore[arg-type]


def test_limits_that_exclude_each_other_are_refused() -> None:
    with pytest.raises(InputError, match="min_tokens is 5, more than max_tokens, 4"):
        check(MediaSettings(min_tokens=5, max_tokens=4))
    with pytest.raises(InputError, match=r"the least size of pictures is 8000 pixels, more than the most, 7840; a token has 784"):
        pixels(MediaSettings(min_pixels=8000, max_tokens=10), 784)


@given(side, side, st.integers(1, 5000))
def test_no_size_has_more_tokens_than_the_limit_and_none_is_cut_without_need(width: int, height: int, most: int) -> None:
    w, h = within((28 * width, 28 * height), 28, most)
    assert 1 <= w // 28 * (h // 28) <= most
    if width * height <= most:
        assert (w, h) == (28 * width, 28 * height)
    assert (w - h) * (width - height) >= 0


def test_a_picture_that_no_memory_would_hold_is_refused() -> None:
    assert within((8192, 4096), 32, None) == (8192, 4096)
    with pytest.raises(UnusableMedia, match=r"would be seen as 8192×4128, and 33,554,432 pixels are the most") as caught:
        within((8192, 4128), 32, None)
    assert caught.value.status == 422
