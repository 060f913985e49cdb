"""Clients that hang up, at every stage: the slot is free in a moment, and nothing goes on that nobody wants."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from fastapi import Request
from raw import called, echo, head, line, rest, scope_of
from sending import url
from sites import Site, site
from starlette.types import Message, Receive, Scope, Send

from diptych import reader
from diptych.engine.encode import _LOOK
from diptych.errors import InputError
from diptych.families.base import MediaHalf
from diptych.server.http.connection import event_stream

N_PICTURES = 4
PATIENCE = 10.0  # seconds; what is to happen at once takes a fraction of one
WAYS = pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])


@pytest.fixture(scope="module")
def narrow() -> Iterator[Site]:
    """A server with one slot, that encodes one picture at a time, and prefills in small steps."""
    options = {"n_parallel": 1, "n_batch": 16, "n_ubatch": 16, "encode_max_patches": 1, "encode_cache_mib": 0}
    with site(reader.FOLDER, allow_private_media=True, **options) as found:
        yield found


def wait_until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end, "waited for too long"
        time.sleep(0.005)


@contextmanager
def asking(site: Site, *parts: Any, stream: bool, n: int = 3000) -> Iterator[socket.socket]:
    """A chat that is asked, and whose client hangs up at the end of the block."""
    content = [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts]
    body = {"messages": [{"role": "user", "content": content}], "max_tokens": n, "ignore_eos": True, "stream": stream}
    with posting(site, "/v1/chat/completions", body) as connection:
        yield connection


@contextmanager
def posting(site: Site, path: str, body: dict[str, Any]) -> Iterator[socket.socket]:
    written = json.dumps({**body, "cache_prompt": False}).encode()
    with line(site) as connection:
        connection.sendall(head("POST", path, f"Content-Length: {len(written)}") + written)
        yield connection


def assert_nobody_is_left(site: Site) -> None:
    """The slot is free, and whoever comes next is answered."""

    def idle() -> bool:
        stats = site.engine.stats()
        return stats.running == stats.waiting == stats.preparing == stats.encoder.waiting == 0

    wait_until(idle)
    answer = site.post("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1})
    assert answer.status_code == 200


@WAYS
def test_while_it_waits_for_a_slot(narrow: Site, stream: bool) -> None:
    with asking(narrow, "a", stream=True):
        wait_until(lambda: narrow.engine.stats().running == 1)
        with asking(narrow, "b", stream=stream):
            wait_until(lambda: narrow.engine.stats().waiting == 1)
        wait_until(lambda: narrow.engine.stats().waiting == 0)
        assert narrow.engine.stats().running == 1
    assert_nobody_is_left(narrow)


@pytest.fixture
def tap() -> Iterator[str]:
    """The address of a picture that comes for ever and never is there."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def drip() -> None:
            try:
                connection, _ = listening.accept()
                with connection:
                    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\nContent-Length: 100000\r\n\r\n")
                    while not closed.wait(0.05):
                        connection.sendall(b"x")
            except OSError:
                pass

        closed, thread = threading.Event(), threading.Thread(target=drip)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/picture.png"
        closed.set()
        thread.join()


@WAYS
def test_while_its_pictures_are_fetched(narrow: Site, tap: str, stream: bool) -> None:
    runs = narrow.engine.stats().encoder.runs
    with asking(narrow, {"type": "image_url", "image_url": {"url": tap}}, "a", stream=stream):
        wait_until(lambda: narrow.engine.stats().preparing == 1)
        time.sleep(0.1)
    assert_nobody_is_left(narrow)
    assert narrow.engine.stats().encoder.runs == runs


class Door:
    """A media half that keeps pictures outside until `open` is set."""

    def __init__(self, half: MediaHalf) -> None:
        self._half = half
        self.open, self.inside = threading.Event(), threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._half, name)

    def encode(self, pieces: Any) -> Any:
        self.inside.set()
        assert self.open.wait(PATIENCE)
        return self._half.encode(pieces)


@pytest.fixture
def door(narrow: Site, monkeypatch: pytest.MonkeyPatch) -> Iterator[Door]:
    encoder: Any = narrow.engine._encoder
    found = Door(encoder._half)
    monkeypatch.setattr(encoder, "_half", found)
    yield found
    found.open.set()
    wait_until(lambda: narrow.engine.stats().encoder.waiting == 0)


@WAYS
def test_while_its_pictures_are_encoded(narrow: Site, door: Door, stream: bool) -> None:
    runs = narrow.engine.stats().encoder.runs
    with asking(narrow, *(url(i) for i in range(N_PICTURES)), "a", stream=stream):
        assert door.inside.wait(PATIENCE)
        wait_until(lambda: narrow.engine.stats().running == 1)
    wait_until(lambda: narrow.engine.stats().running == 0)  # though the encoder is still in its run
    door.open.set()
    assert_nobody_is_left(narrow)
    assert narrow.engine.stats().encoder.runs == runs + 1  # the one it was in, and none of those that waited


