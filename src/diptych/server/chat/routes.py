"""`/v1/chat/completions`: OpenAI's chat, as llama-server and vLLM serve it."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter
from fastapi import Request as Http
from fastapi.responses import JSONResponse, Response

from diptych.errors import DiptychError
from diptych.server.answering import generation, logprobs
from diptych.server.answering.talk import Choice, Talk
from diptych.server.chat.body import ChatBody
from diptych.server.http import problems
from diptych.server.http.connection import event_stream, while_connected
from diptych.server.observe.figures import progress, timings, usage
from diptych.server.parsers import CallArguments, CallStart, Content, Delta, Reasoning
from diptych.server.serving import Served
from diptych.types import Logprob, ToolCall

router = APIRouter(tags=["chat"])
ROUTE = "/v1/chat/completions"


@router.post(ROUTE)
@router.post("/chat/completions", include_in_schema=False)
async def chat(body: ChatBody, http: Http, serving: Served) -> Response:
    """Answer a conversation, whole or as a stream of `chat.completion.chunk`s."""
    serving.notes.unknown(ROUTE, body.unknown)
    talk = Talk(serving, ROUTE, await body.plan(serving, http.state.scope, "chatcmpl-"), body.n)
    if body.stream:
        return await event_stream(http, _events(body, talk), serving.options.sse_ping_interval)
    choices = await while_connected(http, talk.whole())
    found = [_choice(talk, body, i, "message", message(c), c.ending, c.logprobs) for i, c in enumerate(choices)]
    head = _head(body, talk, "chat.completion")
    more = await _verbose(body, talk)
    return JSONResponse({**head, "choices": found, "usage": usage(*talk.lasts), "timings": timings(talk.lasts[0]), **more})


async def _events(body: ChatBody, talk: Talk) -> AsyncGenerator[str, None]:
    """The stream: the role first, then what comes, the finish reason with the timings, the usage if asked for, [DONE]."""
    head = _head(body, talk, "chat.completion.chunk")
    begun: set[int] = set()

    def chunk(i: int, told: dict[str, Any], ending: str | None = None, found: Sequence[Logprob] = (), **more: object) -> str:
        return _event({**head, "choices": [_choice(talk, body, i, "delta", told, ending, found)], **more})

    try:
        async with aclosing(talk.pieces()) as pieces:
            async for piece in pieces:
                i, output = piece.index, piece.output
                if i not in begun:
                    begun.add(i)
                    yield chunk(i, {"role": "assistant", "content": None})
                more = progress(output) | ({"timings": timings(output)} if body.timings_per_token else {})
                tokens = output.logprobs  # told once, with the first delta that they are part of
                for told in map(delta, piece.deltas) if piece.deltas else ([{}] if tokens or output.progress else []):
                    yield chunk(i, told, None, tokens, **more)
                    tokens = ()
                if output.finish_reason:
                    yield chunk(i, {}, talk.choices[i].ending, timings=timings(output), **await _verbose(body, talk, i))
    except DiptychError as error:
        if not begun:
            raise
        talk.serving.failed(ROUTE, error)
        yield _event(problems.body(error))
        return
    if body.stream_options.include_usage:
        yield _event({**head, "choices": [], "usage": usage(*talk.lasts), "timings": timings(talk.lasts[0])})
    yield "data: [DONE]\n\n"


def delta(told: Delta) -> dict[str, Any]:
    """What a stream tells of a piece of an answer."""
    match told:
        case Content(text):
            return {"content": text}
        case Reasoning(text):
            return {"reasoning_content": text}
        case CallStart(index, name_id, name):
            function = {"name": name, "arguments": ""}
            return {"tool_calls": [{"index": index, "id": name_id, "type": "function", "function": function}]}
        case CallArguments(index, text):
            return {"tool_calls": [{"index": index, "function": {"arguments": text}}]}


def message(choice: Choice) -> dict[str, Any]:
    """A whole answer as a message."""
    said = choice.said
    out: dict[str, Any] = {"role": "assistant", "content": said.content}
    if said.reasoning:
        out["reasoning_content"] = said.reasoning
    if said.calls:
        out["content"] = said.content or None
        out["tool_calls"] = [call(one) for one in said.calls]
    return out


def call(one: ToolCall) -> dict[str, Any]:
    """A call of a tool as OpenAI writes it."""
    return {"id": one.id, "type": "function", "function": {"name": one.name, "arguments": one.arguments}}


async def _verbose(body: ChatBody, talk: Talk, i: int = 0) -> dict[str, Any]:
    """What became of the request, where that is asked for."""
    choice = talk.choices[i]
    return await generation.verbose(talk.serving, body, talk.plan.request, choice.last, choice.said.content)


def _head(body: ChatBody, talk: Talk, kind: str) -> dict[str, Any]:
    serving = talk.serving
    return {
        "id": talk.id,
        "object": kind,
        "created": int(time.time()),
        "model": body.model or serving.name,
        "system_fingerprint": serving.fingerprint,
    }


def _choice(
    talk: Talk, body: ChatBody, i: int, name: str, told: dict[str, Any], ending: str | None, found: Sequence[Logprob]
) -> dict[str, Any]:
    out = {"index": i, name: told, "finish_reason": ending}
    if body.n_logprobs() is not None and found:
        out["logprobs"] = {"content": logprobs.content(talk.serving.engine, found)}
    return out


def _event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n"
