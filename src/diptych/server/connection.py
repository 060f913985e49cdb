"""One client's connection: stop when it is gone, and send what comes as server-sent events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from typing import TypeVar

from fastapi import Request
from fastapi.responses import StreamingResponse
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from diptych.server import problems

T = TypeVar("T")


async def while_connected(http: Request, work: Coroutine[object, object, T]) -> T:
    """The result of `work`, which is cancelled as soon as the client hangs up; then HTTPException 499 is raised."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_hung_up(http))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise HTTPException(problems.GONE, "the client hung up")
        return task.result()
    finally:
        gone.cancel()
        if not task.done():
            task.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def event_stream(http: Request, events: AsyncGenerator[str, None], ping: float) -> StreamingResponse:
    """Stream events; what fails before the first one is raised here, while an answer can still have a status.

    After `ping` seconds of silence a comment is sent, so that nobody on the way takes the line for dead.
    """
    first = await while_connected(http, _first(events))
    return _EventStream(_pinged(first, events, ping))


class _EventStream(StreamingResponse):
    """Closes the events wherever the response ends: where it waits for a client to read, they would not notice."""

    def __init__(self, events: AsyncGenerator[str, None]) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(events, headers=headers, media_type="text/event-stream")
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._events):
            await super().__call__(scope, receive, send)


async def _first(events: AsyncGenerator[str, None]) -> str | None:
    return await anext(events, None)


async def _pinged(first: str | None, events: AsyncGenerator[str, None], ping: float) -> AsyncGenerator[str, None]:
    async with aclosing(events):
        if first is None:
            return
        yield first
        while True:
            following = asyncio.ensure_future(_first(events))
            try:
                while not (await asyncio.wait({following}, timeout=ping))[0]:
                    yield ":\n\n"
                event = following.result()
            finally:
                if not following.done():
                    following.cancel()
                    await asyncio.gather(following, return_exceptions=True)
            if event is None:
                return
            yield event


async def _hung_up(http: Request) -> None:
    """Returns when the client is gone. The body was read before, so that nothing else is left to come."""
    while (await http.receive())["type"] != "http.disconnect":
        pass
