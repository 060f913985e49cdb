"""How large a picture is to be seen: limits in tokens or pixels, those of a request before those of the options."""

from __future__ import annotations

import math
from dataclasses import replace

from diptych.errors import InputError, UnusableMedia
from diptych.types import MediaSettings

Size = tuple[int, int]  # (width, height) in pixels
Limits = tuple[int | None, int | None]  # the least and the most

MAX_SEEN = 2**25  # pixels as the model sees them, twice the most that a published model takes by itself


def merged(asked: MediaSettings, default: MediaSettings) -> MediaSettings:
    """What is asked for, and the default on the side, least or most, where nothing is."""
    low, high = asked.min_tokens or asked.min_pixels, asked.max_tokens or asked.max_pixels
    return replace(
        asked,
        min_tokens=asked.min_tokens if low else default.min_tokens,
        min_pixels=asked.min_pixels if low else default.min_pixels,
        max_tokens=asked.max_tokens if high else default.max_tokens,
        max_pixels=asked.max_pixels if high else default.max_pixels,
    )


def check(settings: MediaSettings) -> None:
    """Raise InputError for limits under 1, or a least that is more than the most."""
    for name in ("min_pixels", "max_pixels", "min_tokens", "max_tokens"):
        if (value := getattr(settings, name)) is not None and value < 1:
            raise InputError(f"{name} is {value}; it must be 1 or more")
    for low, high in ("min_tokens", "max_tokens"), ("min_pixels", "max_pixels"):
        least, most = getattr(settings, low), getattr(settings, high)
        if least and most and least > most:
            raise InputError(f"{low} is {least}, more than {high}, {most}; change one of them")


def pixels(settings: MediaSettings, area: int) -> Limits:
    """The limits in pixels, of which a token has `area`. Raises InputError where they exclude each other or are under 1."""
    check(settings)
    low = settings.min_tokens * area if settings.min_tokens else settings.min_pixels
    high = settings.max_tokens * area if settings.max_tokens else settings.max_pixels
    if low and high and low > high:
        raise InputError(f"the least size of pictures is {low} pixels, more than the most, {high}; a token has {area} of them")
    return low, high


def within(size: Size, cell: int, max_tokens: int | None) -> Size:
    """A size in whole cells of `cell` × `cell` pixels, a token each, with as much of the longer side cut as is over
    `max_tokens`: rounding goes over it where a side has few cells. Raises UnusableMedia for one that no model can see."""
    width, height = size[0] // cell, size[1] // cell
    if max_tokens and width * height > max_tokens:
        least = min(width, height, math.isqrt(max_tokens))
        width, height = (max_tokens // least, least) if width > height else (least, max_tokens // least)
    if width * height * cell**2 > MAX_SEEN:
        raise UnusableMedia(
            f"the picture would be seen as {width * cell}×{height * cell}, and {MAX_SEEN:,} pixels are the most; lower "
            "max_pixels or max_tokens"
        )
    return width * cell, height * cell
