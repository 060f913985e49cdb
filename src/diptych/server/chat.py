"""`/v1/chat/completions`: OpenAI's chat, as llama-server and vLLM serve it."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

from fastapi import APIRouter
from fastapi import Request as Http
from fastapi.responses import JSONResponse, Response

from diptych.errors import DiptychError
from diptych.server import logprobs, problems
from diptych.server.chat_body import ChatBody
from diptych.server.choices import answers
from diptych.server.connection import event_stream, while_connected
from diptych.server.figures import timings, usage
from diptych.server.serving import Served, Serving
from diptych.types import Output, Request

router = APIRouter(tags=["chat"])
ROUTE = "/v1/chat/completions"


@dataclass
class Choice:
    """One answer as far as it has come."""

    content: str = ""
    logprobs: list[dict[str, object]] = field(default_factory=list)
    last: Output = field(default_factory=lambda: Output(""))

    def take(self, serving: Serving, output: Output) -> dict[str, object]:
        """Add an output; the delta that a stream tells."""
        self.content += output.text
        self.last = output
        self.logprobs += logprobs.content(serving.engine, output.logprobs)
        return {"content": output.text} if output.text else {}

    @property
    def message(self) -> dict[str, object]:
        return {"role": "assistant", "content": self.content}


@router.post(ROUTE)
@router.post("/chat/completions", include_in_schema=False)
async def chat(body: ChatBody, http: Http, serving: Served) -> Response:
    """Answer a conversation, whole or as a stream of `chat.completion.chunk`s."""
    serving.notes.unknown(ROUTE, body.unknown)
    request = replace(body.request(serving, http.state.scope), id=f"chatcmpl-{secrets.token_hex(16)}")
    if body.stream:
        return await event_stream(http, _events(body, request, serving), serving.options.sse_ping_interval)
    return JSONResponse(await while_connected(http, _whole(body, request, serving)))


async def _whole(body: ChatBody, request: Request, serving: Serving) -> dict[str, object]:
    choices = [Choice() for _ in range(body.n)]
    async with aclosing(answers(serving.engine, request, body.n)) as outputs:
        async for i, output in outputs:
            choices[i].take(serving, output)
    found = [_choice(i, body, "message", c.message, c.last.finish_reason, c.logprobs) for i, c in enumerate(choices)]
    lasts = [choice.last for choice in choices]
    serving.notes.answered(ROUTE, request.id, lasts[0])
    head = _head(body, request, serving, "chat.completion")
    return {**head, "choices": found, "usage": usage(*lasts), "timings": timings(lasts[0])}


async def _events(body: ChatBody, request: Request, serving: Serving) -> AsyncGenerator[str, None]:
    """The stream: the role first, then what comes, the finish reason with the timings, the usage if asked for, [DONE]."""
    head = _head(body, request, serving, "chat.completion.chunk")
    choices = [Choice() for _ in range(body.n)]
    begun: set[int] = set()

    def chunk(i: int, delta: dict[str, object], finish: str | None = None, more: dict[str, Any] | None = None) -> str:
        probabilities, choices[i].logprobs = choices[i].logprobs, []
        return _event({**head, "choices": [_choice(i, body, "delta", delta, finish, probabilities)], **(more or {})})

    try:
        async with aclosing(answers(serving.engine, request, body.n)) as outputs:
            async for i, output in outputs:
                if i not in begun:
                    begun.add(i)
                    yield chunk(i, {"role": "assistant", "content": None})
                if (delta := choices[i].take(serving, output)) or choices[i].logprobs:
                    yield chunk(i, delta, more={"timings": timings(output)} if body.timings_per_token else {})
                if output.finish_reason:
                    yield chunk(i, {}, output.finish_reason, {"timings": timings(output)})
    except DiptychError as error:
        if not begun:
            raise
        serving.notes.failed(ROUTE, request.id, problems.status_of(error), str(error))
        yield _event(problems.body(error))
        return
    lasts = [choice.last for choice in choices]
    serving.notes.answered(ROUTE, request.id, lasts[0])
    if body.stream_options.include_usage:
        yield _event({**head, "choices": [], "usage": usage(*lasts), "timings": timings(lasts[0])})
    yield "data: [DONE]\n\n"


def _head(body: ChatBody, request: Request, serving: Serving, kind: str) -> dict[str, Any]:
    return {
        "id": request.id,
        "object": kind,
        "created": int(time.time()),
        "model": body.model or serving.name,
        "system_fingerprint": serving.fingerprint,
    }


def _choice(
    i: int, body: ChatBody, name: str, content: dict[str, object], finish: str | None, found: list[dict[str, object]]
) -> dict[str, object]:
    asked = body.n_logprobs() is not None
    return {"index": i, name: content, "finish_reason": finish, **({"logprobs": {"content": found}} if asked and found else {})}


def _event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n"
