"""Who may speak to the server: keys, host names, origins. Plain ASGI, before any route."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
import socket
from collections.abc import Callable, Mapping

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from diptych.errors import FileError, InputError, Unavailable
from diptych.options import ServerOptions
from diptych.server.http import problems

PAGE = ("/", "/favicon.ico", "/page/")  # and what is below the last
OPEN = ("/health", "/v1/health", *PAGE)  # without a key, as in llama-server
_SAFE = ("GET", "HEAD", "OPTIONS")
_HOST = re.compile(r"(\[[^\[\]]*\]|[^\[\]:@/?#]*)(?::\d*)?")
_LOCAL = "localhost"
_SHOWN = 100  # characters of a client's header in a message


class Guard:
    """Refuses what must not reach a route, in this order: the wrong host, origin, key; and all of it while nothing is served."""

    def __init__(self, app: ASGIApp, rules: Rules, check_ready: Callable[[], None] = lambda: None) -> None:
        """`check_ready` raises Unavailable while no requests are taken; the page is there all the same."""
        self.app, self.rules, self.check_ready = app, rules, check_ready

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            return await send({"type": "websocket.close", "code": 1008})
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = Headers(scope=scope)
        try:
            self.rules.check_host(headers)
            allowed = self.rules.check_origin(scope["method"], headers)
        except HTTPException as error:
            return await problems.refuse(error, scope, receive, send)
        send = _with_headers(send, self.rules.cors(headers["origin"]) if allowed else {})
        if scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
            return await _preflight(headers if allowed else None)(scope, receive, send)
        try:
            scope.setdefault("state", {})["scope"] = self.rules.check_key(scope["path"], headers)
            _check_upgrade(headers)
            if not _is_page(scope["path"]):
                self.check_ready()
        except (HTTPException, Unavailable) as error:
            return await problems.refuse(error, scope, receive, send)
        await self.app(scope, receive, send)


class Rules:
    """What the options say of who may use the server."""

    def __init__(self, options: ServerOptions) -> None:
        """Raises FileError or InputError for keys that cannot be used."""
        self._keys = [key.encode() for key in keys(options)]
        self._origins = tuple(origin.rstrip("/").lower() for origin in options.cors_origins)
        self._names = _names(options)

    def check_host(self, headers: Headers) -> None:
        """A page of another site may have its name point at this machine (DNS rebinding); the Host header tells.

        Raises HTTPException for a name that is not this server's.
        """
        name = _host_name(headers.get("host", ""))
        if "*" in self._names or name in self._names or _is_address(name):
            return
        raise HTTPException(403, f"the host name {name[:_SHOWN]!r} is not one of this server's; start it with --server-name NAME")

    def check_origin(self, method: str, headers: Headers) -> bool:
        """Whether a page of another origin calls that may. Raises HTTPException for one that may not."""
        origin = headers.get("origin")
        if origin is None:
            return False
        if "*" in self._origins or origin.lower() in self._origins or self._is_local(origin):
            return True
        host = headers.get("host", "").lower()
        if host and origin.lower() in (f"http://{host}", f"https://{host}"):
            return False
        if method in ("GET", "HEAD"):
            return False  # the browser keeps the answer from the page
        shown = origin[:_SHOWN]
        raise HTTPException(403, f"pages of {shown!r} may not use this server; start it with --cors-origin ORIGIN")

    def _is_local(self, origin: str) -> bool:
        """Whether the origin is of this machine, and those may: `localhost` in the options stands for all of them."""
        return _LOCAL in self._origins and _host_name(origin.partition("://")[2]) in (_LOCAL, "127.0.0.1", "::1")

    def check_key(self, path: str, headers: Headers) -> str:
        """The scope of media ids: a hash of the key. Raises HTTPException where a key is needed and is not there."""
        if not self._keys:
            return ""
        for shown in _shown_keys(headers):
            # all are looked at, so that the time it takes tells nothing
            if sum(hmac.compare_digest(shown, key) for key in self._keys):
                return hashlib.sha256(shown).hexdigest()
        if path in OPEN or _is_page(path):
            return ""
        raise HTTPException(401, "Invalid API Key", {"WWW-Authenticate": "Bearer"})

    def cors(self, origin: str) -> dict[str, str]:
        """The headers by which a browser gives an answer to a page of another origin.

        Where any may call, none brings what else the browser knows of the user: a proxy in front may go by cookies.
        """
        out = {"Access-Control-Allow-Origin": origin, "Access-Control-Expose-Headers": "X-Request-Id, Retry-After"}
        return out if "*" in self._origins else {**out, "Access-Control-Allow-Credentials": "true"}


def hosts(options: ServerOptions) -> list[str]:
    """The addresses to listen on, as names in a Host header."""
    return [host.strip().lower() for host in options.host.split(",")]


def keys(options: ServerOptions) -> list[str]:
    """The keys that clients may show. Raises FileError or InputError for a file of keys that cannot be read or has none."""
    found = [key.strip() for key in options.api_key]
    if options.api_key_file is not None:
        try:
            lines = options.api_key_file.read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise FileError(f"cannot read the keys in {options.api_key_file}: {error}") from error
        read = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
        if not read:
            raise InputError(f"{options.api_key_file} holds no key; write one a line, or leave --api-key-file out")
        found += read
    if not all(key and key.isascii() and key.isprintable() for key in found):
        raise InputError("a key is empty or holds what no HTTP header can; use letters, digits and signs of ASCII")
    return found


def _shown_keys(headers: Headers) -> list[bytes]:
    scheme, _, token = headers.get("authorization", "").partition(" ")
    bearer = token.strip() if scheme.lower() == "bearer" else ""
    return [key.encode() for key in (bearer, headers.get("x-api-key", "")) if key]


def _names(options: ServerOptions) -> set[str]:
    own = socket.gethostname().lower()
    return {_LOCAL, "", own, f"{own}.local", *hosts(options), *(name.lower() for name in options.server_name)}


def _host_name(header: str) -> str:
    """The name in a Host header, without its port; all of it where it is none."""
    found = _HOST.fullmatch(header)
    return found[1].strip("[]").rstrip(".").lower() if found else header


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _is_page(path: str) -> bool:
    return path in PAGE or path.startswith(PAGE[-1])


def _check_upgrade(headers: Headers) -> None:
    if "websocket" in headers.get("upgrade", "").lower():
        raise HTTPException(400, "there are no WebSockets here; ask for a stream, which comes as server-sent events")


def _preflight(headers: Headers | None) -> Response:
    """What a browser asks before the call itself; no headers where the page may not call."""
    if headers is None:
        return PlainTextResponse("")
    told = {
        "Access-Control-Allow-Methods": "GET, POST, DELETE, OPTIONS",
        "Access-Control-Allow-Headers": headers.get("access-control-request-headers", ""),
        "Access-Control-Max-Age": "600",
    }
    return PlainTextResponse("", headers=told)


def _with_headers(send: Send, extra: Mapping[str, str]) -> Send:
    """`send`, with headers in the response; which ones depends on the Origin, and caches must know."""

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(raw=message.setdefault("headers", []))
            headers.update(extra)
            headers.add_vary_header("Origin")
        await send(message)

    return sending
