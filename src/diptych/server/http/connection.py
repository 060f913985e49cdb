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

from diptych.server.http import problems

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
    return _EventStream(first, events, ping)


class _EventStream(StreamingResponse):
    """Closes the events wherever the response ends: where it waits for a client to read, they would not notice.

    An event goes to the client in the task that waited for it: each task between would be a turn of the event loop more
    for every token, on cores that the model decodes on.
    """

    def __init__(self, first: str | None, events: AsyncGenerator[str, None], ping: float) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(events, headers=headers, media_type="text/event-stream")
        self._first, self._events, self._ping = first, events, ping
        self._line = asyncio.Lock()
        self._latest = 0.0  # when the client was told something, by the event loop's clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._events):
            await super().__call__(scope, receive, send)

    async def stream_response(self, send: Send) -> None:
        """Send every event as it comes, and pings where none does."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        pings = asyncio.ensure_future(self._pings(send))
        try:
            if self._first is not None:
                await self._tell(send, self._first)
            async for event in self._events:
                await self._tell(send, event)
        finally:
            pings.cancel()
            await asyncio.gather(pings, return_exceptions=True)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _tell(self, send: Send, event: str) -> None:
        async with self._line:
            await send({"type": "http.response.body", "body": event.encode(self.charset), "more_body": True})
        self._latest = asyncio.get_running_loop().time()

    async def _pings(self, send: Send) -> None:
        clock = asyncio.get_running_loop().time
        self._latest = clock()
        while True:
            if (left := self._latest + self._ping - clock()) > 0:
                await asyncio.sleep(left)
            else:
                await self._tell(send, ":\n\n")


async def _first(events: AsyncGenerator[str, None]) -> str | None:
    return await anext(events, None)


async def _hung_up(http: Request) -> None:
    """Returns when the client is gone. The body was read before, so that nothing else is left to come."""
    while (await http.receive())["type"] != "http.disconnect":
        pass
