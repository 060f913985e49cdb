"""The body of an Anthropic request."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import Field

from diptych.errors import InputError
from diptych.server.anthropic import messages
from diptych.server.asking.conversation import Conversation, Function
from diptych.server.asking.fields import MAX_TURNS, Body, ShortText
from diptych.types import Json, Message

_MEANT_OTHERWISE = ("cache_control", "inference_geo", "speed", "betas")  # they ask for nothing that could be different here
_CHOICES: dict[str, Json] = {"auto": "auto", "any": "required", "none": "none"}  # tool_choice: Anthropic's type → OpenAI's


class ThinkingConfig(Body):
    """Whether the model is to think; where its thoughts are `omitted`, they are left out of the answer."""

    type: Literal["enabled", "disabled", "adaptive", "between_tools"] = "adaptive"
    budget_tokens: int | None = None
    display: Literal["summarized", "omitted"] = "summarized"


class OutputFormat(Body):
    type: Literal["json_schema"] = "json_schema"
    schema_: Annotated[dict[str, Any], Field(alias="schema")]


class OutputConfig(Body):
    effort: str | None = None
    format: OutputFormat | None = None


class MessagesBody(Conversation):
    """A conversation to go on with, as messages of blocks."""

    messages: Annotated[list[dict[str, Any]], Field(min_length=1, max_length=MAX_TURNS)]
    system: str | list[Any] | None = None
    stop: Annotated[tuple[ShortText, ...], Field(max_length=64, alias="stop_sequences")] = ()
    tool_choice: dict[str, Any] | None = None
    thinking: ThinkingConfig = ThinkingConfig()
    output_config: OutputConfig = OutputConfig()

    @property
    def unknown(self) -> list[str]:
        """Fields and tools that do nothing here, but those that ask for nothing."""
        others = [f"tools of type {tool.get('type')!s:.40}" for tool in self.tools if not _is_function(tool)]
        budget = ["thinking.budget_tokens"] if self.thinking.budget_tokens is not None else []
        return [name for name in super().unknown if name not in _MEANT_OTHERWISE] + others + budget

    def turns(self) -> tuple[Message, ...]:
        if self.n != 1:
            raise InputError(f"n is {self.n}, and a message is one answer; ask several times, or a chat")
        return messages.turns(self.system, self.messages)

    def functions(self) -> tuple[Function, ...]:
        """The client's own tools. Those that Anthropic runs itself, or knows the arguments of, are none."""
        return tuple({"type": "function", "function": _described(tool)} for tool in self.tools if _is_function(tool))

    def choice(self) -> Json:
        given = self.tool_choice
        if given is None:
            return None
        if given.get("type") == "tool":
            return {"type": "function", "name": given.get("name")}
        if not isinstance(given.get("type"), str) or given["type"] not in _CHOICES:
            raise InputError(f"tool_choice is of type {given.get('type')!r:.40}; it must be auto, any, tool or none")
        return _CHOICES[given["type"]]

    def parallel(self) -> bool:
        return self.parallel_tool_calls and not (self.tool_choice or {}).get("disable_parallel_tool_use")

    def answer_schema(self) -> str | None:
        wanted = self.output_config.format
        return None if wanted is None else json.dumps(wanted.schema_)

    def effort(self) -> str | None:
        return self.output_config.effort or self.reasoning_effort

    def thinks(self) -> bool | None:
        asked = {"enabled": True, "disabled": False}.get(self.thinking.type)
        return super().thinks() if asked is None else asked


def _is_function(tool: dict[str, Any]) -> bool:
    return tool.get("type") in (None, "custom")


def _described(tool: dict[str, Any]) -> dict[str, Any]:
    """What a template is told of a tool, in OpenAI's names."""
    names = {"name": "name", "description": "description", "parameters": "input_schema"}
    return {name: tool[given] for name, given in names.items() if tool.get(given) is not None}
