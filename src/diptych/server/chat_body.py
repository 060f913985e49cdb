"""The body of a chat request, and what it asks of the engine."""

from __future__ import annotations

import asyncio
import json
import secrets
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from diptych.errors import InputError
from diptych.prompt import history
from diptych.server import parts
from diptych.server.fields import Answering
from diptych.server.parsers import Plan, plan
from diptych.server.serving import Serving
from diptych.types import Request


class StreamOptions(BaseModel):
    include_usage: bool = False


class ResponseFormat(BaseModel):
    """OpenAI's `response_format`; `schema` beside `json_object` is llama-server's."""

    model_config = ConfigDict(extra="allow", populate_by_name=True)

    type: Literal["text", "json_object", "json_schema"] = "text"
    json_schema: dict[str, Any] | None = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None

    def schema_text(self) -> str | None:
        """The JSON schema that is asked for; None where it is none. Raises InputError where it is missing."""
        if self.type == "text":
            return None
        if self.type == "json_object":
            return json.dumps(self.schema_ if self.schema_ is not None else {"type": "object"})
        schema = (self.json_schema or {}).get("schema", self.schema_)
        if schema is None:
            raise InputError("response_format is json_schema and has no json_schema.schema; give one, or use json_object")
        return json.dumps(schema)


class ChatBody(Answering):
    """A conversation to go on with."""

    messages: Annotated[list[dict[str, Any]], Field(min_length=1)]
    stream_options: StreamOptions = StreamOptions()
    response_format: ResponseFormat = ResponseFormat()
    logprobs: bool = False
    top_logprobs: Annotated[int | None, Field(ge=0, le=100)] = None
    n_probs: Annotated[int | None, Field(ge=0, le=100)] = None
    tools: tuple[dict[str, Any], ...] = ()
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool = True
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool | None = None
    vision_history: str = "all"
    reasoning_format: Literal["auto", "none", "deepseek", "deepseek-legacy"] | None = None
    reasoning_effort: str | None = None
    enable_thinking: bool | None = None

    async def plan(self, serving: Serving, scope: str, prefix: str) -> Plan:
        """The engine's request, named `prefix` and a random rest, and what reads its answers.

        Raises InputError for what contradicts itself, and as `parsers.plan` does.
        """
        request = self.request(serving, scope)
        reasoning = self.reasoning_format or serving.options.reasoning_format
        named = replace(request, id=prefix + secrets.token_hex(16))
        # templates are programs, and take their time
        return await asyncio.to_thread(
            plan, serving.engine.template, named, self.tool_choice, self.parallel_tool_calls, reasoning
        )

    def request(self, serving: Serving, scope: str) -> Request:
        """The engine's request as the client made it. Raises InputError for what contradicts itself."""
        if self.n > serving.options.n_parallel:
            most = serving.options.n_parallel
            raise InputError(f"n is {self.n}, and there are {most} slots; ask for fewer, or start the server with more (-np)")
        schema = self.response_format.schema_text()
        if schema is not None and self.grammar is not None:
            raise InputError("both response_format and grammar say what the answer must look like; give one")
        if schema is not None:
            self.json_schema = schema
        request = Request(
            history.seen(parts.messages(self.messages), self.vision_history),
            tools=self.tools,
            logprobs=self.n_logprobs(),
            template=self._template_variables(serving),
            add_generation_prompt=self.add_generation_prompt,
            continue_final=self._continues(),
            scope=scope,
        )
        return self.apply(request, serving.engine.default_sampling, serving.options.n_predict)

    def _continues(self) -> bool:
        """Whether the answer goes on where the last message ends; one of the assistant's asks for that, as in llama-server."""
        if self.continue_final_message is not None:
            return self.continue_final_message
        roles = [message.get("role") for message in self.messages[-2:]]
        if roles == ["assistant", "assistant"]:
            raise InputError("the last two messages are both the assistant's; the answer can go on with one of them only")
        return roles[-1:] == ["assistant"]

    def _template_variables(self, serving: Serving) -> dict[str, Any]:
        """Variables of the chat template: the server's, those of the request, and what has a field of its own."""
        out = {**serving.options.chat_template_kwargs, **(self.chat_template_kwargs or {})}
        if self.reasoning_effort is not None:
            out.setdefault("reasoning_effort", self.reasoning_effort)
        thinking = self.enable_thinking if self.reasoning_effort != "none" else False
        if thinking is not None:
            out.setdefault("enable_thinking", thinking)
        return out

    def n_logprobs(self) -> int | None:
        """How many likeliest tokens to tell; llama-server's number where a client only asks for logprobs."""
        if self.logprobs:
            return 20 if self.top_logprobs is None else self.top_logprobs
        if self.top_logprobs is not None:
            raise InputError("top_logprobs needs logprobs to be true")
        return self.n_probs
