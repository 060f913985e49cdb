"""A request over HTTP from its coming to its end: under which id, what it asked of the engine, what became of it."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import secrets
import time
import traceback
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from diptych.errors import Unavailable
from diptych.server.http import problems
from diptych.types import Output, Request

log = logging.getLogger(__name__)

ID_HEADER = "X-Request-Id"
OTHER = "other"  # the route of what reached none
_ID = re.compile(r"[\w.:/+=@-]{1,100}", re.ASCII)


@dataclass(eq=False)
class Exchange:
    """What is known of a request so far. `requests` are those it makes of the engine, `answers` the last outputs of the
    choices of each; `error` is what it was refused for or failed with, in the middle of a stream too."""

    method: str
    path: str  # without its query
    headers: Headers
    route: str = OTHER
    id: str = field(default_factory=lambda: secrets.token_hex(16))
    requests: tuple[Request, ...] = ()
    answers: list[Sequence[Output]] = field(default_factory=list)
    error: Exception | None = None
    sent: int = 0  # the status in the response, once that has begun
    whole: bool = False  # the response was sent to its end
    seconds: float = 0.0
    started_ns: int = field(default_factory=time.time_ns)

    @property
    def status(self) -> int:
        """How it ended, once it has."""
        if self.failure is not None:
            return problems.status_of(self.failure)
        return self.sent

    @property
    def failure(self) -> Exception | None:
        """What it failed with; a client that hung up is one too."""
        return self.error if self.error is not None or self.whole else HTTPException(problems.GONE, "the client hung up")


_current: ContextVar[Exchange | None] = ContextVar("exchange", default=None)


def current() -> Exchange | None:
    """The request that this task answers."""
    return _current.get()


def name(prefix: str) -> str:
    """What the engine's requests are called: the id of the request over HTTP with a prefix, such as `chatcmpl-`."""
    exchange = current()
    return prefix + (exchange.id if exchange else secrets.token_hex(16))


class Recorder:
    """Gives each request an id, the client's own (`X-Request-Id`) or a random one, and tells `over` when it has ended.

    It stands before everything else. What nobody caught ends here, as a fault of ours.
    """

    def __init__(self, app: ASGIApp, over: Callable[[Exchange], None]) -> None:
        self.app, self._over = app, over

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        exchange, start = _begun(scope), time.perf_counter()
        _current.set(exchange)  # the task is this request's own
        try:
            await self._answered(exchange, scope, receive, send)
        except asyncio.CancelledError:
            exchange.error = exchange.error or Unavailable("the server has ended")
            raise
        finally:
            exchange.seconds = time.perf_counter() - start
            exchange.error = exchange.error or problems.found(scope)
            if exchange.route == OTHER and (route := scope.get("route")) is not None:
                exchange.route = route.path
            self._over(exchange)

    async def _answered(self, exchange: Exchange, scope: Scope, receive: Receive, send: Send) -> None:
        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.sent = message["status"]
                headers = MutableHeaders(raw=message.setdefault("headers", []))
                headers.update({"Server": "diptych", "X-Content-Type-Options": "nosniff", ID_HEADER: exchange.id})
            await send(message)
            exchange.whole = message["type"] == "http.response.body" and not message.get("more_body", False)

        try:
            await self.app(scope, receive, sending)
        except Exception as error:
            exchange.error = error
            log.error("%s", _fault(exchange, error))
            if exchange.sent:
                raise  # nothing is left but to break off
            await problems.refuse(error, scope, receive, sending)


def _begun(scope: Scope) -> Exchange:
    headers = Headers(scope=scope)
    out = Exchange(scope["method"], scope["path"], headers)
    if _ID.fullmatch(given := headers.get(ID_HEADER, "")):
        out.id = given
    return out


def _fault(exchange: Exchange, error: Exception) -> str:
    """Where a fault of ours is. What it says may hold words of a client, and is left out unless somebody looks for it."""
    told = f": {error}" if os.environ.get("DIPTYCH_DEBUG") else ""
    frames = "".join(traceback.format_tb(error.__traceback__))
    return f"a fault in diptych at {exchange.method} {exchange.route} ({exchange.id}): {type(error).__name__}{told}\n{frames}"
