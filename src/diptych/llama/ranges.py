"""What values the fields of `Sampling` may have: those that llama.cpp's arithmetic is sound for."""

from __future__ import annotations

import math

from diptych.errors import InputError
from diptych.types import Sampling

SEEDS = 2**32 - 1  # the last one means "random" to llama.cpp
_INT = 2**31 - 1
_LARGE = 1e6  # a factor or penalty beyond it decides as much as this does

# Shares end at 1; a temperature under 0 is greedy as 0 is, a top_k under 0 takes all, a top_n_sigma under 0 does nothing.
_RANGES: dict[str, tuple[float, float]] = {
    "temperature": (-_LARGE, _LARGE),
    "top_k": (-_INT, _INT),
    "top_p": (0, 1),
    "min_p": (0, 1),
    "typical_p": (0, 1),
    "top_n_sigma": (-_LARGE, _LARGE),
    "min_keep": (0, _INT),
    "xtc_probability": (0, 1),
    "xtc_threshold": (0, 1),
    "dynatemp_range": (0, _LARGE),
    "dynatemp_exponent": (0, _LARGE),
    "mirostat": (0, 2),
    "mirostat_tau": (0, _LARGE),
    "mirostat_eta": (0, _LARGE),
    "repeat_penalty": (1 / _LARGE, _LARGE),
    "repeat_last_n": (-1, _INT),
    "presence_penalty": (-_LARGE, _LARGE),
    "frequency_penalty": (-_LARGE, _LARGE),
    "repetition_penalty": (1 / _LARGE, _LARGE),
    "dry_multiplier": (0, _LARGE),
    "dry_base": (0, _LARGE),
    "dry_allowed_length": (0, _INT),
    "dry_penalty_last_n": (-1, _INT),
    "no_repeat_ngram_size": (0, _INT),
    "min_tokens": (0, _INT),
    "seed": (0, SEEDS - 1),
}
_MOST_BREAKERS = 32  # looking one up in a vocabulary of 150,000 takes 10 ms
_LONGEST_BREAKER = 40  # bytes; llama.cpp cuts longer ones, in the middle of a character too


def check(sampling: Sampling) -> None:
    """Raise InputError for a setting out of its range."""
    for name, (low, high) in _RANGES.items():
        value = getattr(sampling, name)
        if value is None and name == "seed":
            continue
        whole = name == "seed" or isinstance(Sampling.__dataclass_fields__[name].default, int)
        if isinstance(value, bool) or not isinstance(value, int if whole else int | float) or math.isnan(value):
            raise InputError(f"{name} is {value!r}; it must be a {'whole ' if whole else ''}number")
        if not low <= value <= high:
            raise InputError(f"{name} is {value}; it must be from {low:g} to {high if whole else format(high, 'g')}")
    _check_breakers(sampling.dry_sequence_breakers)


def _check_breakers(breakers: tuple[str, ...]) -> None:
    if len(breakers) > _MOST_BREAKERS:
        raise InputError(f"dry_sequence_breakers has {len(breakers)} texts; at most {_MOST_BREAKERS} are taken")
    for text in breakers:
        try:
            size = len(text.encode())
        except UnicodeEncodeError:
            raise InputError("dry_sequence_breakers holds half a character (a lone surrogate)") from None
        if size > _LONGEST_BREAKER or "\0" in text:
            raise InputError(
                f"dry_sequence_breakers holds {text[:_LONGEST_BREAKER]!r}; "
                f"a text of at most {_LONGEST_BREAKER} bytes and without a zero character is taken"
            )
