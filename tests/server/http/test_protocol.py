"""Clients that hold a connection and do nothing with it are given up; slow ones that go on are not."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from raw import head, line, rest
from sites import Site, site

from diptych import reader
from diptych.server.http.protocol import Protocol

HEAD, STALL = 0.5, 0.6  # seconds


@pytest.fixture(scope="module")
def hasty() -> Iterator[Site]:
    """A server that does not wait for long, and whose connections are kept in `CONNECTIONS`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Protocol, "head_seconds", HEAD)
        patch.setattr(Protocol, "stall_seconds", STALL)
        patch.setattr(Protocol, "connection_made", noted(Protocol.connection_made))
        with site(reader.FOLDER, n_parallel=2) as found:
            yield found


CONNECTIONS: list[Protocol] = []


def noted(made: Callable[..., None]) -> Callable[..., None]:
    def connection_made(self: Protocol, transport: Any) -> None:
        CONNECTIONS.append(self)
        made(self, transport)

    return connection_made


def wait_until(true: Callable[[], bool], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited for too long"
        time.sleep(0.01)


def lasting(site: Site, given: list[bytes], wait: float) -> tuple[bytes, float]:
    """What comes for bytes sent `wait` seconds apart until the server closes, and how long that took."""
    start = time.monotonic()
    with line(site) as connection:
        try:
            for piece in given:
                connection.sendall(piece)
                time.sleep(wait)
        except ConnectionError:
            pass
        return rest(connection), time.monotonic() - start


def test_a_connection_without_a_request_and_a_head_without_an_end_are_given_up(hasty: Site) -> None:
    for given in ([], [b"GET /hea"], [bytes([byte]) for byte in head("GET", "/health") * 2]):
        answer, seconds = lasting(hasty, given[:100], 0.05)
        assert answer == b""
        assert HEAD - 0.1 < seconds < HEAD + 3


def test_a_head_that_comes_in_time_is_answered_and_the_next_one_has_as_long(hasty: Site) -> None:
    halves = [head("GET", "/health")[:20], head("GET", "/health")[20:]]
    with line(hasty) as connection:
        for _ in range(3):
            for half in halves:
                connection.sendall(half)
                time.sleep(HEAD * 0.6)
            assert connection.recv(4096).startswith(b"HTTP/1.1 200")
        time.sleep(HEAD * 1.5)  # idle between two requests, which is fine
        connection.sendall(head("GET", "/health", "Connection: close"))
        assert rest(connection).startswith(b"HTTP/1.1 200")


def test_an_answer_may_take_its_time(hasty: Site) -> None:
    body = json.dumps({"prompt": "a", "n_predict": 3000, "ignore_eos": True}).encode()
    start = time.monotonic()
    answer = hasty.http.post("/completion", content=body)
    assert answer.json()["tokens_predicted"] == 3000
    assert time.monotonic() - start > HEAD


def test_a_body_that_was_answered_already_is_not_taken_for_ever(hasty: Site) -> None:
    given = [head("POST", "/tokenize", "Content-Length: 999999999"), *[b"x" * 100] * 1000]
    answer, seconds = lasting(hasty, given, 0.02)
    assert b" 413 " in answer or answer == b""  # a connection that is broken off may take its answer along
    assert seconds < HEAD + 3


LONG = {
    "messages": [{"role": "user", "content": "a"}], "max_tokens": 1500, "ignore_eos": True, "stream": True, "logprobs": True,
    "top_logprobs": 40,
}  # fmt: skip


def test_who_does_not_read_holds_neither_a_slot_nor_memory_for_ever(hasty: Site) -> None:
    body = json.dumps(LONG).encode()
    before = hasty.engine.stats()
    with line(hasty, receive_buffer=4096) as connection:
        connection.sendall(head("POST", "/v1/chat/completions", f"Content-Length: {len(body)}") + body)
        wait_until(lambda: hasty.engine.stats().running == 1)
        stream = CONNECTIONS[-1]
        wait_until(lambda: stream.flow.write_paused)
        assert stream.transport.get_write_buffer_size() < 2**18
        wait_until(lambda: stream.transport.is_closing())
        wait_until(lambda: hasty.engine.stats().aborted > before.aborted, 60)
    assert hasty.engine.stats().running == hasty.engine.stats().preparing == 0


def test_who_reads_slowly_gets_all_of_it(hasty: Site) -> None:
    body = json.dumps({**LONG, "max_tokens": 700}).encode()
    got = b""
    with line(hasty, receive_buffer=65536) as connection:
        connection.sendall(head("POST", "/v1/chat/completions", f"Content-Length: {len(body)}", "Connection: close") + body)
        while data := connection.recv(65536):
            got += data
            time.sleep(0.02)
    assert b"data: [DONE]" in got[-200:]
    assert len(got) > 2**20


def test_more_connections_than_there_is_room_for_are_not_taken(hasty: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    held = [line(hasty) for _ in range(3)]
    sockets = [one.__enter__() for one in held]
    try:
        for connection in sockets:
            connection.sendall(head("GET", "/health"))
            assert connection.recv(4096)
        config = CONNECTIONS[-1].config
        monkeypatch.setattr(config, "limit_concurrency", 3)
        answer, seconds = lasting(hasty, [head("GET", "/health")], 0)
        assert answer == b"" or b" 503 " in answer.splitlines()[0]
        assert seconds < HEAD
    finally:
        for one in held:
            one.__exit__(None, None, None)
    monkeypatch.undo()
    assert hasty.get("/health").status_code == 200
