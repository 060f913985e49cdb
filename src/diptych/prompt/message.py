"""A message as a chat template sees it: a dictionary in OpenAI's form, its content a string or a list of parts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace

from diptych.errors import InputError
from diptych.types import Message, Source, ToolCall

Turn = dict[str, object]  # what a template's `messages` holds


def listed(message: Message, objects: bool = True) -> Turn:
    """A message whose content is a list of parts. `objects`: arguments of calls are given as such, not as JSON text."""
    parts = [{"type": "text", "text": part} if isinstance(part, str) else {"type": part.kind} for part in message.parts]
    return {"role": message.role, "content": parts, **_rest(message, objects)}


def plain(message: Message, objects: bool = True) -> Turn:
    """A message whose content is a string; its media are left out."""
    text = "".join(part for part in message.parts if isinstance(part, str))
    return {"role": message.role, "content": text, **_rest(message, objects)}


def written(message: Message, marks: Iterator[str]) -> Message:
    """A message of one text, in which each media part is the next mark."""
    return replace(message, parts=("".join(part if isinstance(part, str) else next(marks) for part in message.parts),))


def has_media(message: Message) -> bool:
    """Whether a message holds media."""
    return any(isinstance(part, Source) for part in message.parts)


def with_short_ids(message: Message, n: int) -> Message:
    """A message in which only the last `n` characters of each call's id are left."""
    calls = tuple(replace(call, id=call.id[-n:]) for call in message.tool_calls)
    answered = message.tool_call_id[-n:] if message.tool_call_id else message.tool_call_id
    return replace(message, tool_calls=calls, tool_call_id=answered)


def open_ended(message: Message, mark: str) -> Message:
    """A message with a mark where it is to go on: at the end of its text, or of its reasoning where that is all it has.

    Raises InputError for a message that cannot go on.
    """
    last = message.parts[-1] if message.parts else ""
    if message.role != "assistant" or message.tool_calls or not isinstance(last, str):
        raise InputError(
            "the last message cannot be continued: it must be the assistant's, end in text and call no tool; "
            "send such a message, or leave continue_final_message out"
        )
    if message.reasoning and not any(message.parts):
        return replace(message, reasoning=message.reasoning + mark)
    return replace(message, parts=(*message.parts[:-1], last + mark))


def _rest(message: Message, objects: bool) -> Turn:
    """All but role and content. What a message lacks is absent, as templates ask by `is defined` or `in`.

    Reasoning goes by the two names that transformers gives it.
    """
    reasoning = message.reasoning
    turn: Turn = {
        "name": message.name,
        "tool_call_id": message.tool_call_id,
        "reasoning_content": reasoning,
        "thinking": reasoning,
        "tool_calls": [_call(call, objects) for call in message.tool_calls] or None,
    }
    return {key: value for key, value in turn.items() if value is not None}


def _call(call: ToolCall, objects: bool) -> Turn:
    function = {"name": call.name, "arguments": _arguments(call.arguments) if objects else call.arguments}
    return {**({"id": call.id} if call.id else {}), "type": "function", "function": function}


def _arguments(text: str) -> object:
    """Arguments as an object; as the text they are where they are no JSON."""
    try:
        return json.loads(text) if text.strip() else {}
    except (ValueError, RecursionError):
        return text
