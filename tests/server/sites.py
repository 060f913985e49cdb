"""Real servers on free ports, each in a thread of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from json import loads
from pathlib import Path
from typing import Any

import httpx
import openai

from diptych.engine import Engine
from diptych.media.access import Access
from diptych.options import ServerOptions
from diptych.server import run
from diptych.server.serving import Serving

START_SECONDS = 60
# arithmetic that does not depend on what else is in a batch
EXACT = {"n_ctx": 2048, "cache_type_k": "f32", "cache_type_v": "f32", "flash_attn": "off"}


@dataclass
class Site:
    """A server that answers. `http` is a client of it, `serving` what its routes share."""

    url: str
    serving: Serving
    http: httpx.Client
    _clients: list[openai.OpenAI] = field(default_factory=list)

    @property
    def engine(self) -> Engine:
        return self.serving.engine

    def post(self, path: str, json: object = None, **kwargs: Any) -> httpx.Response:
        return self.http.post(path, json=json, **kwargs)

    def get(self, path: str, **kwargs: Any) -> httpx.Response:
        return self.http.get(path, **kwargs)

    def data(self, path: str, json: object) -> list[str]:
        """What stands behind `data: ` in the lines of a stream."""
        with self.http.stream("POST", path, json=json) as response:
            assert response.status_code == 200, response.read()
            return [line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: ")]

    def events(self, path: str, json: object) -> list[dict[str, Any]]:
        """The events of a stream, each of the type that it is named by."""
        with self.http.stream("POST", path, json=json) as response:
            lines = list(response.iter_lines())
        names = [line.removeprefix("event: ") for line in lines if line.startswith("event: ")]
        found: list[dict[str, Any]] = [loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]
        assert [event["type"] for event in found] == names
        return found

    def openai(self) -> openai.OpenAI:
        """The real client of OpenAI, which does not try again."""
        self._clients.append(openai.OpenAI(api_key="none", base_url=f"{self.url}/v1", max_retries=0, timeout=60))
        return self._clients[-1]

    def idle(self) -> bool:
        """Whether nobody is being answered."""
        return not any(slot.busy for slot in self.engine.slots())

    def close(self) -> None:
        for client in (self.http, *self._clients):
            client.close()


Serve = Callable[..., Site]  # the fixture `serve`


@contextmanager
def site(folder: Path, **options: Any) -> Iterator[Site]:
    """A server of a deployment, from when it is ready until it has shut down; `options` are fields of ServerOptions."""
    defaults: dict[str, Any] = {"port": 0, "threads": 1, "n_ctx": 4096, "n_parallel": 2, "drain_seconds": 5}
    wanted = ServerOptions(**{**defaults, **options})
    serving = Serving(folder.name, wanted, partial(Engine.load, folder, options=wanted, access=Access.server(wanted)))
    listening, server = run.bind(wanted), run.Server(serving, wanted)
    thread = threading.Thread(target=server.run, args=([listening],), name="server")
    thread.start()
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    found = Site(url, serving, httpx.Client(base_url=url, timeout=60))
    try:
        _wait(lambda: serving.ready or not thread.is_alive())
        assert serving.ready, f"the server ended: {serving.failure}"
        yield found
    finally:
        found.close()
        server.should_exit = True
        thread.join(START_SECONDS)
        listening.close()
        assert not thread.is_alive(), "the server does not end"


def _wait(true: Callable[[], bool]) -> None:
    end = time.monotonic() + START_SECONDS
    while not true():
        assert time.monotonic() < end, "the server does not start"
        time.sleep(0.01)
