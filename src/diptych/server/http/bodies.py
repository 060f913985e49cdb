"""Bodies of requests: of bounded size, all together too, sent in bounded time, and read as JSON whatever they are called."""

from __future__ import annotations

import asyncio
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from diptych.options import ServerOptions
from diptych.server.http import problems

AT_ONCE = 8  # of the largest bodies may be here at a time
SECONDS = 30.0  # that a body may take, and for each further `LEAST` bytes one more
LEAST = 16 * 2**10  # bytes a second; a picture of 4 MiB over the slowest mobile line
_WITHOUT = ("GET", "HEAD", "OPTIONS")


class Bodies:
    """Bounds what clients may send; a body that is being read or answered counts until its answer is over."""

    def __init__(self, app: ASGIApp, options: ServerOptions, seconds: float = SECONDS) -> None:
        self.app = app
        self.most = options.max_body_mib * 2**20
        self.seconds = seconds
        self.held = 0  # bytes of all

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        body = Body(self, receive)
        try:
            _as_json(scope)
            _check_encoding(Headers(scope=scope))
            self.check_length(Headers(scope=scope))
            await self.app(scope, body.receive, body.watching(send))
        except HTTPException as error:
            if body.answered:
                raise
            await problems.refuse(error, scope, receive, send)
        finally:
            self.held -= body.n

    def check_length(self, headers: Headers) -> None:
        """Raises HTTPException for a length that is none or too much."""
        told = headers.get("content-length", "0")
        if "content-length" in headers and "transfer-encoding" in headers:
            # a proxy in front may go by the one and we by the other: what it takes for a body would be a request here
            raise HTTPException(400, "both Content-Length and Transfer-Encoding are given; give one", {"Connection": "close"})
        if not (told.isascii() and told.isdecimal()):
            raise HTTPException(400, "Content-Length is not a number")
        if len(told) > len(str(self.most)) or int(told) > self.most:
            raise self.too_large()

    def too_large(self) -> HTTPException:
        """Of a body."""
        return HTTPException(
            413, f"the body is over {self.most // 2**20} MiB; send less, or start the server with --max-body-mib"
        )


class Body:
    """One body on its way in: `n` bytes so far."""

    def __init__(self, bounds: Bodies, receive: Receive) -> None:
        self.n, self.answered = 0, False
        self._bounds, self._receive = bounds, receive
        self._whole = False
        self._start = time.monotonic()

    async def receive(self) -> Message:
        """The next of it. Raises HTTPException where it is too large or too slow, or there is no room."""
        if self._whole:
            return await self._receive()  # the client hangs up; there is no more else
        bounds = self._bounds
        try:
            async with asyncio.timeout(self._start + bounds.seconds + self.n / LEAST - time.monotonic()):
                message = await self._receive()
        except TimeoutError:
            raise HTTPException(408, f"the body came too slowly: {self.n} bytes in {bounds.seconds:.0f} s or more") from None
        more = len(message.get("body", b""))
        self._whole = not message.get("more_body", False)
        self.n += more
        bounds.held += more
        if self.n > bounds.most:
            raise bounds.too_large()
        if bounds.held > AT_ONCE * bounds.most:
            why = "the bodies that others have sent take all the room there is; ask again later"
            raise HTTPException(429, why, {"Retry-After": "1"})
        return message

    def watching(self, send: Send) -> Send:
        """`send`, noting that an answer has begun."""

        async def sending(message: Message) -> None:
            self.answered = True
            await send(message)

        return sending


def _check_encoding(headers: Headers) -> None:
    """A few bytes may unpack to any number of them, so that nothing is unpacked here. Raises HTTPException for what is packed."""
    given = headers.get("content-encoding", "").strip().lower()
    if given not in ("", "identity"):
        raise HTTPException(415, f"the body is encoded as {given[:40]!r}, and nothing is decoded here; send it as it is")


def _as_json(scope: Scope) -> None:
    """curl says `application/x-www-form-urlencoded` unless told otherwise; what is posted here is JSON all the same."""
    if scope["method"] in _WITHOUT:
        return
    headers = MutableHeaders(scope=scope)
    if (given := headers.get("content-type", "").lower()).startswith("multipart/"):
        raise HTTPException(415, f"the body is {given.partition(';')[0]}, and application/json is expected")
    headers["content-type"] = "application/json"
