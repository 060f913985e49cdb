"""The messages of an Anthropic request → turns of the conversation."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from diptych.errors import InputError
from diptych.server.asking import parts
from diptych.server.asking.parts import Part, text
from diptych.server.asking.turns import Turns
from diptych.types import Message, Source, ToolCall

_ROLES = ("user", "assistant", "system")
# Claude Code stamps each request anew in its first line, and no prefix of it would ever be known again
_STAMP = re.compile(r"\A(x-anthropic-billing-header:[^\n]*?\bcch=)[^;\n]{5}(?=;)")


def turns(system: str | Sequence[object] | None, messages: Sequence[Mapping[str, Any]]) -> tuple[Message, ...]:
    """What was said so far; what one role says in a row is one turn, as Anthropic has it.

    Raises InputError naming the block that cannot be.
    """
    out = Turns()
    if system is not None:
        said = parts.content_parts(system, "system", _text_block)
        out.say("system", [_STAMP.sub(r"\1fffff", part) if isinstance(part, str) else part for part in said])
    for i, message in enumerate(messages):
        where = f"messages[{i}]"
        role, content = message.get("role"), message.get("content")
        if role not in _ROLES:
            raise InputError(f"{where} has role {role!r:.40}; it must be user, assistant or system")
        if isinstance(content, str):
            out.say(role, (content,))
        elif isinstance(content, list):
            for j, block in enumerate(content):
                _add(out, role, block, f"{where}.content[{j}]")
        else:
            raise InputError(f"{where}.content is {type(content).__name__}; it must be a string or a list of blocks")
    return out.messages()


def _add(out: Turns, role: str, block: object, where: str) -> None:
    kind = block.get("type") if isinstance(block, Mapping) else None
    if isinstance(block, Mapping) and role == "assistant":
        match kind:
            case "thinking":
                return out.think(text(block, "thinking", where))
            case "redacted_thinking":
                return None  # nobody but its author can read it
            case "tool_use":
                arguments = json.dumps(block.get("input", {}), ensure_ascii=False)
                return out.call(ToolCall(text(block, "name", where), arguments, text(block, "id", where)))
    if isinstance(block, Mapping) and role == "user" and kind == "tool_result":
        said = parts.content_parts(block.get("content"), f"{where}.content", _block)
        return out.answer(text(block, "tool_use_id", where), said)
    out.say(role, (_block(block, where),))


def _block(block: object, where: str) -> Part:
    """A text or a picture."""
    if isinstance(block, Mapping) and block.get("type") == "image":
        return _image(block.get("source"), f"{where}.source")
    return _text_block(block, where)


def _text_block(block: object, where: str) -> str:
    if not isinstance(block, Mapping):
        raise InputError(f"{where} is {type(block).__name__}; it must be an object with a type")
    if block.get("type") != "text":
        known = "text, image, and in their places thinking, tool_use and tool_result"
        raise InputError(f"{where} is of type {block.get('type')!r:.40}, which has no place here; known are {known}")
    return text(block, "text", where)


def _image(source: object, where: str) -> Source:
    if isinstance(source, Mapping) and source.get("type") == "base64":
        kind, data = text(source, "media_type", where), text(source, "data", where)
        return parts.source("image", f"data:{kind};base64,{data}", where)
    if isinstance(source, Mapping) and source.get("type") == "url":
        return parts.source("image", text(source, "url", where), where)
    raise InputError(f'{where} must be {{"type": "base64", "media_type": …, "data": …}} or {{"type": "url", "url": …}}')
