"""A setting out of its range is refused by name."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

import pytest

from diptych.errors import InputError
from diptych.llama import ranges
from diptych.types import Sampling

NUMBERS = [f.name for f in fields(Sampling) if f.name == "seed" or (type(f.default) in (int, float))]


@pytest.mark.parametrize("name", NUMBERS)
def test_no_number_goes_unchecked(name: str) -> None:
    low, high = ranges._RANGES[name]
    for value in (math.nan, math.inf, -math.inf, high * 1.01 + 1, low - 1, "1", True):
        with pytest.raises(InputError, match=f"^{name} is "):
            ranges.check(Sampling(**{name: value}))
    kind = int if name == "seed" or isinstance(getattr(Sampling(), name), int) else float
    for value in (kind(low), kind(high)):
        ranges.check(Sampling(**{name: value}))


def test_the_defaults_are_in_range() -> None:
    ranges.check(Sampling())


def test_a_whole_number_is_asked_for_where_llama_cpp_counts() -> None:
    with pytest.raises(InputError, match=r"top_k is 1\.5; it must be a whole number"):
        ranges.check(Sampling(top_k=1.5))  # type: ignore[arg-type]
    ranges.check(Sampling(temperature=1))


@pytest.mark.parametrize("breakers", [("a",) * 33, ("é" * 21,), ("\ud800",), ("a\0b",)])
def test_sequence_breakers_are_few_short_and_text(breakers: Any) -> None:
    with pytest.raises(InputError, match="dry_sequence_breakers"):
        ranges.check(Sampling(dry_sequence_breakers=breakers))
