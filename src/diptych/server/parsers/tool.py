"""The functions a client offers, and which of them the model may or must call."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from diptych.errors import InputError
from diptych.types import Json

Schema = Mapping[str, Any]  # a JSON schema: the wire format
Mode = Literal["none", "auto", "required"]

_NAME = re.compile(r"[\w./:@-]{1,256}")  # what no format of calls gives a meaning to
_TYPES = ("string", "number", "integer", "boolean", "null", "object", "array")
_MAX_DEPTH = 20  # of schemas within schemas that are looked at for a parameter's type


@dataclass(frozen=True)
class Tool:
    """A function: its name, and the JSON schema of its arguments."""

    name: str
    parameters: Schema

    def kinds(self, parameter: str) -> frozenset[str]:
        """The JSON types that a parameter may have; none where the schema leaves it open."""
        properties = self.parameters.get("properties")
        schema = properties.get(parameter) if isinstance(properties, Mapping) else None
        return frozenset(_kinds(schema, self.parameters, _MAX_DEPTH) or ())


@dataclass(frozen=True)
class Choice:
    """Which tools the model may call (`auto`) or must (`required`). There are none where it is `none`."""

    mode: Mode
    tools: tuple[Tool, ...]


def chosen(tools: Sequence[Mapping[str, Json]], choice: Json = None) -> Choice:
    """The tools that a `tool_choice` leaves: `none`, `auto`, `required`, or one by name. None is as good as `auto`.

    A name stands in `{"type": "function", "function": {"name": …}}` or `{"type": …, "name": …}`. Raises InputError for
    tools that are none, a choice that is none, and the name of no tool.
    """
    offered = tuple(map(_tool, tools))
    if twice := next((t.name for i, t in enumerate(offered) if t.name in {o.name for o in offered[:i]}), None):
        raise InputError(f"there are two tools with the name {twice}; give each its own")
    if isinstance(choice, Mapping):
        return _named(offered, choice)
    if choice not in (None, "none", "auto", "required"):
        raise InputError(f"tool_choice is {choice!r:.60}; it must be none, auto, required or a function of the tools")
    if choice == "required" and not offered:
        raise InputError("tool_choice is required, and there are no tools; send tools, or another tool_choice")
    if choice == "none" or not offered:
        return Choice("none", ())
    return Choice("required" if choice == "required" else "auto", offered)


def _named(offered: tuple[Tool, ...], choice: Mapping[str, Json]) -> Choice:
    function = choice.get("function", choice)
    name = function.get("name") if isinstance(function, Mapping) else None
    found = tuple(tool for tool in offered if tool.name == name)
    if not found:
        names = ", ".join(tool.name for tool in offered) or "none"
        raise InputError(f"tool_choice names the function {name!r:.60}, and the tools are {names}; name one of them")
    return Choice("required", found)


def _tool(given: Mapping[str, Json]) -> Tool:
    function = given.get("function") if isinstance(given, Mapping) else None
    if not isinstance(function, Mapping) or given.get("type", "function") != "function":
        raise InputError(f'a tool is {json.dumps(given)[:60]}; it must be {{"type": "function", "function": {{"name": …}}}}')
    name, parameters = function.get("name"), function.get("parameters") or {"properties": {}}
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InputError(f"a tool has the name {name!r:.60}; it must be up to 256 letters, digits and _ - . / : @")
    if not isinstance(parameters, Mapping) or not _sound(parameters):
        raise InputError(f"the parameters of the tool {name} are {json.dumps(parameters)[:60]}; they must be a JSON schema")
    closed = {"additionalProperties": False} if parameters.get("properties") == {} else {}  # it takes no arguments
    return Tool(name, {"type": "object", "properties": {}, **closed, **parameters})


def _sound(schema: Schema) -> bool:
    """Whether a schema has properties as schemas do; what else it says is looked at where it is used."""
    properties = schema.get("properties", {})
    named = isinstance(properties, Mapping) and all(isinstance(value, Mapping | bool) for value in properties.values())
    return named and isinstance(schema.get("required", []), list | tuple)


def _kinds(schema: object, root: Schema, depth: int) -> set[str] | None:
    """The types that a schema allows; None where it allows all, or does not say."""
    if not isinstance(schema, Mapping) or not depth:
        return None
    if "$ref" in schema:
        return _kinds(_resolved(schema["$ref"], root), root, depth - 1)
    if "type" in schema:
        named = schema["type"]
        return {t for t in ([named] if isinstance(named, str) else named if isinstance(named, list) else []) if t in _TYPES}
    if "const" in schema or isinstance(schema.get("enum"), list):
        return {_kind(value) for value in ([schema["const"]] if "const" in schema else schema["enum"])}
    for keyword in ("anyOf", "oneOf"):
        if isinstance(schema.get(keyword), list):
            options = [_kinds(option, root, depth - 1) for option in schema[keyword]]
            return None if None in options else set().union(*(option for option in options if option))
    if isinstance(schema.get("allOf"), list):
        found = [option for option in (_kinds(option, root, depth - 1) for option in schema["allOf"]) if option is not None]
        return set.intersection(*found) if found else None
    return {"object"} if "properties" in schema else {"array"} if "items" in schema else None


def _resolved(ref: object, root: Schema) -> object:
    found: object = root
    for step in str(ref).removeprefix("#").split("/")[1:]:
        found = found.get(step) if isinstance(found, Mapping) else None
    return found


def _kind(value: object) -> str:
    kinds: dict[type, str] = {str: "string", bool: "boolean", int: "integer", float: "number", dict: "object", list: "array"}
    return kinds.get(type(value), "null")
