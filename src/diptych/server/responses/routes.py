"""`/v1/responses`: OpenAI's Responses, as far as nothing has to be kept between requests."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter
from fastapi import Request as Http
from fastapi.responses import JSONResponse, Response

from diptych.errors import DiptychError, InputError
from diptych.server.answering import logprobs
from diptych.server.answering.talk import Talk, Told
from diptych.server.http import problems
from diptych.server.http.connection import event_stream, while_connected
from diptych.server.observe.figures import progress, timings
from diptych.server.responses.body import ResponsesBody
from diptych.server.responses.events import Event, Items
from diptych.server.serving import Served

router = APIRouter(tags=["responses"])
ROUTE = "/v1/responses"


@router.post(ROUTE)
@router.post("/responses", include_in_schema=False)
async def respond(body: ResponsesBody, http: Http, serving: Served) -> Response:
    """Answer a conversation, whole or as a stream of events."""
    serving.notes.unknown(ROUTE, body.unknown)
    answer = Answer(body, Talk(serving, ROUTE, await body.plan(serving, http.state.scope, "resp_")))
    if body.stream:
        return await event_stream(http, answer.stream(), serving.options.sse_ping_interval)
    return JSONResponse(await while_connected(http, answer.whole()))


@router.post(f"{ROUTE}/input_tokens")
@router.post("/responses/input_tokens", include_in_schema=False)
async def input_tokens(body: ResponsesBody, http: Http, serving: Served) -> dict[str, object]:
    """How many tokens the prompt of a response has, its media counted, which are not encoded."""
    n = await body.count(serving, http.state.scope, f"{ROUTE}/input_tokens")
    return {"input_tokens": n, "object": "response.input_tokens"}


class Answer:
    """The answer to one request, as the response it is so far."""

    def __init__(self, body: ResponsesBody, talk: Talk) -> None:
        self._body, self._talk, self._items = body, talk, Items()
        self._choice, self._asked = talk.choices[0], _asked(body)
        self._created = int(time.time())
        self._n_sent = 0

    async def whole(self) -> Event:
        """The response, when it is complete."""
        async with aclosing(self._talk.pieces()) as pieces:
            async for piece in pieces:
                self._take(piece)
        return self._ended()

    async def stream(self) -> AsyncGenerator[str, None]:
        """What comes as it comes. An error behind the first event is an event, and a failed response."""
        begun = False
        try:
            async with aclosing(self._talk.pieces()) as pieces:
                async for piece in pieces:
                    for event in self._take(piece) if begun else [*self._opening(), *self._take(piece)]:
                        yield self._sent(event)
                    begun = True
        except DiptychError as error:
            if not begun:
                raise
            self._talk.serving.failed(ROUTE, error)
            for event in self._failure(error):
                yield self._sent(event)
            return
        last = self._ended()
        yield self._sent({"type": f"response.{last['status']}", "response": last, "timings": last["timings"]})

    def _take(self, piece: Told) -> list[Event]:
        """The events of a piece of the answer, with those that end it behind the last; or how far the prompt is."""
        if told := progress(piece.output):
            return [{"type": "response.in_progress", "response": self._response("in_progress"), **told}]
        found = logprobs.content(self._talk.serving.engine, piece.output.logprobs)
        events = list(self._items.take(piece.deltas, found))
        if piece.output.finish_reason:
            events += self._items.close("incomplete" if self._choice.ending == "length" else "completed")
        if events and self._body.timings_per_token:
            events[-1]["timings"] = timings(piece.output)
        return events

    def _opening(self) -> Iterable[Event]:
        for kind in ("response.created", "response.in_progress"):
            yield {"type": kind, "response": self._response("in_progress")}

    def _failure(self, error: DiptychError) -> Iterable[Event]:
        said = str(error).encode(errors="replace").decode()
        code = "server_error" if problems.status_of(error) >= 500 else "invalid_prompt"
        yield {"type": "error", "code": code, "message": said, "param": None}
        yield {"type": "response.failed", "response": self._response("failed", error={"code": code, "message": said})}

    def _ended(self) -> Event:
        """The whole response, behind the last piece."""
        cut = self._choice.ending == "length"
        more = {"incomplete_details": {"reason": "max_output_tokens"}} if cut else {"completed_at": int(time.time())}
        return self._response(
            "incomplete" if cut else "completed", usage=self._usage(), timings=timings(self._choice.last), **more
        )

    def _response(self, status: str, **more: object) -> Event:
        """The response in a state, with what was asked for."""
        request = self._talk.plan.request
        return {
            "id": self._talk.id,
            "object": "response",
            "created_at": self._created,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": None,
            "max_output_tokens": request.max_tokens,
            "model": self._body.model or self._talk.serving.name,
            "output": list(self._items.output),
            "previous_response_id": None,
            "store": False,
            "temperature": request.sampling.temperature,
            "top_p": request.sampling.top_p,
            "truncation": "disabled",
            "usage": None,
            **self._asked,
            **more,
        }

    def _usage(self) -> dict[str, Any]:
        used = self._choice.last.usage
        return {
            "input_tokens": used.prompt_tokens,
            "input_tokens_details": {
                "cached_tokens": used.cached_tokens,
                "cache_write_tokens": 0,  # those that one pays for
                "image_tokens": used.media_tokens,
            },
            "output_tokens": used.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": self._choice.n_reasoning},
            "total_tokens": used.prompt_tokens + used.completion_tokens,
        }

    def _sent(self, event: Event) -> str:
        """An event as it is sent, with its number."""
        numbered = {"type": event["type"], "sequence_number": self._n_sent, **event}
        self._n_sent += 1
        return f"event: {event['type']}\ndata: {json.dumps(numbered, ensure_ascii=False)}\n\n"


def _asked(body: ResponsesBody) -> Event:
    """What a response repeats of its request. Raises InputError for what cannot be sent back."""
    functions = [{"strict": None, "parameters": None, **tool} for tool in body.tools if tool.get("type") == "function"]
    found = {
        "instructions": body.instructions,
        "metadata": body.metadata,
        "parallel_tool_calls": body.parallel_tool_calls,
        "reasoning": {"effort": body.effort(), "summary": None},
        "text": body.text.model_dump(by_alias=True, exclude_none=True),
        "tool_choice": body.tool_choice if body.tool_choice is not None else "auto",
        "tools": functions,
        "top_logprobs": body.top_logprobs,
    }
    for name, value in found.items():
        try:
            json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
        except ValueError as error:  # UnicodeEncodeError is one
            raise InputError(f"{name} holds half a character, or a number that is none; send it without") from error
    return found
