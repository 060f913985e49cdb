"""The body of a Responses request."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from diptych.errors import InputError
from diptych.server.asking.conversation import Conversation, Function
from diptych.server.asking.fields import MAX_TURNS, Body
from diptych.server.asking.openai import ResponseFormat
from diptych.server.responses import items
from diptych.types import Json, Message

_LOGPROBS = "message.output_text.logprobs"  # in `include`
# what asks for nothing that could be different here
_MEANT_OTHERWISE = ("stream_options", "prompt_cache_retention", "prompt_cache_options", "context_management")
# what would have to be kept between requests
_KEPT = {
    "previous_response_id": "send the whole conversation as input",
    "conversation": "send the whole conversation as input",
    "prompt": "send its text as instructions or input",
    "background": "stream the answer, or wait for it",
}


class Reasoning(Body):
    effort: str | None = None


class TextFormat(Body):
    """`text`: what form the answer has; `format` has the schema itself where a chat's has it one level down."""

    format: ResponseFormat = ResponseFormat()


class ResponsesBody(Conversation):
    """A conversation to go on with, as items."""

    input: str | Annotated[list[Any], Field(max_length=MAX_TURNS)] | None = None
    instructions: str | None = None
    max_output_tokens: int | None = None
    reasoning: Reasoning = Reasoning()
    text: TextFormat = TextFormat()
    include: tuple[str, ...] = ()
    top_logprobs: Annotated[int, Field(ge=0, le=100)] = 0
    truncation: Literal["auto", "disabled"] = "disabled"
    metadata: dict[str, Any] = Field(default_factory=dict)
    previous_response_id: str | None = None
    conversation: str | dict[str, Any] | None = None
    prompt: dict[str, Any] | None = None
    background: bool = False

    @property
    def unknown(self) -> list[str]:
        """Fields and tools that do nothing here, but those that ask for nothing."""
        others = [f"tools of type {kind!s:.40}" for tool in self.tools if (kind := tool.get("type")) != "function"]
        cut = ["truncation: auto"] if self.truncation == "auto" else []
        told = [f"include: {name:.40}" for name in self.include if name != _LOGPROBS]
        return [name for name in super().unknown if name not in _MEANT_OTHERWISE] + others + cut + told

    def turns(self) -> tuple[Message, ...]:
        """What was said so far. Raises InputError for what would have to be kept between requests, too."""
        for name, instead in _KEPT.items():
            if getattr(self, name):
                raise InputError(f"{name} is given, and nothing is kept here between requests; {instead}")
        if self.n != 1:
            raise InputError(f"n is {self.n}, and a response is one answer; ask several times, or a chat")
        return items.turns(self.input, self.instructions)

    def functions(self) -> tuple[Function, ...]:
        """The functions among the tools, those that `allowed_tools` leaves. Tools that OpenAI runs itself are none."""
        given = [tool for tool in self.tools if tool.get("type") == "function"]
        if isinstance(self.tool_choice, dict) and self.tool_choice.get("type") == "allowed_tools":
            given = [tool for tool in given if tool.get("name") in self._allowed(self.tool_choice)]
        return tuple({"type": "function", "function": _described(tool)} for tool in given)

    def choice(self) -> Json:
        if isinstance(self.tool_choice, dict) and self.tool_choice.get("type") == "allowed_tools":
            mode: Json = self.tool_choice.get("mode", "auto")
            return mode
        return self.tool_choice

    def answer_schema(self) -> str | None:
        if self.text.format.type == "json_schema" and self.text.format.schema_ is None:
            raise InputError("text.format is json_schema and has no schema; give one, or use json_object")
        return self.text.format.schema_text()

    def n_logprobs(self) -> int | None:
        return self.top_logprobs if self.top_logprobs or _LOGPROBS in self.include else None

    def effort(self) -> str | None:
        return self.reasoning.effort or self.reasoning_effort

    def limit(self, default: int) -> int | None:
        return super().limit(default if self.max_output_tokens is None else self.max_output_tokens)

    @staticmethod
    def _allowed(choice: dict[str, Any]) -> list[object]:
        allowed = choice.get("tools")
        if not isinstance(allowed, list) or not all(isinstance(tool, dict) for tool in allowed):
            raise InputError("tool_choice is allowed_tools and has no list of tools; give type and name of each")
        return [tool.get("name") for tool in allowed]


def _described(tool: dict[str, Any]) -> dict[str, Any]:
    """What a template is told of a function."""
    return {name: tool[name] for name in ("name", "description", "parameters") if tool.get(name) is not None}
