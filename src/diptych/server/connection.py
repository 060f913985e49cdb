"""One client's connection: stop when it is gone, and send what comes as server-sent events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from contextlib import aclosing
from typing import TypeVar

from fastapi import Request
from fastapi.responses import StreamingResponse
from starlette.exceptions import HTTPException

T = TypeVar("T")
GONE = 499  # nginx's status for a client that hung up; nobody reads it but the log


async def while_connected(http: Request, work: Coroutine[object, object, T]) -> T:
    """The result of `work`, which is cancelled as soon as the client hangs up; then HTTPException 499 is raised."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_hung_up(http))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise HTTPException(GONE, "the client hung up")
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
    return StreamingResponse(
        _pinged(first, events, ping),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
    )


async def _first(events: AsyncGenerator[str, None]) -> str | None:
    return await anext(events, None)


async def _pinged(first: str | None, events: AsyncGenerator[str, None], ping: float) -> AsyncIterator[str]:
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
