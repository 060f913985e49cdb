"""What the routes share: the engine, once it is loaded, the options, and who counts what went on."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Annotated

from fastapi import Depends, Request

from diptych.engine import Engine
from diptych.engine.stats import Stats
from diptych.errors import Unavailable
from diptych.options import ServerOptions
from diptych.server.http import exchange
from diptych.server.http.exchange import Exchange
from diptych.server.observe.metrics import Metrics
from diptych.server.observe.notes import Notes
from diptych.server.observe.telemetry import Call, open_telemetry
from diptych.types import Output
from diptych.types import Request as Asked

_OPERATIONS = {"completion": "text_completion", "completions": "text_completion"}  # OpenTelemetry's names; other routes' own
_CHATS = ("/v1/chat/completions", "/chat/completions", "/v1/messages", "/v1/responses", "/responses")


class Serving:
    """A model that is served, or that is being loaded to be. `name` is what answers call it, of several `aliases`
    the first in the alphabet, as in llama-server."""

    def __init__(self, name: str, options: ServerOptions, load: Callable[[], Engine]) -> None:
        """Raises InputError or MissingExtra where traces are asked for and cannot be sent."""
        self.aliases = sorted(alias for alias in map(str.strip, (options.alias or "").split(",")) if alias) or [name]
        self.name, self.options = self.aliases[0], options
        self.started = time.time()
        self.fingerprint = f"b-diptych-{version('diptych')}"  # llama-server's begins with b
        self.media_marker = os.environ.get("LLAMA_MEDIA_MARKER") or f"<__media_{secrets.token_hex(16)}__>"
        self.metrics = Metrics(self._stats)
        self.notes = Notes()
        self.telemetry = open_telemetry(options.otlp_traces_endpoint)
        self.draining = False
        self.failure: BaseException | None = None
        self._load = load
        self._engine: Engine | None = None

    def load(self) -> None:
        """Load the engine, on whichever thread; a failure is kept in `failure`, and raised."""
        try:
            self._engine = self._load()
        except BaseException as error:
            self.failure = error
            raise

    @property
    def ready(self) -> bool:
        return self._engine is not None

    def check_ready(self) -> None:
        """Raises Unavailable where no requests are taken: while the model is being loaded, and before the end."""
        if self.draining:
            raise Unavailable("the server is shutting down; ask another one, or ask again when it is back")
        if not self.ready:
            raise Unavailable("Loading model")

    @property
    def engine(self) -> Engine:
        """The engine. Raises Unavailable while it is being loaded."""
        if self._engine is None:
            raise Unavailable("Loading model")
        return self._engine

    def asked(self, route: str, *requests: Asked) -> None:
        """Note what the request over HTTP that this task answers asks of the engine, and the route that it is counted under."""
        if (now := exchange.current()) is not None:
            now.route, now.requests = route, requests

    def answered(self, route: str, *lasts: Output) -> None:
        """Note the last outputs of the choices of a prompt."""
        if (now := exchange.current()) is not None:
            now.route = route
            now.answers.append(lasts)

    def failed(self, route: str, error: Exception) -> None:
        """Note that a request failed once its answer had begun."""
        if (now := exchange.current()) is not None:
            now.route, now.error = route, error

    def over(self, exchange: Exchange) -> None:
        """A request over HTTP came to its end: count it, log it, and trace it."""
        self.metrics.over(exchange)
        self.notes.over(exchange)
        if self.telemetry is not None and exchange.method == "POST":
            call = Call(exchange.started_ns, self.name, _operation(exchange.route), exchange.headers)
            for i, choices in enumerate(exchange.answers or [()]):
                asked = exchange.requests[i] if i < len(exchange.requests) else None
                self.telemetry.record(call, asked, choices, exchange.failure)

    def end(self) -> None:
        """Close the engine, if there is one: who is being answered gets an error."""
        if self._engine is not None:
            self._engine.close()

    def close(self) -> None:
        """Close all there is, and send the last traces."""
        self.end()
        if self.telemetry is not None:
            self.telemetry.close()

    def _stats(self) -> Stats | None:
        return self._engine.stats() if self._engine is not None else None


def _operation(route: str) -> str:
    if route in _CHATS:
        return "chat"
    last = route.rpartition("/")[2]
    return _OPERATIONS.get(last, last)


def _of_app(request: Request) -> Serving:
    serving: Serving = request.app.state.serving
    return serving


Served = Annotated[Serving, Depends(_of_app)]
"""The serving of the app, for a route's parameter."""
