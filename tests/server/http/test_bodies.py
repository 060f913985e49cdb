"""Bodies: bounded in size, alone and together, and in time; told lengths are not believed."""

from __future__ import annotations

import asyncio
import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from raw import Answer, called, calling, echo, head, line, rest, scope_of
from sites import Site, site
from starlette.types import Message, Receive, Scope, Send

from diptych import reader
from diptych.options import ServerOptions
from diptych.server.http import bodies
from diptych.server.http.bodies import Bodies

MIB = 2**20
SMALL = ServerOptions(max_body_mib=1)


def post(app: Bodies, pieces: list[bytes], wait: float = 0.0, **headers: str) -> Answer:
    given = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return called(app, scope_of("POST", "/tokenize", given), pieces, wait)


def test_a_body_up_to_the_limit_is_taken_and_a_byte_more_is_not() -> None:
    app = Bodies(echo, SMALL)
    assert post(app, [b"x" * MIB], content_length=str(MIB)).body == str(MIB).encode()
    answer = post(app, [b"x" * MIB, b"y"], content_length=str(MIB + 1))
    assert (answer.status, answer.error["type"]) == (413, "invalid_request_error")
    assert "--max-body-mib" in answer.error["message"]


def test_a_body_that_does_not_tell_its_length_or_lies_is_counted() -> None:
    app = Bodies(echo, SMALL)
    pieces = [b"x" * (MIB // 4)] * 4
    assert post(app, pieces).body == str(MIB).encode()
    assert post(app, [*pieces, b"y"]).status == 413
    assert post(app, [*pieces, b"y"], content_length="5").status == 413
    assert app.held == 0  # nothing is counted for ever


@pytest.mark.parametrize("length", ["x", "-1", "1e3", "²", "", "0x10", " "])
def test_a_length_that_is_no_number_is_refused(length: str) -> None:
    scope = scope_of("POST", "/tokenize", [(b"content-length", length.encode("latin-1"))])
    assert called(Bodies(echo, SMALL), scope).status == 400


def test_a_length_of_thousands_of_digits_is_too_large_and_no_fault() -> None:
    assert post(Bodies(echo, SMALL), [b""], content_length="9" * 5000).status == 413


@given(st.binary(max_size=30))
def test_no_length_is_a_fault_of_ours(length: bytes) -> None:
    answer = called(Bodies(echo, SMALL), scope_of("POST", "/tokenize", [(b"content-length", length)]))
    assert answer.status in (200, 400, 413)


def test_a_slow_body_is_given_up_and_a_large_one_has_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    app = Bodies(echo, SMALL, seconds=0.2)
    start = time.monotonic()
    answer = post(app, [b"x"] * 100, wait=0.02)
    assert answer.status == 408
    assert time.monotonic() - start < 1
    monkeypatch.setattr(bodies, "LEAST", 100)
    assert post(app, [b"x" * 10] * 30, wait=0.02).body == b"300"


def test_who_waits_for_the_answer_is_not_slow() -> None:
    async def late(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await asyncio.sleep(0.1)
        assert (await receive())["type"] == "http.disconnect"
        await echo(scope, lambda: asyncio.sleep(0, {"type": "http.request"}), send)

    assert post(Bodies(late, SMALL, seconds=0.01), [b"x"]).status == 200


def test_all_bodies_together_have_a_limit() -> None:
    app = Bodies(echo, SMALL)
    here = asyncio.Event()

    async def holding(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await here.wait()
        await echo(scope, lambda: asyncio.sleep(0, {"type": "http.request"}), send)

    async def many() -> tuple[Answer, list[Answer], Answer]:
        app.app = holding
        scopes = [scope_of("POST", "/tokenize") for _ in range(bodies.AT_ONCE)]
        waiting = [asyncio.ensure_future(calling(app, scope, [b"x" * MIB])) for scope in scopes]
        await asyncio.sleep(0)
        while app.held < bodies.AT_ONCE * MIB:
            await asyncio.sleep(0.001)
        refused = await calling(app, scope_of("POST", "/tokenize"), [b"x"])
        here.set()
        answers = await asyncio.gather(*waiting)
        return refused, answers, await calling(app, scope_of("POST", "/tokenize"), [b"x"])

    refused, answers, after = asyncio.run(many())
    assert (refused.status, refused.headers["retry-after"]) == (429, "1")
    assert {answer.status for answer in [*answers, after]} == {200}
    assert app.held == 0


def test_what_is_posted_is_json_whatever_it_is_called() -> None:
    async def tell(scope: Scope, receive: Receive, send: Send) -> None:
        found = dict(scope["headers"]).get(b"content-type", b"")

        async def sending(message: Message) -> None:
            await send({**message, **({"body": found} if "body" in message else {})})

        await echo(scope, receive, sending)

    for sent in ("application/x-www-form-urlencoded", "text/plain", "", "APPLICATION/JSON; charset=utf-8"):
        assert post(Bodies(tell, SMALL), [b"{}"], content_type=sent).body == b"application/json"
    answer = post(Bodies(tell, SMALL), [b"{}"], content_type="multipart/form-data; boundary=x")
    assert (answer.status, "multipart/form-data" in answer.error["message"]) == (415, True)


@pytest.mark.parametrize(
    ("encoding", "status"), [("gzip", 415), ("Deflate", 415), ("identity, br", 415), ("identity", 200), ("", 200)]
)
def test_bodies_that_are_packed_are_refused_as_such(encoding: str, status: int) -> None:
    answer = post(Bodies(echo, SMALL), [b"{}"], content_encoding=encoding)
    assert answer.status == status
    assert status == 200 or encoding.lower() in answer.error["message"]


# from here on against a real server


def test_a_real_server_refuses_what_is_too_large_before_it_has_come_and_while_it_comes() -> None:
    with site(reader.FOLDER, max_body_mib=1) as small:
        with line(small) as connection:  # the body is never sent, and the answer is there
            connection.sendall(head("POST", "/tokenize", "Content-Length: 99999999", "Connection: close"))
            assert b" 413 " in rest(connection).splitlines()[0]
        content = json.dumps({"content": "x" * 2 * MIB}).encode()
        pieces = (content[i : i + 65536] for i in range(0, len(content), 65536))
        assert small.http.post("/tokenize", content=pieces).status_code == 413
        assert small.post("/tokenize", {"content": "x" * (MIB - 100)}).status_code in (200, 400)


def test_who_hangs_up_in_the_middle_of_a_body_made_no_mistake(served: Site, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    with line(served) as connection:
        connection.sendall(head("POST", "/tokenize", "X-Request-Id: gone", "Content-Length: 100") + b'{"con')
    end = time.monotonic() + 5
    while not (found := [r.getMessage() for r in caplog.records if "gone" in r.getMessage()]):
        assert time.monotonic() < end
        time.sleep(0.01)
    assert "499" in found[0]
