"""Listen, serve, and come to an end in good order."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from types import FrameType

import uvicorn

from diptych.engine import Engine
from diptych.errors import InputError
from diptych.options import ServerOptions
from diptych.server.app import create
from diptych.server.http.guard import hosts
from diptych.server.http.protocol import Protocol
from diptych.server.observe.notes import JsonLines, Lines
from diptych.server.serving import Serving

log = logging.getLogger(__name__)

KEEP_ALIVE = 30  # seconds that an idle connection is kept; longer than the pools of clients keep theirs
CONNECTIONS = 900  # at least that many; a process may have 1024 files open, where nobody changed that
_LAST = 10  # seconds behind the drain, for what is not the engine's to end


def serve(name: str, options: ServerOptions, load: Callable[[], Engine], listening: Callable[[str], None]) -> None:
    """Serve the model that `load` gives until SIGINT or SIGTERM; `listening` is told the address once clients can connect.

    Raises InputError when the address cannot be had, FileError for keys that cannot be read, MissingExtra for traces that
    cannot be sent, what `load` raises, and KeyboardInterrupt behind SIGINT.
    """
    serving = Serving(name, options, load)
    server = Server(serving, options)
    with ExitStack() as stack:
        bound = [stack.enter_context(bind(options, host)) for host in hosts(options)]
        for host, at in zip(hosts(options), bound, strict=True):
            listening(f"http://{_shown(host)}:{at.getsockname()[1]}")
        server.run(bound)
    if serving.failure is not None:
        raise serving.failure


class Server(uvicorn.Server):
    """uvicorn's, that takes no more requests once it was told to end, and lets those that run come to their end."""

    def __init__(self, serving: Serving, options: ServerOptions) -> None:
        def failed() -> None:
            self.should_exit = True

        config = uvicorn.Config(
            create(serving, failed),
            http=Protocol,
            ws="none",
            loop="asyncio",
            log_config=None,
            access_log=False,
            server_header=False,
            limit_concurrency=max(CONNECTIONS, 2 * (options.n_parallel + options.max_queue)),
            timeout_keep_alive=KEEP_ALIVE,
            timeout_graceful_shutdown=round(options.drain_seconds) + _LAST,
            lifespan="on",
        )
        super().__init__(config)
        self._serving, self._drain_seconds = serving, options.drain_seconds

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no more, wait for what runs, and end what still runs then with an error of its own."""
        self._serving.draining = True
        ending = asyncio.ensure_future(self._end_late())
        await super().shutdown(sockets)
        ending.cancel()

    async def _end_late(self) -> None:
        await asyncio.sleep(self._drain_seconds)
        if n := len(self.server_state.tasks):
            log.warning("%d requests still run after %g s, and are ended", n, self._drain_seconds)
            await asyncio.to_thread(self._serving.end)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal asks for an end, which comes at once where nobody is served yet; the second does not ask."""
        if self.should_exit or not self._serving.ready:
            logging.shutdown()
            os._exit(0 if sig == signal.SIGTERM and not self.should_exit else 128 + sig)
        super().handle_exit(sig, frame)

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """uvicorn's, but an end that SIGTERM asked for is no failure."""
        with super().capture_signals():
            yield
            self._captured_signals = [sig for sig in self._captured_signals if sig != signal.SIGTERM]


def log_to_stderr(options: ServerOptions) -> None:
    """Log lines of ours on standard error, readable or in JSON; those of others where something went wrong."""
    lines = logging.StreamHandler()
    lines.setFormatter(JsonLines() if options.log_json else Lines())
    logging.basicConfig(handlers=[lines], level=logging.WARNING)
    logging.getLogger("diptych").setLevel(options.log_level.upper())
    logging.getLogger("uvicorn").setLevel(logging.CRITICAL)  # what it would say is said in our lines


def bind(options: ServerOptions, host: str = "") -> socket.socket:
    """A socket at one of the hosts of the options, by default the first, and their port. Raises InputError when that address
    cannot be had."""
    host = host or hosts(options)[0]
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        bound = socket.create_server((host, options.port), family=family, backlog=2048, reuse_port=False)
    except OSError as error:
        raise InputError(
            f"cannot listen on {host}:{options.port}: {error.strerror or error}; choose another --host or --port"
        ) from error
    bound.setblocking(False)
    # connections inherit it; asyncio leaves it out where a socket was not made for TCP by name, and then a client that puts
    # off its acknowledgements waits 40 ms for a body behind its headers, and for each word of a stream
    bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return bound


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host
