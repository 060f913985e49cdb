"""Lines to hosts: of the addresses that were checked, through a proxy where there is one, with a deadline for it all."""

from __future__ import annotations

import base64
import io
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from http import HTTPStatus
from http.client import HTTPException, HTTPResponse
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

from diptych.media.access import Access
from diptych.media.address import Address, checked, left, resolve

PORTS = {"http": 80, "https": 443}
PATIENCE = 5.0  # seconds for one of several addresses
MAX_HEAD = 2**16  # bytes of an answer before its body


class Target(NamedTuple):
    """An address in parts, all in ASCII; `path` has the query too."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def authority(self) -> str:
        """HOST:PORT, or HOST where the port is the usual one."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == PORTS[self.scheme] else f"{host}:{self.port}"


class Proxy(NamedTuple):
    """A proxy, and the header line it wants."""

    host: str
    port: int
    header: str


class Paced(io.RawIOBase):
    """What arrives on a line until a deadline, up to `n_left` bytes: no wait and no answer is without end."""

    def __init__(self, line: socket.socket, deadline: float) -> None:
        self._line, self._deadline, self.n_left = line, deadline, MAX_HEAD

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401 - as its base declares it
        self._line.settimeout(left(self._deadline))
        n = self._line.recv_into(buffer)
        self.n_left -= n
        if self.n_left < 0:
            raise HTTPException("its answer is longer than it may be")
        return n

    def makefile(self, _mode: str) -> io.BufferedReader:
        """What HTTPResponse asks a socket for."""
        return io.BufferedReader(self)


@contextmanager
def connected(target: Target, access: Access, deadline: float, name: str) -> Iterator[tuple[socket.socket, Proxy | None]]:
    """A line to a host, and the proxy that wants to be asked for the whole address, over plain HTTP.

    The address is the one that was checked. urllib3 and httpx look the name up again when they connect, so either would
    need as much code here, and neither bounds the whole of a fetch; http.client reads what comes on any line.
    """
    proxy = _proxy(target) if access.proxies else None
    addresses = resolve(proxy.host, proxy.port, deadline) if proxy else resolve(target.host, target.port, deadline)
    line = _connect(addresses if access.allow_private else checked(addresses, name), deadline)
    try:
        if target.scheme == "http":
            yield line, proxy
            return
        if proxy:
            _tunnel(line, target, proxy, deadline)
        line.settimeout(left(deadline))
        line = _tls().wrap_socket(line, server_hostname=target.host)
        yield line, None
    finally:
        line.close()


def _connect(addresses: list[Address], deadline: float) -> socket.socket:
    """A line to the first address that answers."""
    failed = OSError("the host has no address")
    for i, address in enumerate(addresses, 1):
        line = socket.socket(address.family, socket.SOCK_STREAM)
        try:
            line.settimeout(left(deadline) if i == len(addresses) else min(left(deadline), PATIENCE))
            line.connect(address.sockaddr)
        except OSError as error:
            line.close()
            failed = error
        else:
            return line
    raise failed


def _proxy(target: Target) -> Proxy | None:
    """The environment's proxy for an address, if any. Raises ValueError for one that is not spoken to in plain HTTP."""
    named = getproxies().get(target.scheme)
    if not named or proxy_bypass(target.host):
        return None
    parts = urlsplit(named if "://" in named else f"http://{named}")
    if parts.scheme != "http" or not parts.hostname:
        raise ValueError(f"{target.scheme}_proxy is a {parts.scheme}: address, and http: is expected")
    user = f"{unquote(parts.username)}:{unquote(parts.password or '')}" if parts.username else ""
    header = f"Proxy-Authorization: Basic {base64.b64encode(user.encode()).decode()}\r\n" if user else ""
    return Proxy(parts.hostname, parts.port or PORTS["http"], header)


def _tunnel(line: socket.socket, target: Target, proxy: Proxy, deadline: float) -> None:
    """Let a proxy connect a line to the host."""
    to = f"[{target.host}]:{target.port}" if ":" in target.host else f"{target.host}:{target.port}"
    line.sendall(f"CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n{proxy.header}\r\n".encode())
    answer = HTTPResponse(Paced(line, deadline), method="CONNECT")  # type: ignore[arg-type]  # makefile is all it asks of a socket
    answer.begin()
    if answer.status != HTTPStatus.OK:
        raise HTTPException(f"the proxy answered {answer.status} {answer.reason}")


@cache
def _tls() -> ssl.SSLContext:
    return ssl.create_default_context()
