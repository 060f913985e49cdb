"""What every chat route shares: a planned request, and its answers taken apart as they come."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Literal

from diptych.server.answering.choices import answers
from diptych.server.parsers import CallStart, Delta, Plan, Reasoning, Said, said
from diptych.server.parsers.parser import Parser
from diptych.server.serving import Serving
from diptych.types import Logprob, Output

Ending = Literal["stop", "length", "tool_calls"]


@dataclass
class Choice:
    """One answer as far as it has come: what was said, the last output, and how many of its tokens were reasoning."""

    parser: Parser
    deltas: list[Delta] = field(default_factory=list)
    logprobs: list[Logprob] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    last: Output = field(default_factory=lambda: Output(""))
    n_reasoning: int = 0
    _n_held: int = 0  # tokens of which nothing was told yet

    def take(self, output: Output) -> list[Delta]:
        """Add an output; what it tells."""
        told = self.parser.push(output.text)
        if output.finish_reason:
            told += self.parser.finish()
        self._n_held += len(output.tokens)
        if told:
            self.n_reasoning += self._n_held if isinstance(told[0], Reasoning) else 0
            self._n_held = 0
        self.deltas += told
        self.logprobs += output.logprobs
        self.tokens += output.tokens
        self.last = output
        return told

    @property
    def said(self) -> Said:
        return said(self.deltas)

    @property
    def ending(self) -> Ending | None:
        """Why it ended; None before that."""
        if self.last.finish_reason is None:
            return None
        if self.last.finish_reason == "length":
            return "length"
        return "tool_calls" if any(isinstance(delta, CallStart) for delta in self.deltas) else "stop"


@dataclass(frozen=True)
class Told:
    """A piece of the `index`-th answer: what it tells of it, and the output it came in."""

    index: int
    deltas: list[Delta]
    output: Output


class Talk:
    """The answers to one chat request, `n` side by side."""

    def __init__(self, serving: Serving, route: str, plan: Plan, n: int = 1) -> None:
        self.serving, self.route, self.plan = serving, route, plan
        serving.asked(route, plan.request)
        self.choices = [Choice(plan.parser()) for _ in range(n)]

    @property
    def id(self) -> str:
        return self.plan.request.id

    @property
    def lasts(self) -> list[Output]:
        return [choice.last for choice in self.choices]

    async def pieces(self) -> AsyncGenerator[Told, None]:
        """The answers piece by piece; at the end a line in the log."""
        async with aclosing(answers(self.serving.engine, self.plan.request, len(self.choices))) as outputs:
            async for i, output in outputs:
                yield Told(i, self.choices[i].take(output), output)
        self.serving.answered(self.route, *self.lasts)

    async def whole(self) -> list[Choice]:
        """All answers, when the last one is complete."""
        async with aclosing(self.pieces()) as pieces:
            async for _ in pieces:
                pass
        return self.choices
