"""Conversations with tools for templates that know none: tools, calls and results become text, as Hermes writes them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

from diptych.types import Json, Message, Source

_SYSTEM = (
    "# Tools\n\nYou can call functions. Each line within <tools></tools> describes one, its parameters as a JSON schema:\n"
    "<tools>\n{tools}\n</tools>\n\nTo call a function, write its name and its arguments as JSON within "
    '<tool_call></tool_call>:\n<tool_call>\n{{"name": "the name", "arguments": {{"a parameter": "its value"}}}}\n</tool_call>\n'
    "Results come within <tool_response></tool_response>."
)


def told(messages: Sequence[Message], tools: Sequence[Json], by_system: bool = True) -> tuple[Message, ...]:
    """The messages with all of it in text. Tools stand in the first message of the system, or in the first of the user."""
    turns = [_said(m) if m.role == "assistant" else m for m in _with_results(messages)]
    if tools:
        text = _SYSTEM.format(tools="\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools))
        if turns and turns[0].role in ("system", "developer"):
            turns[0] = replace(turns[0], parts=(*turns[0].parts, f"\n\n{text}"))
        elif by_system or not turns:
            turns.insert(0, Message("system", (text,)))
        else:
            turns[0] = replace(turns[0], parts=(f"{text}\n\n", *turns[0].parts))
    return tuple(turns)


def _said(message: Message) -> Message:
    """An assistant's message with its calls as text."""
    if not message.tool_calls:
        return message
    calls = [
        f'<tool_call>\n{{"name": {json.dumps(call.name)}, "arguments": {call.arguments or "{}"}}}\n</tool_call>'
        for call in message.tool_calls
    ]
    before = ("\n",) if any(message.parts) else ()
    return replace(message, parts=(*message.parts, *before, "\n".join(calls)), tool_calls=())


def _with_results(messages: Sequence[Message]) -> list[Message]:
    """Results of tools as messages of the user, those that follow each other as one."""
    turns: list[Message] = []
    in_results = False
    for message in messages:
        if message.role != "tool":
            turns.append(message)
            in_results = False
            continue
        parts: tuple[str | Source, ...] = ("<tool_response>\n", *message.parts, "\n</tool_response>")
        if in_results:
            turns[-1] = replace(turns[-1], parts=(*turns[-1].parts, "\n", *parts))
        else:
            turns.append(Message("user", parts))
        in_results = True
    return turns
