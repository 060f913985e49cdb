"""A web site on this machine, good and bad, and proxies to it."""

from __future__ import annotations

import gzip
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pictures

PIXELS = pictures.gradient(20, 12)
PNG = pictures.encoded(PIXELS)


class Site(BaseHTTPRequestHandler):
    """A few pages, good and bad. A proxy is asked for a whole address, or to connect."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.asked.append((self.path, dict(self.headers)))  # type: ignore[attr-defined]
        path = self.path.partition("/")[2] if self.path.startswith("/") else self.path.split("/", 3)[3]
        match path:
            case "good" | "good?a=%20b&c" | "b%C3%A4r%20x":
                self.page(200, "image/png", PNG)
            case "octets":
                self.page(200, "application/octet-stream", PNG)
            case "untyped":
                self.page(200, None, PNG)
            case "chunks":
                self.page(200, "image/png", PNG, length=None, **{"Transfer-Encoding": "chunked"})
            case "html":
                self.page(200, "text/html; charset=utf-8", b"<html>sign in</html>")
            case "lies":
                self.page(200, "image/png", b"<html>sign in</html>")
            case "moved":
                self.page(302, "text/html", b"", Location="http://127.0.0.1/secret")
            case "moved-to-lines":
                self.page(302, "text/html", b"", Location="http://a/\r\n b" + "x" * 1000)
            case "short":
                self.page(200, "image/png", PNG[:-30], length=len(PNG))
            case "large":
                self.page(200, "image/png", b"\0" * 200_000)
            case "large-chunks":
                self.page(200, "image/png", b"\0" * 200_000, length=None, **{"Transfer-Encoding": "chunked"})
            case "packed":
                self.page(200, "image/png", gzip.compress(PNG), **{"Content-Encoding": "gzip"})
            case "heads":
                self.page(200, "image/png", PNG, **{f"X-{i}": "x" * 1000 for i in range(90)})
            case _:
                self.page(404, "text/html", b"no")

    def do_CONNECT(self) -> None:
        self.server.asked.append((self.path, dict(self.headers)))  # type: ignore[attr-defined]
        host, _, port = self.path.rpartition(":")
        self.send_response(200)
        self.end_headers()
        with socket.create_connection((host, int(port))) as far:
            back = threading.Thread(target=_copy, args=(far, self.connection), daemon=True)
            back.start()
            _copy(self.connection, far)
            back.join()

    def page(self, status: int, kind: str | None, body: bytes, length: int | None = 0, **headers: str) -> None:
        self.send_response(status)
        chunked = "Transfer-Encoding" in headers
        said = {} if chunked else {"Content-Length": str(length or len(body))}
        for name, value in {**headers, **said, **({"Content-Type": kind} if kind else {}), "Connection": "close"}.items():
            self.send_header(name, value)
        self.end_headers()
        parts = [body[i : i + 1000] for i in range(0, len(body), 1000)]
        self.wfile.write(b"".join(b"%x\r\n%s\r\n" % (len(p), p) for p in [*parts, b""]) if chunked else body)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def site(tls: ssl.SSLContext | None = None) -> Iterator[ThreadingHTTPServer]:
    """The site on a free port; `asked` are the paths and headers it was asked for."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Site)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # who asks may hang up
    server.asked = []  # type: ignore[attr-defined]
    if tls:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def dripping(head: bytes, pause: float, drop: bytes = b"x") -> Iterator[int]:
    """The port of a server that says `head`, and then a drop again and again."""
    ended = threading.Event()

    def serve() -> None:
        listener.settimeout(5)
        line, _ = listener.accept()
        with line:
            line.sendall(head)
            while not ended.wait(pause):
                try:
                    line.sendall(drop)
                except OSError:
                    return

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            ended.set()
            thread.join()


def seconds(call: Callable[[], object]) -> float:
    start = time.monotonic()
    call()
    return time.monotonic() - start


def _copy(source: socket.socket, target: socket.socket) -> None:
    try:
        while block := source.recv(2**16):
            target.sendall(block)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        return
