"""Listen, serve, and come to an end in good order."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable

import uvicorn

from diptych.engine import Engine
from diptych.errors import InputError
from diptych.options import ServerOptions
from diptych.server.app import create
from diptych.server.serving import Serving


def serve(name: str, options: ServerOptions, load: Callable[[], Engine], listening: Callable[[str], None]) -> None:
    """Serve the model that `load` gives until SIGINT or SIGTERM; `listening` is told the address once clients can connect.

    Raises InputError when the address cannot be had, and what `load` raises.
    """
    serving = Serving(name, options, load)
    bound = bind(options)
    server = Server(serving, options)
    listening(f"http://{_shown(options.host)}:{bound.getsockname()[1]}")
    try:
        server.run([bound])
    finally:
        bound.close()
    if serving.failure is not None:
        raise serving.failure


class Server(uvicorn.Server):
    """uvicorn's, that takes no more requests once it was told to end, and lets those that run come to their end."""

    def __init__(self, serving: Serving, options: ServerOptions) -> None:
        def failed() -> None:
            self.should_exit = True

        config = uvicorn.Config(
            create(serving, failed),
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=True,
            timeout_graceful_shutdown=max(1, round(options.drain_seconds)),
            lifespan="on",
        )
        super().__init__(config)
        self._serving = serving

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._serving.draining = True
        await super().shutdown(sockets)


def log_to_stderr(options: ServerOptions) -> None:
    """Log lines on standard error: as they are in JSON, else with time and level."""
    form = "%(message)s" if options.log_json else "%(asctime)s %(levelname)s %(message)s"
    logging.basicConfig(format=form, datefmt="%H:%M:%S", level=options.log_level.upper())
    for name in ("uvicorn", "uvicorn.error", "httpx", "httpcore"):
        logging.getLogger(name).setLevel(logging.WARNING)


def bind(options: ServerOptions) -> socket.socket:
    """A socket at the host and port of the options. Raises InputError when the address cannot be had."""
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    try:
        bound = socket.create_server((options.host, options.port), family=family, backlog=2048, reuse_port=False)
    except OSError as error:
        raise InputError(
            f"cannot listen on {options.host}:{options.port}: {error.strerror or error}; choose another --host or --port"
        ) from error
    bound.setblocking(False)
    return bound


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host
