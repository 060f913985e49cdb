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
from diptych.errors import DiptychError, Unavailable
from diptych.options import ServerOptions
from diptych.server.metrics import Metrics
from diptych.server.notes import Notes
from diptych.server.problems import status_of
from diptych.types import Output


class Serving:
    """A model that is served, or that is being loaded to be. `name` is what answers call it."""

    def __init__(self, name: str, options: ServerOptions, load: Callable[[], Engine]) -> None:
        self.name, self.options = options.alias or name, options
        self.started = time.time()
        self.fingerprint = f"b-diptych-{version('diptych')}"  # llama-server's begins with b
        self.media_marker = os.environ.get("LLAMA_MEDIA_MARKER") or f"<__media_{secrets.token_hex(16)}__>"
        self.metrics = Metrics()
        self.notes = Notes(options.log_json)
        self.draining = False
        self.failure: DiptychError | None = None
        self._load = load
        self._engine: Engine | None = None

    def load(self) -> None:
        """Load the engine, on whichever thread; a failure is kept in `failure`, and raised."""
        try:
            self._engine = self._load()
        except DiptychError as error:
            self.failure = error
            raise

    @property
    def ready(self) -> bool:
        return self._engine is not None

    @property
    def engine(self) -> Engine:
        """The engine. Raises Unavailable while it is being loaded, and when no more requests are taken."""
        if self._engine is None:
            raise Unavailable("Loading model")
        if self.draining:
            raise Unavailable("the server is shutting down; ask another one, or ask again when it is back")
        return self._engine

    def answered(self, route: str, request_id: str, *lasts: Output) -> None:
        """Note that a request came to its end: in the log and in the metrics."""
        for last in lasts:
            self.metrics.answered(route, last)
        self.notes.answered(route, request_id, lasts[0])

    def failed(self, route: str, request_id: str, error: Exception) -> None:
        """Note that a request failed once its answer had begun."""
        self.metrics.failed(route, status_of(error))
        self.notes.failed(route, request_id, status_of(error), str(error))

    def close(self) -> None:
        """Close the engine, if there is one."""
        if self._engine is not None:
            self._engine.close()


def _of_app(request: Request) -> Serving:
    serving: Serving = request.app.state.serving
    return serving


Served = Annotated[Serving, Depends(_of_app)]
"""The serving of the app, for a route's parameter."""
