"""Which of several fixed sizes a picture is stretched to, where the encoder takes no others."""

from __future__ import annotations

from collections.abc import Sequence

Size = tuple[int, int]  # (width, height) in pixels

ALIKE = 1.1  # what two stretchings may differ by and still look the same


def choose(width: int, height: int, sizes: Sequence[Size], low: int | None = None, high: int | None = None) -> Size:
    """The size of `sizes` that suits a picture of `width` × `height` best.

    Of those with `low` to `high` pixels (all, where none has), the ones that change its aspect least, by up to a tenth
    more than the very least; of these those that keep most of its detail; of these the one with the fewest pixels.
    """
    sizes = [s for s in sizes if (low or 0) <= s[0] * s[1] <= (high or s[0] * s[1])] or list(sizes)
    least = min(_distortion(width, height, size) for size in sizes)
    fair = [size for size in sizes if _distortion(width, height, size) <= least * ALIKE]
    return min(fair, key=lambda size: (-_detail(width, height, size), size[0] * size[1], size))


def _distortion(width: int, height: int, size: Size) -> float:
    """How much more one side is stretched than the other; 1 keeps the aspect."""
    x, y = size[0] / width, size[1] / height
    return max(x, y) / min(x, y)


def _detail(width: int, height: int, size: Size) -> float:
    """The share of a picture's resolution that is kept, along the side that loses more; 1 where nothing is lost."""
    return min(1.0, size[0] / width, size[1] / height)
