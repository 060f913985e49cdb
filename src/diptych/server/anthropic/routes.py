"""`/v1/messages` and `/v1/messages/count_tokens`: Anthropic's Messages."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter
from fastapi import Request as Http
from fastapi.responses import JSONResponse, Response

from diptych.errors import DiptychError
from diptych.server.answering.talk import Talk
from diptych.server.anthropic.body import MessagesBody
from diptych.server.anthropic.events import Blocks, Event
from diptych.server.http import problems
from diptych.server.http.connection import event_stream, while_connected
from diptych.server.observe.figures import timings
from diptych.server.serving import Served
from diptych.types import Output

router = APIRouter(tags=["messages"])
ROUTE = "/v1/messages"


@router.post(ROUTE)
async def message(body: MessagesBody, http: Http, serving: Served) -> Response:
    """Answer a conversation, whole or as a stream of events."""
    serving.notes.unknown(ROUTE, body.unknown)
    answer = Answer(body, Talk(serving, ROUTE, await body.plan(serving, http.state.scope, "msg_")))
    if body.stream:
        return await event_stream(http, answer.stream(), serving.options.sse_ping_interval)
    return JSONResponse(await while_connected(http, answer.whole()))


@router.post(f"{ROUTE}/count_tokens")
async def count_tokens(body: MessagesBody, http: Http, serving: Served) -> dict[str, int]:
    """How many tokens the prompt has, its media counted, which are not encoded."""
    return {"input_tokens": await body.count(serving, http.state.scope, f"{ROUTE}/count_tokens")}


class Answer:
    """The answer to one request, as the message it is so far."""

    def __init__(self, body: MessagesBody, talk: Talk) -> None:
        self._body, self._talk = body, talk
        self._blocks = Blocks(thoughts=body.thinking.display != "omitted")
        self._choice = talk.choices[0]

    async def whole(self) -> Event:
        """The message, when it is complete."""
        async with aclosing(self._talk.pieces()) as pieces:
            async for piece in pieces:
                list(self._blocks.take(piece.deltas))
        list(self._blocks.close())
        return self._message(self._choice.last, **self._ending())

    async def stream(self) -> AsyncGenerator[str, None]:
        """What comes as it comes; an error behind the first event is an event."""
        begun = False
        try:
            async with aclosing(self._talk.pieces()) as pieces:
                async for piece in pieces:
                    if not begun:
                        begun = True
                        yield _event({"type": "message_start", "message": self._message(piece.output)})
                    for event in self._blocks.take(piece.deltas):
                        yield _event(event)
        except DiptychError as error:
            if not begun:
                raise
            self._talk.serving.failed(ROUTE, error)
            yield _event(problems.body(error, ROUTE))
            return
        for event in self._blocks.close():
            yield _event(event)
        yield _event({"type": "message_delta", "delta": self._ending(), "usage": self._usage(self._choice.last)})
        yield _event({"type": "message_stop"})

    def _message(self, output: Output, stop_reason: str | None = None, stop_sequence: str | None = None) -> Event:
        return {
            "id": self._talk.id,
            "type": "message",
            "role": "assistant",
            "model": self._body.model or self._talk.serving.name,
            "content": list(self._blocks.content),
            "stop_reason": stop_reason,
            "stop_sequence": stop_sequence,
            "usage": self._usage(output),
        }

    def _ending(self) -> dict[str, Any]:
        """Why it ended, in Anthropic's words."""
        last = self._choice.last
        if last.stopped_by is not None:
            return {"stop_reason": "stop_sequence", "stop_sequence": last.stopped_by}
        reasons = {"stop": "end_turn", "tool_calls": "tool_use", "length": "max_tokens"}
        reason = reasons[self._choice.ending or "stop"]
        n = last.usage.prompt_tokens + last.usage.completion_tokens
        if reason == "max_tokens" and n > self._talk.serving.engine.about.n_ctx_slot:
            reason = "model_context_window_exceeded"
        return {"stop_reason": reason, "stop_sequence": None}

    def _usage(self, output: Output) -> dict[str, Any]:
        """The tokens; what the KV cache held counts apart. Where the time went stands in here, once it is over: clients look
        for no field of ours beside Anthropic's own."""
        used = output.usage
        ended = output.finish_reason is not None
        return {
            "input_tokens": used.prompt_tokens - used.cached_tokens,
            "cache_creation_input_tokens": 0,  # those that one pays for
            "cache_read_input_tokens": used.cached_tokens,
            "output_tokens": used.completion_tokens,
            "output_tokens_details": {"thinking_tokens": self._choice.n_reasoning},
            **({"timings": timings(output)} if ended else {}),
        }


def _event(event: dict[str, Any]) -> str:
    return f"event: {event['type']}\ndata: {json.dumps(event, ensure_ascii=False)}\n\n"
