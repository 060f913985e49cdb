"""How a completion is told: llama-server's form and OpenAI's."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from diptych.server.answering import generation, logprobs
from diptych.server.asking.prompts import shown
from diptych.server.completion.body import CompletionBody, OpenAiCompletionBody
from diptych.server.observe.figures import progress, timings, usage
from diptych.server.serving import Serving
from diptych.types import Logprob, Output, Request, Usage

Event = dict[str, Any]


@dataclass
class Choice:
    """One answer as far as it has come. `begun` is false until something of it was told; of one that is `silent` nothing
    is kept but the figures."""

    request: Request
    silent: bool = False
    begun: bool = False
    text: str = ""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[Logprob] = field(default_factory=list)
    last: Output = field(default_factory=lambda: Output(""))
    prompt: str = ""  # as the model reads it, once that was asked for

    def take(self, output: Output) -> Output:
        """Add an output; what a stream tells of it."""
        if self.silent:
            counts = replace(output.usage, completion_tokens=0)
            output = replace(
                output, text="", tokens=(), logprobs=(), finish_reason=output.finish_reason and "length", usage=counts
            )
        self.text += output.text
        self.tokens += output.tokens
        self.logprobs += output.logprobs
        self.last = output
        return output


class Form(Protocol):
    """What clients of one kind are told: all answers at once, or what comes as it comes."""

    ends: str  # of a stream

    async def look_up(self, choice: Choice) -> None:
        """Get what else is told of a choice that has ended."""
        ...

    def whole(self, choices: Sequence[Choice]) -> object: ...
    def part(self, i: int, choice: Choice, output: Output) -> Event: ...
    def end(self, i: int, choice: Choice) -> Event: ...
    def after(self, choices: Sequence[Choice]) -> Event | None: ...


class Native:
    """llama-server's: an object an answer, with all that is known of it."""

    ends = ""

    def __init__(self, body: CompletionBody, serving: Serving) -> None:
        self._body, self._serving = body, serving

    async def look_up(self, choice: Choice) -> None:
        choice.prompt = await asyncio.to_thread(generation.as_read, self._serving, choice.request)

    def whole(self, choices: Sequence[Choice]) -> object:
        found = [
            self._final(i, choice, choice.text, choice.tokens if self._body.return_tokens else [])
            for i, choice in enumerate(choices)
        ]
        return found[0] if len(found) == 1 else found

    def part(self, i: int, choice: Choice, output: Output) -> Event:
        return {
            "index": i,
            "content": output.text,
            "tokens": list(output.tokens),
            "stop": False,
            "id_slot": -1 if output.slot is None else output.slot,
            "tokens_predicted": len(choice.tokens),
            "tokens_evaluated": output.usage.prompt_tokens,
            **progress(output),
            **({"timings": timings(output)} if self._body.timings_per_token else {}),
            **self._probabilities(output.logprobs),
        }

    def end(self, i: int, choice: Choice) -> Event:
        return self._final(i, replace(choice, logprobs=[]), "", [])

    def after(self, choices: Sequence[Choice]) -> Event | None:
        return None

    def _final(self, i: int, choice: Choice, text: str, tokens: Sequence[int]) -> Event:
        body, serving = self._body, self._serving
        told = generation.final(serving, body, choice.request, choice.last, choice.text)
        told = {
            "index": i, "content": text, "tokens": list(tokens), **told, "prompt": choice.prompt,
            **self._probabilities(choice.logprobs),
        }  # fmt: skip
        return _picked(told, body.response_fields) if body.response_fields else told

    def _probabilities(self, found: Sequence[Logprob]) -> Event:
        told = logprobs.after_chain if self._body.post_sampling_probs else logprobs.content
        return {"completion_probabilities": told(self._serving.engine, found)} if found else {}


class OpenAi:
    """OpenAI's: one object with all the answers as its choices."""

    ends = "data: [DONE]\n\n"

    def __init__(self, body: OpenAiCompletionBody, serving: Serving, name: str) -> None:
        self._body, self._serving = body, serving
        self._head: Event = {
            "id": name,
            "object": "text_completion",
            "created": int(time.time()),
            "model": body.model or serving.name,
            "system_fingerprint": serving.fingerprint,
        }
        self._more: Event = {}

    async def look_up(self, choice: Choice) -> None:
        if not self._more:
            self._more = await generation.verbose(self._serving, self._body, choice.request, choice.last, choice.text)

    def whole(self, choices: Sequence[Choice]) -> object:
        found = [self._choice(i, c, c.text, c.logprobs, c.last.finish_reason, first=True) for i, c in enumerate(choices)]
        return {**self._head, "choices": found, **self._figures(choices), **self._more}

    def part(self, i: int, choice: Choice, output: Output) -> Event:
        told = self._choice(i, choice, output.text, output.logprobs, None, first=not choice.begun)
        return {**self._head, "choices": [told], **({"timings": timings(output)} if self._body.timings_per_token else {})}

    def end(self, i: int, choice: Choice) -> Event:
        told = self._choice(i, choice, "", [], choice.last.finish_reason, first=not choice.begun)
        return {**self._head, "choices": [told], "timings": timings(choice.last), **self._more}

    def after(self, choices: Sequence[Choice]) -> Event | None:
        return {**self._head, "choices": [], **self._figures(choices)} if self._body.stream_options.include_usage else None

    def _choice(self, i: int, choice: Choice, text: str, found: Sequence[Logprob], finish: str | None, *, first: bool) -> Event:
        before = self._echoed(choice.request) if self._body.echo and first else ""
        offset = len(choice.text) - len(text)
        return {"text": before + text, "index": i, "logprobs": self._logprobs(found, offset), "finish_reason": finish}

    def _logprobs(self, found: Sequence[Logprob], offset: int) -> object:
        if not found:
            return None
        engine = self._serving.engine
        if self._body.logprobs is not None:
            return logprobs.legacy(engine, found, offset)
        told = logprobs.after_chain if self._body.post_sampling_probs else logprobs.content
        return {"content": told(engine, found)}

    def _echoed(self, request: Request) -> str:
        engine = self._serving.engine
        pieces = shown(request.prompt or (), self._serving.media_marker)
        texts = (p.encode() if isinstance(p, str) else engine.detokenize([p]) for p in pieces)
        return b"".join(texts).decode(errors="replace")

    def _figures(self, choices: Sequence[Choice]) -> Event:
        """The usage of all, each prompt counted once, and the timings of the first."""
        prompts = [choice.last.usage for choice in choices[:: self._body.n]]
        total = Usage(
            sum(u.prompt_tokens for u in prompts),
            sum(u.media_tokens for u in prompts),
            sum(choice.last.usage.completion_tokens for choice in choices),
            sum(u.cached_tokens for u in prompts),
        )
        return {"usage": usage(Output("", usage=total)), "timings": timings(choices[0].last)}


def _picked(told: Event, names: Sequence[str]) -> Event:
    """Some fields alone; `a/b` is the field b of the field a. Those that are not there are left out."""
    out = {}
    for name in names:
        found: object = told
        for key in name.split("/"):
            found = found.get(key, _MISSING) if isinstance(found, dict) else _MISSING
        if found is not _MISSING:
            out[name] = found
    return out


_MISSING = object()
