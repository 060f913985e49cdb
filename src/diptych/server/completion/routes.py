"""Text completions: `/completion` as llama-server has it, and `/v1/completions` as OpenAI has it."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

from fastapi import APIRouter
from fastapi import Request as Http
from fastapi.responses import JSONResponse, Response

from diptych.errors import DiptychError
from diptych.server.answering.choices import several
from diptych.server.completion.body import CompletionBody, OpenAiCompletionBody, PromptBody
from diptych.server.completion.form import Choice, Form, Native, OpenAi
from diptych.server.http import exchange, problems
from diptych.server.http.connection import event_stream, while_connected
from diptych.server.serving import Served, Serving
from diptych.types import Output, Request

router = APIRouter(tags=["completions"])
NATIVE, OPENAI = "/completion", "/v1/completions"


@router.post(NATIVE)
@router.post("/completions", include_in_schema=False)
async def complete(body: CompletionBody, http: Http, serving: Served) -> Response:
    """Go on with a prompt, or with each of several, whole or as a stream."""
    requests = body.requests(serving, http.state.scope, _name())
    return await _answer(NATIVE, body, requests, Native(body, serving), http, serving)


@router.post(OPENAI)
async def complete_as_openai(body: OpenAiCompletionBody, http: Http, serving: Served) -> Response:
    """Go on with a prompt, or with each of several, whole or as a stream of `text_completion`s."""
    requests = body.requests(serving, http.state.scope, name := _name())
    return await _answer(OPENAI, body, requests, OpenAi(body, serving, name), http, serving)


def _name() -> str:
    return exchange.name("cmpl-")


async def _answer(route: str, body: PromptBody, requests: list[Request], form: Form, http: Http, serving: Serving) -> Response:
    serving.notes.unknown(route, body.unknown)
    serving.asked(route, *requests)
    completion = Completion(route, body, requests, form, serving)
    if body.stream:
        return await event_stream(http, completion.events(), serving.options.sse_ping_interval)
    return JSONResponse(await while_connected(http, completion.whole()))


class Completion:
    """The answers to the prompts of one call, `n` to each."""

    def __init__(self, route: str, body: PromptBody, requests: list[Request], form: Form, serving: Serving) -> None:
        self._route, self._requests, self._form, self._serving = route, requests, form, serving
        self._n = body.n
        self._choices = [Choice(request, body.only_prompt(serving)) for request in requests for _ in range(body.n)]

    async def whole(self) -> object:
        """All of them in one body."""
        async with aclosing(several(self._serving.engine, self._requests, self._n)) as outputs:
            async for i, output in outputs:
                self._choices[i].take(output)
        self._note()
        for choice in self._choices:
            await self._form.look_up(choice)
        return self._form.whole(self._choices)

    async def events(self) -> AsyncGenerator[str, None]:
        """What comes as it comes, the end of each, and what the form has behind the last."""
        begun = False
        try:
            async with aclosing(several(self._serving.engine, self._requests, self._n)) as outputs:
                async for i, output in outputs:
                    async for event in self._told(i, output):
                        begun = True
                        yield _event(event)
        except DiptychError as error:
            if not begun:
                raise
            self._serving.failed(self._route, error)
            yield _event(problems.body(error))
            return
        self._note()
        if (last := self._form.after(self._choices)) is not None:
            yield _event(last)
        if self._form.ends:
            yield self._form.ends

    async def _told(self, i: int, output: Output) -> AsyncIterator[object]:
        choice = self._choices[i]
        told = choice.take(output)
        if told.text or told.tokens or told.logprobs or told.progress:
            yield self._form.part(i, choice, told)
            choice.begun = True
        if output.finish_reason:
            await self._form.look_up(choice)
            yield self._form.end(i, choice)

    def _note(self) -> None:
        """A line in the log for each prompt."""
        for i in range(len(self._requests)):
            lasts = [choice.last for choice in self._choices[i * self._n : (i + 1) * self._n]]
            self._serving.answered(self._route, *lasts)


def _event(data: object) -> str:
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n"
