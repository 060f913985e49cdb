"""Media at remote addresses: who waits for another machine holds up nobody, and what has an id is fetched once."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from asking import Load, collect, joined, outputs, png, request, tokens
from test_catalogue import named

from diptych.types import Message, Request, Source

SLOW = 0.8  # seconds


class Pictures:
    """A server of pictures that takes its time. `asked` are the paths that were asked for."""

    def __init__(self) -> None:
        pictures = self
        self.asked: list[str] = []
        self.seconds = SLOW

        class Answer(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                pictures.asked.append(self.path)
                time.sleep(pictures.seconds)
                data = png(int(self.path.strip("/")))
                self.send_response(200)
                self.send_header("Content-Type", "image/png")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()

    def url(self, number: int) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}/{number}"


@pytest.fixture
def pictures() -> Iterator[Pictures]:
    made = Pictures()
    yield made
    made.server.shutdown()
    made.server.server_close()
    made.thread.join()


def at(url: str) -> Request:
    return Request((Message("user", (Source("image", url=url), "what")),), request().sampling, 8)


def test_who_waits_for_another_machine_holds_up_nobody(load: Load, pictures: Pictures) -> None:
    engine = load(n_parallel=4)
    alone = tokens(load(), request("the user", n=4))

    async def main() -> tuple[float, list[object]]:
        slow = [asyncio.create_task(collect(engine, at(pictures.url(i)))) for i in range(8)]
        await asyncio.sleep(0.1)
        start = time.perf_counter()
        assert joined(await collect(engine, request("the user", n=4))) == alone
        quick = time.perf_counter() - start
        return quick, await asyncio.gather(*slow)

    start = time.perf_counter()
    quick, found = asyncio.run(main())
    assert quick < SLOW / 2
    assert time.perf_counter() - start < 4 * SLOW  # they were fetched side by side
    assert [joined(one) for one in found] == [tokens(load(), request(png(i), "what")) for i in range(8)]


def test_the_time_of_fetching_is_that_of_preprocessing(load: Load, pictures: Pictures) -> None:
    last = outputs(load(), at(pictures.url(0)))[-1]
    assert last.timings.preprocess_ms >= 1e3 * SLOW > last.timings.queue_ms


def test_what_has_an_id_is_fetched_once(load: Load, pictures: Pictures) -> None:
    engine, pictures.seconds = load(), 0.0
    first = tokens(engine, named("what", "a", url=pictures.url(3)))
    assert tokens(engine, named("what", "a", url=pictures.url(3))) == first == tokens(engine, named("what", "a"))
    assert pictures.asked == ["/3"]
