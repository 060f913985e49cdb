"""The body of a completion, native or OpenAI's, and what it asks of the engine."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

from pydantic import Field

from diptych.errors import InputError
from diptych.server.asking.fields import Answering, ShortText
from diptych.server.asking.openai import StreamOptions
from diptych.server.asking.prompts import Prompt, prompts
from diptych.server.serving import Serving
from diptych.types import Request

_Probabilities = Annotated[int | None, Field(ge=0, le=100)]


class PromptBody(Answering):
    """Prompts to go on with: what both forms have."""

    prompt: Annotated[Any, Field(description="A string, tokens, both in a list, an object with media, or a list of these.")]
    n_probs: _Probabilities = None
    post_sampling_probs: bool = False

    @property
    def n_likeliest(self) -> int | None:
        """How many likeliest tokens to tell; None for no probabilities at all."""
        return self.n_probs or None

    def requests(self, serving: Serving, scope: str, name: str) -> list[Request]:
        """The engine's request for each prompt. Raises InputError for what cannot be meant."""
        if self.n > serving.options.n_parallel:
            raise InputError(
                f"n is {str(self.n)[:20]}, and there are {serving.options.n_parallel} slots; ask for fewer, or start more (-np)"
            )
        found = [self._request(one, serving, scope) for one in prompts(self.prompt, serving.media_marker)]
        return [replace(request, id=f"{name}-{i}" if len(found) > 1 else name) for i, request in enumerate(found)]

    def _request(self, prompt: Prompt, serving: Serving, scope: str) -> Request:
        request = Request(prompt=prompt, logprobs=self.n_likeliest, probs_after_chain=self.post_sampling_probs, scope=scope)
        request = self.apply(request, serving.engine.default_sampling, serving.options)
        return replace(request, max_tokens=1) if self.only_prompt(serving) else request

    def only_prompt(self, serving: Serving) -> bool:
        """Whether the prompt is to be read and nothing answered, which leaves it in the KV cache."""
        return self.limit(serving.options.n_predict) == 0


class CompletionBody(PromptBody):
    """llama-server's own form."""

    logprobs: _Probabilities = None
    response_fields: Annotated[tuple[ShortText, ...], Field(max_length=256)] = ()

    @property
    def n_likeliest(self) -> int | None:
        return self.n_probs or self.logprobs or None


class OpenAiCompletionBody(PromptBody):
    """OpenAI's form. `n_probs` asks for probabilities as a chat tells them, `logprobs` for those of old."""

    stream_options: StreamOptions = StreamOptions()
    logprobs: _Probabilities = None
    echo: bool = False
    suffix: str | None = None
    best_of: int | None = None

    @property
    def n_likeliest(self) -> int | None:
        return self.logprobs if self.logprobs is not None else self.n_probs or None

    def requests(self, serving: Serving, scope: str, name: str) -> list[Request]:
        if self.suffix:
            raise InputError("suffix asks to fill in what stands before it, which is not done here; leave it out")
        if self.best_of is not None and self.best_of != self.n:
            raise InputError(
                f"best_of is {str(self.best_of)[:20]} and n is {self.n}; all answers are given, so they must be equal"
            )
        if self.echo and self.n_likeliest is not None:
            raise InputError("echo with probabilities would need those of the prompt, which are not kept; leave one of them out")
        return super().requests(serving, scope, name)