def test_a_picture_that_another_one_waits_for_is_encoded_all_the_same(narrow: Site, door: Door) -> None:
    runs = narrow.engine.stats().encoder.runs
    with asking(narrow, url(7), "a", stream=True, n=1) as staying:
        with asking(narrow, url(7), url(8), "b", stream=True):
            assert door.inside.wait(PATIENCE)
            wait_until(lambda: narrow.engine.stats().encoder.waiting == 2)
            wait_until(lambda: narrow.engine.stats().running + narrow.engine.stats().waiting == 2)
        wait_until(lambda: narrow.engine.stats().running + narrow.engine.stats().waiting == 1)
        door.open.set()
        got = b""
        while b"[DONE]" not in got:
            got += staying.recv(65536)
    assert_nobody_is_left(narrow)
    assert narrow.engine.stats().encoder.runs == runs + 1


@WAYS
def test_while_its_prompt_is_prefilled(narrow: Site, stream: bool) -> None:
    before = narrow.engine.stats().token_rows
    with posting(narrow, "/completion", {"prompt": "word " * 700, "stream": stream}):
        wait_until(lambda: narrow.engine.stats().token_rows > before + 64)
        slot = narrow.engine.slots()[0]
        assert slot.busy
        assert slot.n_processed < slot.n_prompt
        n = slot.n_prompt
    assert_nobody_is_left(narrow)
    assert narrow.engine.stats().token_rows - before < n


@WAYS
def test_while_it_is_answered(narrow: Site, stream: bool) -> None:
    before = narrow.engine.stats()
    with asking(narrow, "a", stream=stream):
        wait_until(lambda: narrow.engine.slots()[0].n_decoded > 10)
    assert_nobody_is_left(narrow)
    after = narrow.engine.stats()
    assert after.token_rows - before.token_rows < 1500
    assert after.aborted == before.aborted + 1


def test_while_its_pictures_are_encoded_and_nothing_else(narrow: Site, door: Door) -> None:
    runs = narrow.engine.stats().encoder.runs
    with asking(narrow, url(1), "a", stream=True), posting(narrow, "/v1/media/encode", {"image_url": url(2)["image_url"]}):
        assert door.inside.wait(PATIENCE)
        wait_until(lambda: narrow.engine.stats().encoder.waiting == 2)
    wait_until(lambda: narrow.engine.stats().preparing == 0)
    time.sleep(2 * _LOOK)
    door.open.set()
    assert_nobody_is_left(narrow)
    assert narrow.engine.stats().encoder.runs == runs + 1


def test_while_its_embeddings_are_made() -> None:
    with site(reader.FOLDER, embeddings=True, pooling="mean", n_batch=16, n_ubatch=16) as wide:
        embedder: Any = wide.engine._embedder
        n = 0

        def counted(group: Any) -> Any:
            nonlocal n
            n += 1
            return run(group)

        run, embedder._run = embedder._run, counted
        with posting(wide, "/v1/embeddings", {"input": [f"{i} {'word ' * 20}" for i in range(500)]}):
            wait_until(lambda: n > 2)
        wait_until(lambda: wide.engine.stats().preparing == 0)
        made = n
        time.sleep(0.2)
        assert n <= made + 1 < 100


def test_a_client_that_only_stops_sending_counts_as_gone(narrow: Site) -> None:
    """As in most servers: who closes one half of the line is not told from who is gone."""
    with asking(narrow, "a", stream=True) as connection:
        wait_until(lambda: narrow.engine.stats().running == 1)
        connection.shutdown(socket.SHUT_WR)
        wait_until(lambda: narrow.engine.stats().running == 0)
        rest(connection)
    assert_nobody_is_left(narrow)


def test_all_choices_and_prompts_of_a_request_end_with_it() -> None:
    with site(reader.FOLDER, n_parallel=3) as wide:
        for path, more in (
            ("/v1/completions", {"n": 3, "prompt": "a"}),
            ("/v1/completions", {"prompt": ["a", "b", "c", "d"]}),
            ("/v1/chat/completions", {"n": 3, "messages": [{"role": "user", "content": "a"}]}),
        ):
            for stream in (False, True):
                with posting(wide, path, {**more, "max_tokens": 3000, "ignore_eos": True, "stream": stream}):
                    wait_until(lambda: wide.engine.stats().running == 3)
                assert_nobody_is_left(wide)


def test_a_stream_that_says_nothing_for_a_while_says_that_it_lives() -> None:
    closed = []

    async def events() -> AsyncGenerator[str, None]:
        try:
            yield "data: 1\n\n"
            await asyncio.sleep(0.3)
            yield "data: 2\n\n"
        finally:
            closed.append(True)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async def stays() -> Message:
            await asyncio.sleep(60)
            return {"type": "http.disconnect"}

        stream = await event_stream(Request(scope, stays), events(), 0.05)
        await stream(scope, stays, send)

    answer = called(app, scope_of("POST", "/v1/chat/completions"))
    assert answer.headers["content-type"].startswith("text/event-stream")
    found = answer.body.decode().split("\n\n")
    assert found[0] == "data: 1"
    assert set(found[1:-2]) == {":"}
    assert 3 <= len(found[1:-2]) <= 6
    assert found[-2:] == ["data: 2", ""]
    assert closed


def test_what_fails_before_the_first_event_can_still_have_a_status() -> None:
    async def events() -> AsyncGenerator[str, None]:
        raise InputError("no")
        yield ""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        with pytest.raises(InputError):
            await event_stream(Request(scope, receive), events(), 1)
        await echo(scope, receive, send)

    assert called(app, scope_of("POST", "/x"), (b"", b"")).status == 200
