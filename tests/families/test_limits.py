"""Limits in tokens, for every family whose pictures have as many as their size asks for."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diptych import families
from diptych.errors import InputError, UnusableMedia
from diptych.families.packed import MEAN, STD, Packed
from diptych.types import Media, MediaChunk, MediaSettings
from diptych.weights import Weights
from pictures import gradient

FAMILIES = [family for family in families.all() if issubclass(family, Packed)]
each = pytest.mark.parametrize("kind", FAMILIES, ids=lambda f: f.__name__)


@cache
def family(kind: type[Packed]) -> Packed:
    """A family without weights: what it does to pictures needs none."""
    sizes = {"embedding_length": 64, "block_count": 1, "attention.head_count": 2, "projection_dim": 64, "feed_forward_length": 64}
    return kind(
        Weights(
            {
                "clip.projector_type": kind.projectors["image"][0],
                **{f"clip.vision.{name}": value for name, value in sizes.items()},
                "clip.vision.patch_size": 14,
                "clip.vision.n_wa_pattern": 1,  # Qwen2.5-VL's
                "clip.vision.attention.layer_norm_epsilon": 1e-6,
                "clip.vision.image_mean": list(MEAN),
                "clip.vision.image_std": list(STD),
            },
            {},
        )
    )


def seen(kind: type[Packed], width: int, height: int, **limits: int) -> MediaChunk:
    (chunk,) = family(kind).preprocess(Media("image", gradient(width, height), b"x" * 32), MediaSettings(**limits))
    return chunk


@each
@pytest.mark.parametrize("size", [(600, 400), (90, 700), (28, 28), (1000, 999)])
@pytest.mark.parametrize("most", [16, 60, 300])
def test_a_limit_of_tokens_is_that_of_their_pixels(kind: type[Packed], size: tuple[int, int], most: int) -> None:
    by_tokens, by_pixels = (
        seen(kind, *size, min_pixels=1, **high) for high in ({"max_tokens": most}, {"max_pixels": most * 784})
    )
    assert by_tokens.used == by_pixels.used
    assert by_tokens.key == by_pixels.key
    assert by_tokens.n_tokens <= most
    np.testing.assert_array_equal(by_tokens.pieces[0].inputs["patches"], by_pixels.pieces[0].inputs["patches"])
    least = [seen(kind, *size, **limits) for limits in ({"min_tokens": most}, {"min_pixels": most * 784})]
    assert least[0].used == least[1].used
    assert least[0].n_tokens >= most


@each
@settings(max_examples=30, deadline=None)
@given(st.integers(1, 900), st.integers(1, 900), st.integers(1, 64), st.booleans())
def test_no_picture_has_more_tokens_than_the_most(kind: type[Packed], width: int, height: int, most: int, exact: bool) -> None:
    limits = {"min_tokens": most if exact else 1, "max_tokens": most}
    if max(width, height) > 200 * min(width, height):
        with pytest.raises(UnusableMedia):
            seen(kind, width, height, **limits)
        return
    chunk = seen(kind, width, height, **limits)
    assert 1 <= chunk.n_tokens <= most
    assert chunk.n_tokens == chunk.grid.h * chunk.grid.w == chunk.pieces[0].n_patches // 4
    assert chunk.used == (chunk.grid.w * 28, chunk.grid.h * 28)


@each
def test_tokens_go_before_pixels_and_limits_before_those_of_the_model(kind: type[Packed]) -> None:
    assert seen(kind, 800, 600, max_tokens=50, max_pixels=10**6).n_tokens <= 50
    assert seen(kind, 800, 600, min_pixels=1, max_tokens=10).n_tokens <= 10


@each
def test_limits_that_cannot_be_kept_are_refused_before_anything_is_made(kind: type[Packed]) -> None:
    with pytest.raises(InputError, match="min_tokens is 9, more than max_tokens, 8"):
        seen(kind, 60, 60, min_tokens=9, max_tokens=8)
    with pytest.raises(InputError, match="max_pixels is -5; it must be 1 or more"):
        seen(kind, 60, 60, max_pixels=-5)
    for limits in ({"min_tokens": 10**9}, {"min_pixels": 10**12, "max_pixels": 10**15}):
        with pytest.raises(UnusableMedia, match="would be seen as"):
            seen(kind, 60, 60, max_tokens=10**10, **limits)


@each
def test_fixed_sizes_are_chosen_by_their_tokens(kind: type[Packed]) -> None:
    ladder = ((224, 224), (448, 224), (448, 448), (896, 896))
    picture = Media("image", gradient(900, 900), b"x" * 32)
    for limits, used in (
        ({}, (896, 896)),
        ({"max_tokens": 256}, (448, 448)),
        ({"max_tokens": 255}, (224, 224)),
        ({"max_tokens": 255, "max_pixels": 10**9}, (224, 224)),
        ({"min_tokens": 257, "max_pixels": 10**9}, (896, 896)),
    ):
        (chunk,) = family(kind).preprocess(picture, MediaSettings(sizes=ladder, **limits))
        assert chunk.used == used
