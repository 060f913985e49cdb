"""Numbers between bounds, as GBNF: digit by digit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from diptych.errors import GrammarError

DIGITS = 16  # of an unbounded number, as llama.cpp's own grammars have it


def bounded(schema: Mapping[str, Any], at: str, *, whole: bool) -> str | None:
    """GBNF for the bounds of a schema; None where it has none. Raises GrammarError for bounds that cannot be kept."""
    low = _bound(schema, "minimum", "exclusiveMinimum", max, at)
    high = _bound(schema, "maximum", "exclusiveMaximum", min, at)
    if low is None and high is None:
        return None
    if whole:
        least = None if low is None else math.floor(low[0]) + 1 if low[1] else math.ceil(low[0])
        most = None if high is None else math.ceil(high[0]) - 1 if high[1] else math.floor(high[0])
        found = _sides(least, most)
    else:
        found = _real(low, high, at)
    if not found:
        raise GrammarError(f"the JSON schema at {at} has bounds that no number meets")
    return " | ".join(found)


def _bound(schema: Mapping[str, Any], plain: str, exclusive: str, pick: Any, at: str) -> tuple[float, bool] | None:  # noqa: ANN401
    """The sharper of two bounds, and whether it is exclusive (a boolean beside the plain one, before draft 6)."""
    found = []
    if plain in schema:
        found.append((schema[plain], schema.get(exclusive) is True))
    if exclusive in schema and not isinstance(schema[exclusive], bool):
        found.append((schema[exclusive], True))
    for value, _ in found:
        if not isinstance(value, (int, float)) or isinstance(value, bool) or abs(value) >= 10**DIGITS:
            raise GrammarError(f"the JSON schema at {at} has the bound {value!r}; a number under 10^{DIGITS} is needed")
    if not found:
        return None
    edge = pick(value for value, _ in found)
    return edge, any(e for value, e in found if value == edge)


def _sides(low: int | None, high: int | None) -> list[str]:
    """Whole numbers from `low` to `high`: those below zero behind a minus, mirrored."""
    out = []
    if low is None or low < 0:
        least = 1 if high is None or high >= 0 else -high
        most = None if low is None else -low
        if most is None or most >= least:
            out.append(f'"-" ({" | ".join(_naturals(least, most))})')
    if high is None or high >= 0:
        least = max(low or 0, 0)
        if high is None or high >= least:
            out += _naturals(least, high)
    return out


def _naturals(low: int, high: int | None) -> list[str]:
    """Numbers from `low` ≥ 0 to `high`, one length after the other."""
    out = []
    for n in range(len(str(low)), (DIGITS if high is None else len(str(high))) + 1):
        least = max(low, 10 ** (n - 1) if n > 1 else 0)
        most = 10**n - 1 if high is None else min(high, 10**n - 1)
        out += _same_length(str(least), str(most))
    return out


def _same_length(low: str, high: str) -> list[str]:
    """Numerals of one length from `low` to `high`, as few alternatives as their digits need."""
    if not low:
        return [""]
    n = len(low) - 1
    if low[1:] == "0" * n and high[1:] == "9" * n:
        return [f"[{low[0]}-{high[0]}]" + (f" [0-9]{{{n}}}" if n else "")]
    if low[0] == high[0]:
        return [f'"{low[0]}" {rest}' for rest in _same_length(low[1:], high[1:])]
    out = [f'"{low[0]}" {rest}' for rest in _same_length(low[1:], "9" * n)]
    if int(high[0]) - int(low[0]) > 1:
        out.append(f"[{int(low[0]) + 1}-{int(high[0]) - 1}] [0-9]{{{n}}}")
    return out + [f'"{high[0]}" {rest}' for rest in _same_length("0" * n, high[1:])]


def _real(low: tuple[float, bool] | None, high: tuple[float, bool] | None, at: str) -> list[str]:
    """Numbers with a fraction, no exponent, between whole bounds."""
    for bound in low, high:
        if bound and not float(bound[0]).is_integer():
            raise GrammarError(f"the JSON schema at {at} has the bound {bound[0]}; of a number, only whole bounds can be kept")
    out = []
    if high is None or high[0] > 0 or (high[0] == 0 and not high[1]):
        out += _magnitudes(low if low and low[0] >= 0 else (0.0, False), high)
    if low is None or low[0] < 0:
        nearest = (-high[0], high[1]) if high and high[0] <= 0 else (0.0, False)
        out += [f'"-" ({m})' for m in _magnitudes(nearest, None if low is None else (-low[0], low[1]))]
    return out


def _magnitudes(low: tuple[float, bool], high: tuple[float, bool] | None) -> list[str]:
    """Numbers from `low` ≥ 0 up, with a fraction; whole bounds, each perhaps exclusive."""
    least, most = int(low[0]), None if high is None else int(high[0])
    out = []
    if low[1] and (most is None or least < most):  # behind an exclusive bound a fraction is due
        out.append(f'"{least}." [0-9]{{0,{DIGITS - 1}}} [1-9]')
        least += 1
    if most is None or least < most:
        out += [f'{n} ("." [0-9]{{1,{DIGITS}}})?' for n in _naturals(least, None if most is None else most - 1)]
    if high is not None and not high[1] and most is not None and (least <= most):
        out.append(f'"{most}" ("." "0"{{1,{DIGITS}}})?')
    return out
