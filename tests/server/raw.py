"""Requests as no client library sends them: straight to an ASGI app, or byte by byte over a socket."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sites import Site
from starlette.types import ASGIApp, Message, Receive, Scope, Send

Header = tuple[bytes, bytes]


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def error(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)["error"]
        return found


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """An app that says how long the body is."""
    n, more = 0, True
    while more:
        message = await receive()
        n, more = n + len(message.get("body", b"")), message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(n).encode()})


def scope_of(method: str = "GET", path: str = "/props", headers: Iterable[Header] = ()) -> Scope:
    return {
        "type": "http", "method": method, "path": path, "query_string": b"", "http_version": "1.1", "scheme": "http",
        "headers": list(headers), "state": {},
    }  # fmt: skip


def called(app: ASGIApp, scope: Scope, pieces: Sequence[bytes] = (b"",), wait: float = 0.0) -> Answer:
    """What an app answers to a body in pieces, `wait` seconds apart."""
    return asyncio.run(calling(app, scope, pieces, wait))


async def calling(app: ASGIApp, scope: Scope, pieces: Sequence[bytes] = (b"",), wait: float = 0.0) -> Answer:
    left, sent = list(pieces), list[Message]()

    async def receive() -> Message:
        if not left:
            return {"type": "http.disconnect"}
        await asyncio.sleep(wait)
        return {"type": "http.request", "body": left.pop(0), "more_body": bool(left)}

    async def send(message: Message) -> None:
        sent.append(message)

    await app(scope, receive, send)
    headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in sent[0]["headers"]}
    return Answer(sent[0]["status"], headers, b"".join(message.get("body", b"") for message in sent[1:]))


@contextmanager
def line(site: Site, receive_buffer: int | None = None) -> Iterator[socket.socket]:
    """A connection to a server."""
    host, port = site.url.removeprefix("http://").split(":")
    with socket.socket() as out:
        if receive_buffer is not None:
            out.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        out.settimeout(20)
        out.connect((host, int(port)))
        yield out


def head(method: str, path: str, *headers: str) -> bytes:
    """The head of a request."""
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: localhost", *headers, "", ""]).encode()


def rest(connection: socket.socket) -> bytes:
    """What comes until the other side closes or breaks off."""
    out = b""
    try:
        while data := connection.recv(65536):
            out += data
    except ConnectionResetError:
        pass
    return out
