"""Regular expressions of JSON schemas → GBNF for the inside of a JSON string."""

from __future__ import annotations

import importlib
import re
import warnings
from collections.abc import Callable, Iterable
from typing import Any

from diptych.errors import GrammarError

Ranges = list[tuple[int, int]]

_parser: Any = importlib.import_module("re._parser")  # the standard library's own reading of an expression
_LAST = 0x10FFFF
_SETS: dict[str, Ranges] = {
    "CATEGORY_DIGIT": [(48, 57)],
    "CATEGORY_WORD": [(48, 57), (65, 90), (95, 95), (97, 122)],
    "CATEGORY_SPACE": [(9, 13), (32, 32)],
}
_ESCAPES = {8: "b", 9: "t", 10: "n", 12: "f", 13: "r", 34: '"', 92: "\\"}  # how JSON writes what may not stand in a string
_BARE: Ranges = [(32, 33), (35, 91), (93, 126), (128, 0xD7FF), (0xE000, _LAST)]  # what may


def to_gbnf(expression: str, at: str, add: Callable[[str], str]) -> str:
    """A regular expression, found anywhere in the string unless it is anchored. Raises GrammarError for what GBNF lacks.

    `add` makes a rule of a body and gives its name.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "possible nested set" and the like: the meaning is plain here
            parsed = list(_parser.parse(expression))
    except (re.error, RecursionError, OverflowError, TypeError) as error:
        raise GrammarError(f"the JSON schema at {at} has the pattern {expression!r:.60}, which is not sound: {error}") from None
    anywhere = add(_set([(0, _LAST)])) + "*"
    return " | ".join(_anchored(branch, at, add, anywhere) for branch in _branches(parsed))


def _branches(parsed: list[Any]) -> list[list[Any]]:
    """The alternatives of an expression that ends in some with anchors of their own, as ^a$|^b$ does."""
    if parsed and parsed[-1][0].name == "BRANCH":
        ends = parsed[-1][1][1]
        if any(item[0].name == "AT" for end in ends for item in end):
            return [branch for end in ends for branch in _branches([*parsed[:-1], *end])]
    return [parsed]


def _anchored(parsed: list[Any], at: str, add: Callable[[str], str], anywhere: str) -> str:
    """One alternative, with anything before and behind it unless anchors forbid."""
    before = after = anywhere
    if parsed and parsed[0][0].name == "AT" and parsed[0][1].name in ("AT_BEGINNING", "AT_BEGINNING_STRING"):
        before, parsed = "", parsed[1:]
    if parsed and parsed[-1][0].name == "AT" and parsed[-1][1].name in ("AT_END", "AT_END_STRING"):
        after, parsed = "", parsed[:-1]
    return " ".join(x for x in (before, _sequence(parsed, at, add), after) if x) or '""'


def _sequence(parsed: Any, at: str, add: Callable[[str], str]) -> str:  # noqa: ANN401 - the parser's own tree
    return " ".join(_item(op.name, value, at, add) for op, value in parsed)


def _item(op: str, value: Any, at: str, add: Callable[[str], str]) -> str:  # noqa: ANN401 - the parser's own tree
    match op:
        case "LITERAL":
            return _set([(value, value)])
        case "NOT_LITERAL":
            return add(_set(others([(value, value)])))
        case "ANY":
            return add(_set(others([(10, 10), (13, 13)])))
        case "IN":
            return add(_set(in_brackets(value, at)))
        case "BRANCH":
            return "(" + " | ".join(_sequence(b, at, add) for b in value[1]) + ")"
        case "SUBPATTERN" if not value[1] and not value[2]:
            return f"({_sequence(value[3], at, add)})"
        case "MAX_REPEAT" | "MIN_REPEAT":  # greedy or not, the same strings match
            low, high, body = value
            end = "" if high == _parser.MAXREPEAT else int(high)
            return f"({_sequence(body, at, add)}){{{int(low)},{end}}}"
    raise GrammarError(f"the JSON schema at {at} has a pattern with {op.lower().replace('_', ' ')}, which a grammar cannot keep")


def in_brackets(value: Any, at: str) -> Ranges:  # noqa: ANN401 - the parser's own tree
    """The characters of a set in brackets."""
    out: Ranges = []
    for op, x in value:
        match op.name:
            case "LITERAL":
                out.append((x, x))
            case "RANGE":
                out.append(x)
            case "CATEGORY":
                name = x.name.replace("_NOT_", "_")
                out += others(_SETS[name]) if "_NOT_" in x.name else _SETS[name]
            case "NEGATE":
                pass
            case _:
                raise GrammarError(f"the JSON schema at {at} has a pattern with {op.name.lower()} in brackets")
    return others(out) if value and value[0][0].name == "NEGATE" else out


def others(ranges: Ranges) -> Ranges:
    out, start = [], 0
    for low, high in sorted(ranges):
        if low > start:
            out.append((start, low - 1))
        start = max(start, high + 1)
    return [*out, (start, _LAST)] if start <= _LAST else out


def _both(a: Ranges, b: Ranges) -> Ranges:
    return [(max(i, k), min(j, m)) for i, j in a for k, m in b if max(i, k) <= min(j, m)]


def _brackets(ranges: Ranges) -> str:
    return "[" + "".join(f"\\U{a:08X}-\\U{b:08X}" for a, b in ranges) + "]"


def _set(ranges: Ranges) -> str:
    """One character of a set, as JSON writes it: bare, or behind a backslash."""
    shown = _both(ranges, _BARE)
    out = []
    if len(shown) == 1 and shown[0][0] == shown[0][1]:
        out.append(f'"{in_literal(chr(shown[0][0]))}"')
    elif shown:
        out.append(_brackets(shown))
    out += [f'"\\\\{in_literal(c)}"' for code, c in _ESCAPES.items() if any(a <= code <= b for a, b in ranges)]
    if not out:
        raise GrammarError("a pattern in the JSON schema asks for a character that JSON strings cannot hold plainly")
    return out[0] if len(out) == 1 else f"({' | '.join(out)})"


def bare(without: Iterable[str] = ()) -> str:
    """A character that a JSON string shows as it is, in GBNF brackets; ranges, since what is not excluded need be no text."""
    banned = [(ord(c), ord(c)) for c in without]
    return _brackets(_both(_BARE, others(banned)))


def plain(name: str) -> bool:
    """Whether a JSON string shows a text as it is, without escapes."""
    return all(any(a <= ord(c) <= b for a, b in _BARE) for c in name)


def in_literal(c: str) -> str:
    """A character inside GBNF quotes."""
    return f"\\{c}" if c in '"\\' else c if c.isprintable() else f"\\U{ord(c):08X}"
