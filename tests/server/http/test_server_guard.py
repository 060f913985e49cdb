"""Who may speak to the server: keys, host names, origins; and no header, whatever it holds, is a fault of ours."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from raw import Answer, Header, called, echo, head, line, rest, scope_of
from sites import Site, site
from starlette.types import Receive, Scope, Send

from diptych import reader
from diptych.errors import FileError, InputError, Unavailable
from diptych.options import ServerOptions
from diptych.server.http.guard import Guard, Rules, keys

HOST = (b"host", b"localhost:8080")
NAMES = (
    "host",
    "origin",
    "authorization",
    "x-api-key",
    "upgrade",
    "access-control-request-method",
    "content-length",
    "content-type",
)


def guard(check_ready: Callable[[], None] = lambda: None, **options: Any) -> Guard:
    return Guard(echo, Rules(ServerOptions(**options)), check_ready)


def ask(app: Guard, path: str = "/props", method: str = "GET", **headers: str) -> Answer:
    given = {"host": "localhost:8080", **headers}
    return called(app, scope_of(method, path, [(k.replace("_", "-").encode(), v.encode()) for k, v in given.items()]))


@pytest.mark.parametrize(
    "shown",
    [
        {"authorization": "Bearer one"}, {"authorization": "bearer  one "}, {"x_api_key": "one"}, {"x_api_key": "two"},
        {"authorization": "Bearer wrong", "x_api_key": "two"}, {"authorization": "Basic b25lOg==", "x_api_key": "one"},
    ],
)  # fmt: skip
def test_a_key_is_shown_in_either_header(shown: dict[str, str]) -> None:
    assert ask(guard(api_key=("one", "two")), **shown).status == 200


@pytest.mark.parametrize(
    "shown",
    [
        {}, {"authorization": "Bearer"}, {"authorization": "Bearer "}, {"authorization": "one"}, {"authorization": "Basic one"},
        {"x_api_key": "on"}, {"x_api_key": "onee"}, {"x_api_key": ""}, {"x_api_key": "ONE"}, {"x_api_key": "one,two"},
        {"authorization": "Bearer öne"}, {"x_api_key": "\x7f"},
    ],
)  # fmt: skip
def test_without_a_right_key_the_answer_is_401(shown: dict[str, str]) -> None:
    answer = ask(guard(api_key=("one", "two")), **shown)
    assert (answer.status, answer.error["type"], answer.error["message"]) == (401, "authentication_error", "Invalid API Key")
    assert answer.headers["www-authenticate"] == "Bearer"


def test_some_paths_are_open_and_their_neighbours_are_not() -> None:
    app = guard(api_key=("one",))
    assert {ask(app, path).status for path in ("/health", "/v1/health", "/", "/favicon.ico", "/page/chat.js")} == {200}
    assert {ask(app, path).status for path in ("/health/", "//", "/page", "/v1/models", "/metrics", "/openapi.json")} == {401}


def test_each_key_is_a_scope_of_its_own_and_none_is_told() -> None:
    scopes = []

    async def tell(scope: Scope, _receive: Receive, send: Send) -> None:
        scopes.append(scope["state"]["scope"])
        await echo(scope, _receive, send)

    app = Guard(tell, Rules(ServerOptions(api_key=("one", "two"))))
    for key in ("one", "two", "one"):
        ask(app, x_api_key=key)
    assert scopes[0] == scopes[2] != scopes[1]
    assert not any("one" in scope for scope in scopes)


def test_keys_come_from_a_file_too(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# ours\nthree\n\n  four  \n#five\n")
    assert keys(ServerOptions(api_key=("one",), api_key_file=file)) == ["one", "three", "four"]
    file.write_text("# none\n")
    with pytest.raises(InputError, match="holds no key"):
        Rules(ServerOptions(api_key_file=file))
    with pytest.raises(FileError, match="cannot read the keys"):
        Rules(ServerOptions(api_key_file=tmp_path / "nothing"))
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(FileError, match="cannot read the keys"):
        Rules(ServerOptions(api_key_file=file))
    for key in ("schlüssel", "a\nb", " "):
        with pytest.raises(InputError, match="a key is empty or holds"):
            Rules(ServerOptions(api_key=(key,)))


OWN = ("localhost", "LOCALHOST:1", "127.0.0.1:80", "[::1]:8080", "192.168.1.5", socket.gethostname(), "localhost.", "")


@pytest.mark.parametrize("host", OWN)
def test_names_of_the_machine_itself_and_addresses_are_taken(host: str) -> None:
    assert ask(guard(), host=host).status == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "evil.example:8080", "localhost:1@evil.example",
             "[::1", "[::1].evil.example", "2130706433", "0x7f.1", "local host"],
)  # fmt: skip
def test_a_name_that_was_made_to_point_here_is_refused(host: str) -> None:
    answer = ask(guard(), host=host)
    assert answer.status == 403
    assert "--server-name" in answer.error["message"]


def test_names_can_be_added() -> None:
    app = guard(server_name=("gpu.example",))
    assert ask(app, host="GPU.example:8080").status == 200
    assert ask(app, host="other.example").status == 403
    assert ask(guard(server_name=("*",)), host="other.example").status == 200


def test_a_page_of_this_server_may_call_it_and_no_other_may() -> None:
    for origin, status in (
        ("http://localhost:8080", 200), ("https://localhost:8080", 200), ("HTTP://LOCALHOST:8080", 200),
        ("http://localhost", 403), ("http://evil.example", 403), ("null", 403), ("", 403), ("file://", 403),
        ("http://localhost:8080.evil.example", 403), ("http://[", 403), ("localhost:8080", 403),
    ):  # fmt: skip
        answer = ask(guard(), "/v1/chat/completions", "POST", origin=origin)
        assert answer.status == status, origin
        assert "access-control-allow-origin" not in answer.headers
    # a browser keeps what it reads from the page, so that looking does no harm
    answer = ask(guard(), origin="http://evil.example")
    assert answer.status == 200
    assert "access-control-allow-origin" not in answer.headers


def test_pages_of_this_machine_may_call_where_localhost_is_allowed() -> None:
    for origin, status in (
        ("http://localhost", 200), ("http://localhost:3000", 200), ("https://127.0.0.1:1", 200), ("http://[::1]:3000", 200),
        ("http://notlocalhost", 403), ("http://localhost.evil.example", 403), ("http://evil.example/localhost", 403),
        ("http://localhost@evil.example", 403), ("null", 403), ("", 403),
    ):  # fmt: skip
        answer = ask(guard(cors_origins=("localhost",)), "/v1/chat/completions", "POST", origin=origin)
        assert answer.status == status, origin
        assert answer.headers.get("access-control-allow-origin") == (origin if status == 200 else None)


def test_a_page_without_origin_is_not_this_servers_where_no_host_is_told() -> None:
    for origin in ("null", "http://"):
        answer = called(guard(), scope_of("POST", "/v1/chat/completions", [(b"origin", origin.encode())]))
        assert answer.status == 403


def test_pages_that_may_call_get_what_their_browser_asks_for() -> None:
    app = guard(cors_origins=("https://app.example",), api_key=("one",))
    asked = {"access_control_request_method": "POST", "access_control_request_headers": "authorization,x-custom"}
    ahead = ask(app, "/v1/chat/completions", "OPTIONS", origin="https://App.example", **asked)
    assert ahead.status == 200  # without a key, which the browser does not show then
    assert ahead.headers["access-control-allow-origin"] == "https://App.example"
    assert ahead.headers["access-control-allow-headers"] == "authorization,x-custom"
    assert "POST" in ahead.headers["access-control-allow-methods"]
    assert ahead.headers["vary"] == "Origin"
    for shown, status in (({}, 401), ({"x_api_key": "one"}, 200)):
        answer = ask(app, "/v1/chat/completions", "POST", origin="https://app.example", **shown)
        assert (answer.status, answer.headers["access-control-allow-origin"]) == (status, "https://app.example")
        assert answer.headers["access-control-allow-credentials"] == "true"
        assert "X-Request-Id" in answer.headers["access-control-expose-headers"]
    for origin in ("https://other.example", "http://app.example", "https://app.example.evil.example", "null"):
        assert ask(app, "/v1/chat/completions", "OPTIONS", origin=origin, **asked).status == 403
        assert ask(app, "/v1/chat/completions", "POST", origin=origin, x_api_key="one").status == 403


def test_where_any_page_may_call_none_brings_cookies() -> None:
    answer = ask(guard(cors_origins=("*",)), "/v1/chat/completions", "POST", origin="null")
    assert (answer.status, answer.headers["access-control-allow-origin"]) == (200, "null")
    assert "access-control-allow-credentials" not in answer.headers


def test_while_nothing_is_served_only_the_page_is_there() -> None:
    def loading() -> None:
        raise Unavailable("Loading model")

    app = guard(loading, api_key=("one",))
    for path in ("/health", "/v1/chat/completions", "/nothing"):
        answer = ask(app, path, x_api_key="one")
        assert (answer.status, answer.error["message"], answer.error["type"]) == (503, "Loading model", "unavailable_error")
    assert ask(app, "/props").status == 401
    assert ask(app, "/").status == 200


def test_websockets_are_refused() -> None:
    assert ask(guard(), upgrade="WebSocket", connection="Upgrade").status == 400
    assert ask(guard(), upgrade="h2c", connection="Upgrade").status == 200  # curl --http2 offers it, and goes on without
    sent = []

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(guard()({"type": "websocket", "path": "/"}, None, send))  # type: ignore[arg-type]
    assert sent == [{"type": "websocket.close", "code": 1008}]


values = st.one_of(
    st.binary(max_size=60),
    st.text(st.characters(max_codepoint=255), max_size=40).map(lambda t: t.encode("latin-1")),
    st.sampled_from(
        [b"http://[", b"http://]:x", b"localhost:99999999", b"[", b"//", b"Bearer \xff", b"9" * 5000, b"-1", b"\xb2"]
    ),
)
UNLOCKED, CLOSED = (guard(api_key=key, cors_origins=("https://app.example",)) for key in ((), ("one",)))
header = st.tuples(st.sampled_from(NAMES).map(str.encode), values)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(header, max_size=6), st.sampled_from(["GET", "POST", "OPTIONS", "PUT", "HEAD", "X"]),
    st.sampled_from(["/", "/props", "/page/x", "/v1/messages"]), st.booleans(),
)  # fmt: skip
def test_no_header_is_a_fault_of_ours(headers: list[Header], method: str, path: str, closed: bool) -> None:
    answer = called(CLOSED if closed else UNLOCKED, scope_of(method, path, headers))
    assert answer.status in (200, 400, 401, 403)


# from here on against a real server


def test_a_real_server_says_so_in_the_form_of_its_routes(served: Site) -> None:
    for path in ("/nothing", "/v1/nothing?words=secret", "/%ff%00", "/../../etc/passwd", "/page/nothing"):
        answer = served.get(path)
        assert (answer.status_code, answer.json()["error"]["message"]) == (404, "File Not Found")
    assert served.http.head("/health").status_code == 200
    for method, path, allowed in (("PUT", "/props", "GET"), ("HEAD", "/props", "GET"), ("GET", "/v1/chat/completions", "POST")):
        answer = served.http.request(method, path)
        assert (answer.status_code, answer.headers["allow"]) == (405, allowed)
        if method != "HEAD":
            assert "Allow" in answer.json()["error"]["message"]
    answer = served.get("/v1/messages/nothing")
    assert answer.json()["type"] == "error"  # as Anthropic has it


def test_every_answer_has_an_id_the_clients_own_where_it_makes_sense(served: Site) -> None:
    assert served.get("/health", headers={"X-Request-Id": "trace-1/a:b"}).headers["x-request-id"] == "trace-1/a:b"
    for bad in ("", "a b", "x" * 101, "a;b", '"a"', "ä".encode("latin-1")):
        found = served.get("/nothing", headers={"X-Request-Id": bad}).headers["x-request-id"]
        assert re.fullmatch(r"[0-9a-f]{32}", found)
    body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
    answer = served.post("/v1/chat/completions", body, headers={"X-Request-Id": "mine"})
    assert answer.json()["id"] == "chatcmpl-mine"
    assert answer.headers["server"] == "diptych"


def test_heads_that_are_no_http_or_too_long_are_refused_and_the_server_lives(served: Site) -> None:
    many = [f"X-{i}: {'y' * 50}" for i in range(40_000)]
    smuggled = [
        head("POST", "/tokenize", "Content-Length: 5", "Content-Length: 6"),
        head("POST", "/tokenize", "Content-Length: 5", "Transfer-Encoding: chunked, identity"),
        head("POST", "/tokenize", "Content-Length: +5"),
        head("POST", "/tokenize", "Transfer-Encoding: chunked") + b"zz\r\n",
        b"GET /health HTTP/1.1\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: a\r\n b\x00\r\n\r\n",
        b"\x16\x03\x01\x02\x00" * 20,
        head("GET", "/health", *many),
    ]
    for sent in smuggled:
        with line(served) as connection:
            with suppress(ConnectionError):  # who is refused in the middle
                connection.sendall(sent)
            answer = rest(connection)
            assert answer == b"" or b" 400 " in answer.splitlines()[0], (sent[:60], answer[:200])
    assert served.get("/health").status_code == 200


def test_a_length_beside_chunks_does_not_hide_a_second_request(served: Site) -> None:
    body = b'b\r\n{"content":\r\n5\r\n"hi"}\r\n0\r\n\r\n'
    with line(served) as connection:
        connection.sendall(head("POST", "/tokenize", "Content-Length: 4", "Transfer-Encoding: chunked"))
        connection.sendall(body + head("GET", "/health", "Connection: close"))
        answer = rest(connection)
    assert (answer.count(b"HTTP/1.1 "), answer.split()[1]) == (1, b"400")


def test_a_server_with_a_key_is_closed_but_for_its_health() -> None:
    with site(reader.FOLDER, api_key=("one",)) as closed:
        assert closed.get("/health").status_code == 200
        assert closed.get("/v1/models").status_code == 401
        assert closed.get("/v1/models", headers={"Authorization": "Bearer one"}).status_code == 200
        told = closed.post("/v1/messages", {}).json()
    assert told == {"type": "error", "error": {"type": "authentication_error", "message": "Invalid API Key"}}
