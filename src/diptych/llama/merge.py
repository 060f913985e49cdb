"""Two JSON schemas that must both hold, as one."""

from __future__ import annotations

from typing import Any

from diptych.errors import GrammarError

Schema = dict[str, Any]

_LARGER = ("minimum", "exclusiveMinimum", "minLength", "minItems")
_SMALLER = ("maximum", "exclusiveMaximum", "maxLength", "maxItems")
_NOTES = (
    "title", "description", "default", "examples", "$schema", "$id", "$comment", "$defs", "definitions", "deprecated", "readOnly",
    "writeOnly",
)  # fmt: skip


def merged(a: Schema, b: object, at: str) -> Schema:
    """One schema that holds where both do. Raises GrammarError where that cannot be written."""
    if b is True:
        return a
    if not isinstance(b, dict):
        raise GrammarError(f"the JSON schema at {at} is false or no schema, so nothing satisfies it")
    out = dict(a)
    for key, value in b.items():
        if key not in a or a[key] == value:
            out[key] = value
        elif key == "properties":
            both = set(a[key]) & set(value)
            out[key] = a[key] | value | {name: {"allOf": [a[key][name], value[name]]} for name in both}
        elif key == "required":
            out[key] = [*a[key], *value]
        elif key in _LARGER or key in _SMALLER:
            out[key] = (max if key in _LARGER else min)(a[key], value)
        elif key in ("enum", "type"):
            out[key] = _common(a[key], value, at)
        elif key == "allOf":
            out[key] = [*a[key], *value]
        elif key not in _NOTES:
            raise GrammarError(f"the JSON schema at {at} gives {key} twice, differently, which a grammar cannot keep")
    _check_closed(a, b, at)
    return out


def _common(a: Any, b: Any, at: str) -> list[Any]:  # noqa: ANN401 - JSON
    one, other = ([x] if isinstance(x, str) else x for x in (a, b))
    if not (out := [x for x in one if x in other or (x == "integer" and "number" in other)]):
        raise GrammarError(f"the JSON schema at {at} allows {a} and {b} at once, which have nothing in common")
    return out


def _check_closed(a: Schema, b: Schema, at: str) -> None:
    """A side that closes an object forbids the other side's properties; nobody means that."""
    for one, other in (a, b), (b, a):
        if one.get("additionalProperties", True) is not True and set(other.get("properties", {})) - set(
            one.get("properties", {})
        ):
            raise GrammarError(f"the JSON schema at {at} closes an object (additionalProperties) that another part extends")
