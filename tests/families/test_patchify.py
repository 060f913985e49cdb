"""Pictures → rows of patches: every value stands where it should, and little memory is taken beside them."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from diptych.families.packed import patchify
from pictures import noise

LEVELS = np.random.default_rng(0).normal(size=(256, 3)).astype(np.float32)


@pytest.mark.parametrize(("patch", "merge", "frames", "size"), [(14, 2, 2, (84, 56)), (16, 1, 1, (48, 16)), (7, 3, 2, (42, 21))])
def test_each_value_is_that_of_its_pixel_to_the_bit(patch: int, merge: int, frames: int, size: tuple[int, int]) -> None:
    image, side = noise(*size), patch * merge
    expected = []
    for top in range(0, size[1], side):
        for left in range(0, size[0], side):
            for y in range(top, top + side, patch):
                for x in range(left, left + side, patch):
                    values = LEVELS[image[y : y + patch, x : x + patch], np.arange(3)]
                    expected.append([values[..., c] for c in range(3) for _ in range(frames)])
    rows = patchify(image, patch, merge, frames, LEVELS)
    np.testing.assert_array_equal(rows, np.array(expected).reshape(len(expected), -1))
    assert rows.dtype == np.float32
    assert rows.flags.c_contiguous


def test_a_photo_takes_little_more_memory_than_its_patches() -> None:
    image = np.zeros((1568, 1568, 3), np.uint8)
    tracemalloc.start()
    rows = patchify(image, 14, 2, 2, LEVELS)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.1 * rows.nbytes
