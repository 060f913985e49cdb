"""Who may speak to the server: keys, host names, origins, and bodies of bounded size. Plain ASGI, before any route."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse, Response

from diptych.errors import FileError, InputError
from diptych.options import ServerOptions
from diptych.server import problems

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN = ("/health", "/v1/health", "/", "/favicon.ico")  # without a key, as in llama-server
PAGE = "/page/"
_SAFE = ("GET", "HEAD", "OPTIONS")


class Guard:
    """Refuses what must not reach a route, and reads every JSON body whatever type it is sent as."""

    def __init__(self, app: App, options: ServerOptions) -> None:
        self.app = app
        self.keys = [key.encode() for key in keys(options)]
        self.origins = tuple(origin.rstrip("/").lower() for origin in options.cors_origins)
        self.names = _names(options)
        self.max_body = options.max_body_mib * 2**20

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = Headers(scope=scope)
        try:
            self._check_host(headers)
            allowed = self._check_origin(scope, headers)
        except HTTPException as error:
            return await problems.response(error, scope["path"])(scope, receive, send)
        send = _with_headers(send, _cors(headers["origin"]) if allowed else {})
        if scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
            return await _preflight(headers if allowed else None)(scope, receive, send)
        try:
            scope["state"]["scope"] = self._check_key(scope["path"], headers)
            self._check_length(headers)
            _as_json(scope, headers)
        except HTTPException as error:
            return await problems.response(error, scope["path"])(scope, receive, send)
        await self._bounded(scope, receive, send)

    def _check_host(self, headers: Headers) -> None:
        """A page of another site may have its name point at this machine (DNS rebinding); the Host header tells."""
        name = _host_name(headers.get("host", ""))
        if "*" in self.names or name in self.names or _is_address(name):
            return
        raise HTTPException(403, f"the host name {name[:100]!r} is not one of this server's; start it with --server-name NAME")

    def _check_origin(self, scope: Scope, headers: Headers) -> bool:
        """Whether a page of another origin calls that may. Raises HTTPException for one that may not."""
        origin = headers.get("origin")
        if origin is None:
            return False
        if "*" in self.origins or origin.lower() in self.origins:
            return True
        if urlsplit(origin).netloc.lower() == headers.get("host", "").lower():
            return False
        if scope["method"] in _SAFE and scope["method"] != "OPTIONS":
            return False  # the browser keeps the answer from the page
        raise HTTPException(403, f"pages of {origin[:100]} may not use this server; start it with --cors-origin {origin[:100]}")

    def _check_key(self, path: str, headers: Headers) -> str:
        """The scope of media ids: a hash of the key. Raises HTTPException where a key is needed and is not there."""
        shown = headers.get("x-api-key") or ""
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            shown = token.strip()
        if not self.keys:
            return ""
        if any(hmac.compare_digest(shown.encode(), key) for key in self.keys):
            return hashlib.sha256(shown.encode()).hexdigest()
        if path in OPEN or path.startswith(PAGE):
            return ""
        raise HTTPException(401, "Invalid API Key", {"WWW-Authenticate": "Bearer"})

    def _check_length(self, headers: Headers) -> None:
        length = headers.get("content-length", "0")
        if not length.isdecimal():
            raise HTTPException(400, "Content-Length is not a number")
        if int(length) > self.max_body:
            raise self._too_large()

    def _too_large(self) -> HTTPException:
        return HTTPException(
            413, f"the body is over {self.max_body // 2**20} MiB; send less, or start the server with --max-body-mib"
        )

    async def _bounded(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Count a body that comes in pieces and does not say how long it is."""
        n, begun = 0, False

        async def counting() -> Message:
            nonlocal n
            message = await receive()
            n += len(message.get("body", b""))
            if n > self.max_body:
                raise self._too_large()
            return message

        async def noting(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self.app(scope, counting, noting)
        except HTTPException as error:
            if begun:
                raise
            await problems.response(error, scope["path"])(scope, receive, send)


def keys(options: ServerOptions) -> list[str]:
    """The keys that clients may show. Raises FileError or InputError for a file of keys that cannot be read or has none."""
    found = list(options.api_key)
    if options.api_key_file is not None:
        try:
            lines = options.api_key_file.read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise FileError(f"cannot read the keys in {options.api_key_file}: {error}") from error
        read = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
        if not read:
            raise InputError(f"{options.api_key_file} holds no key; write one a line, or leave --api-key-file out")
        found += read
    if not all(key.isascii() and key.isprintable() for key in found):
        raise InputError("a key holds characters that no HTTP header can; use letters, digits and signs of ASCII")
    return found


def _names(options: ServerOptions) -> set[str]:
    own = socket.gethostname().lower()
    return {"localhost", "", own, f"{own}.local", options.host.lower(), *(name.lower() for name in options.server_name)}


def _host_name(header: str) -> str:
    """The name in a Host header, without its port."""
    try:
        return (urlsplit(f"//{header}").hostname or "").rstrip(".")
    except ValueError:
        return header


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _as_json(scope: Scope, headers: Headers) -> None:
    """curl says `application/x-www-form-urlencoded` unless told otherwise; what is posted here is JSON all the same."""
    if scope["method"] in _SAFE:
        return
    if (given := headers.get("content-type", "").lower()).startswith("multipart/"):
        raise HTTPException(415, f"the body is {given.partition(';')[0]}, and application/json is expected")
    MutableHeaders(scope=scope)["content-type"] = "application/json"


def _cors(origin: str) -> dict[str, str]:
    return {"Access-Control-Allow-Origin": origin, "Access-Control-Allow-Credentials": "true", "Vary": "Origin"}


def _preflight(headers: Headers | None) -> Response:
    """What a browser asks before the call itself; no headers where the page may not call."""
    if headers is None:
        return PlainTextResponse("")
    asked = headers.get("access-control-request-headers", "")
    return PlainTextResponse(
        "", headers={"Access-Control-Allow-Methods": "GET, POST, DELETE, OPTIONS", "Access-Control-Allow-Headers": asked}
    )


def _with_headers(send: Send, extra: Iterable[tuple[str, str]] | dict[str, str]) -> Send:
    pairs = dict(extra)

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(raw=message.setdefault("headers", []))
            headers.update({"Server": "diptych", "X-Content-Type-Options": "nosniff", **pairs})
        await send(message)

    return sending
