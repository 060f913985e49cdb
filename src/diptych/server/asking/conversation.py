"""What every form of chat asks: OpenAI's two, and Anthropic's. A form says where its turns, tools and schema stand."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from diptych.errors import InputError
from diptych.prompt import history
from diptych.server.asking.fields import Answering
from diptych.server.http import exchange
from diptych.server.parsers import Plan, plan
from diptych.server.serving import Serving
from diptych.types import Json, Message, Request

Function = dict[str, Any]  # a tool in the form of OpenAI's chat: the wire format

_THINKS = {"on": True, "off": False}  # --reasoning; auto is neither


class Conversation(Answering, ABC):
    """A conversation to go on with, in the form of some API."""

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

    @abstractmethod
    def turns(self) -> tuple[Message, ...]:
        """What was said so far. Raises InputError naming what is none."""

    def functions(self) -> tuple[Function, ...]:
        """The tools in the form of OpenAI's chat."""
        return self.tools

    def choice(self) -> Json:
        """The tool_choice in the form of OpenAI's chat."""
        return self.tool_choice

    def parallel(self) -> bool:
        """Whether an answer may hold several calls."""
        return self.parallel_tool_calls

    def answer_schema(self) -> str | None:
        """The JSON schema that the answer has to keep to; None where it is free."""
        return None

    def n_logprobs(self) -> int | None:
        """How many likeliest tokens to tell beside each token; None where nobody asks for probabilities."""
        return None

    def effort(self) -> str | None:
        """How much the model is to think, in the words of its template."""
        return self.reasoning_effort

    def thinks(self) -> bool | None:
        """Whether the model is to think; None leaves it to its template."""
        return False if self.effort() == "none" else self.enable_thinking

    async def plan(self, serving: Serving, scope: str, prefix: str) -> Plan:
        """The engine's request, named `prefix` and a random rest, and what reads its answers.

        Raises InputError for what contradicts itself, and as `parsers.plan` does.
        """
        request = self.request(serving, scope)
        reasoning = self.reasoning_format or serving.options.reasoning_format
        named = replace(request, id=exchange.name(prefix))
        # templates are programs, and take their time
        return await asyncio.to_thread(plan, serving.engine.template, named, self.choice(), self.parallel(), reasoning)

    async def count(self, serving: Serving, scope: str, route: str) -> int:
        """How many tokens the prompt has, media counted and not encoded. Raises as `plan` does."""
        serving.notes.unknown(route, self.unknown)
        planned = await self.plan(serving, scope, "")
        return await asyncio.to_thread(serving.engine.count, planned.request)

    def request(self, serving: Serving, scope: str) -> Request:
        """The engine's request as the client made it. Raises InputError for what contradicts itself."""
        if self.n > serving.options.n_parallel:
            most = serving.options.n_parallel
            raise InputError(f"n is {self.n}, and there are {most} slots; ask for fewer, or start the server with more (-np)")
        schema = self.answer_schema()
        if schema is not None and self.grammar is not None:
            raise InputError("both response_format and grammar say what the answer must look like; give one")
        if schema is not None:
            self.json_schema = schema
        turns = self.turns()
        request = Request(
            history.seen(turns, self.vision_history),
            tools=self.functions(),
            logprobs=self.n_logprobs(),
            template=self._template_variables(serving),
            add_generation_prompt=self.add_generation_prompt,
            continue_final=self._continues(turns),
            scope=scope,
        )
        return self.apply(request, serving.engine.default_sampling, serving.options)

    def _continues(self, turns: Sequence[Message]) -> bool:
        """Whether the answer goes on where the last message ends; one of the assistant's asks for that, as in llama-server."""
        if self.continue_final_message and self.add_generation_prompt and "add_generation_prompt" in self.model_fields_set:
            raise InputError(
                "continue_final_message goes on with the last message, and add_generation_prompt begins another; set one of them"
            )
        if self.continue_final_message is not None:
            return self.continue_final_message
        roles = [turn.role for turn in turns[-2:]]
        if roles == ["assistant", "assistant"]:
            raise InputError("the last two messages are both the assistant's; the answer can go on with one of them only")
        return roles[-1:] == ["assistant"]

    def _template_variables(self, serving: Serving) -> dict[str, Any]:
        """Variables of the chat template: the server's, those of the request, and what has a field of its own."""
        out = {**serving.options.chat_template_kwargs, **(self.chat_template_kwargs or {})}
        thinks = self.thinks() if self.thinks() is not None else _THINKS.get(serving.options.reasoning)
        for name, value in (("reasoning_effort", self.effort()), ("enable_thinking", thinks)):
            if value is not None:
                out.setdefault(name, value)
        return out
