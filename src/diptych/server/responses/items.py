"""The input of a Responses request → turns of the conversation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from diptych.errors import InputError
from diptych.server.asking import parts
from diptych.server.asking.parts import Part, text
from diptych.server.asking.turns import Turns
from diptych.types import Message, ToolCall

_ROLES = ("user", "assistant", "system", "developer")
_KNOWN = "message, function_call, function_call_output and reasoning"


def turns(given: str | Sequence[object] | None, instructions: str | None) -> tuple[Message, ...]:
    """What was said so far, the instructions first. Raises InputError naming the item that cannot be."""
    out = Turns()
    if instructions is not None:
        out.say("system", (instructions,))
    if isinstance(given, str):
        out.say("user", (given,))
    else:
        for i, item in enumerate(given or ()):
            _add(out, item, f"input[{i}]")
    if not (found := out.messages()):
        raise InputError("there is no input, and there are no instructions; send a text or a list of items")
    return found


def _add(out: Turns, item: object, where: str) -> None:
    if not isinstance(item, Mapping):
        raise InputError(f"{where} is {type(item).__name__}; it must be an object")
    match item.get("type") or ("message" if "role" in item else None):
        case "message":
            _say(out, item, where)
        case "function_call":
            name, arguments, call_id = (text(item, field, where) for field in ("name", "arguments", "call_id"))
            out.call(ToolCall(name, arguments, call_id))
        case "function_call_output":
            said = parts.content_parts(item.get("output"), f"{where}.output", _part)
            out.answer(text(item, "call_id", where), said)
        case "reasoning":
            for thought in _thoughts(item, where):
                out.think(thought)
        case kind:
            raise InputError(f"{where} is of type {kind!r:.40}; {_KNOWN} are known")


def _say(out: Turns, item: Mapping[str, Any], where: str) -> None:
    role, content = item.get("role"), item.get("content")
    if role not in _ROLES:
        raise InputError(f"{where} has role {role!r:.40}; it must be one of {', '.join(_ROLES)}")
    if content is None:
        raise InputError(f"{where} has no content; give a string or a list of parts")
    out.say(role, parts.content_parts(content, f"{where}.content", _part))


def _part(given: object, where: str) -> Part:
    """A part of content; `input_image` has the URL itself where a chat's part has an object."""
    kind = given.get("type") if isinstance(given, Mapping) else None
    if not isinstance(given, Mapping) or kind not in ("input_image", "input_file"):
        return parts.part(given, where)
    if kind == "input_file":
        raise InputError(f"{where} is a file, which is not taken; send its pages as input_image")
    if given.get("file_id") is not None:
        raise InputError(f"{where} names a file by its id, and none are kept here; send it in image_url, as a data: URL")
    return parts.media("image", given.get("image_url"), where, given)


def _thoughts(item: Mapping[str, Any], where: str) -> list[str]:
    """The text of a reasoning item: its content, or the summary where that is all there is; encrypted text says nothing."""
    for name in ("content", "summary"):
        given = item.get(name)
        if given is not None and not isinstance(given, list):
            raise InputError(f"{where}.{name} is {type(given).__name__}; it must be a list of texts")
        if given:
            return [_thought(one, f"{where}.{name}[{i}]") for i, one in enumerate(given)]
    return []


def _thought(given: object, where: str) -> str:
    if not isinstance(given, Mapping):
        raise InputError(f"{where} is {type(given).__name__}; it must be an object with a text")
    return text(given, "text", where)
