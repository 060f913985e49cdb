"""One small, bounded fetch over HTTP: no redirects, media only, and never from where it may not be."""

from __future__ import annotations

import re
import time
from email.message import Message
from http import HTTPStatus
from http.client import HTTPException, HTTPResponse
from urllib.parse import quote, urlsplit

from diptych.errors import MediaError, MediaTooLarge, UnsupportedMedia
from diptych.media.access import Access, shown
from diptych.media.address import left
from diptych.media.line import MAX_HEAD, PORTS, Paced, Proxy, Target, connected
from diptych.types import MediaKind

_BLOCK = 2**16
_BYTES = ("application/octet-stream", "binary/octet-stream")  # object stores often know no better
_HOST = re.compile(r"[0-9a-z_.:-]+")
_KEPT = "%/:=&?~+!$,;'@()*[]"  # beside letters and digits, in a path and a query


def fetch(url: str, name: str, kind: MediaKind, access: Access) -> bytes:
    """The body at an http: or https: URL.

    Raises MediaError when it may not be fetched, the server cannot be reached, answers with an error or a redirect, or
    takes longer than `access.max_seconds` in all; MediaTooLarge when there are more than `access.max_bytes`,
    UnsupportedMedia when it is something other than the kind of media asked for.
    """
    deadline = time.monotonic() + access.max_seconds
    try:
        target = _target(url)
        _check_allowed(target, access, name)
        with connected(target, access, deadline, name) as (line, proxy):
            line.settimeout(left(deadline))
            line.sendall(_request(target, kind, proxy))
            return _answer(Paced(line, deadline), name, kind, access.max_bytes)
    except TimeoutError:
        raise MediaError(f"{name} did not arrive within {access.max_seconds:g} s; save it and send the file") from None
    except (OSError, HTTPException, ValueError) as error:
        reason = shown(getattr(error, "strerror", None) or str(error) or type(error).__name__)
        raise MediaError(f"cannot fetch {name}: {reason}; check the address, or save it and send the file") from error


def _target(url: str) -> Target:
    """A URL in parts. Raises ValueError for what names no host, or a user."""
    parts = urlsplit(url)
    if "@" in parts.netloc or "\\" in parts.netloc:
        raise ValueError("it names a user")
    host = (parts.hostname or "").encode("idna").decode().lower().removesuffix(".")
    if not _HOST.fullmatch(host):
        raise ValueError("it names no host")
    scheme = parts.scheme.lower()
    path = quote(parts.path or "/", _KEPT) + (f"?{quote(parts.query, _KEPT)}" if parts.query else "")
    return Target(scheme, host, parts.port or PORTS[scheme], path)


def _check_allowed(target: Target, access: Access, name: str) -> None:
    """Raise MediaError for an address that is not to be fetched from, by its host and port."""
    if not access.remote:
        raise MediaError(f"{name} is an address, and none is fetched from; send the file's bytes as a data URL")
    allowed = {host.lower() for host in access.allowed_hosts}
    if allowed & {target.authority, f"{target.authority}:{target.port}"}:
        return
    if allowed and target.host not in allowed:
        raise MediaError(f"{name} is of a host that is not allowed; send the file's bytes as a data URL")
    if target.port not in PORTS.values() and not access.allow_private:
        raise MediaError(f"{name} names the port {target.port}, and only 80 and 443 are fetched from; send the file's bytes")


def _request(target: Target, kind: MediaKind, proxy: Proxy | None) -> bytes:
    path = f"http://{target.authority}{target.path}" if proxy else target.path
    head = f"GET {path} HTTP/1.1\r\nHost: {target.authority}\r\nUser-Agent: diptych\r\nAccept: {kind}/*\r\n"
    return f"{head}Accept-Encoding: identity\r\nConnection: close\r\n{proxy.header if proxy else ''}\r\n".encode()


def _answer(paced: Paced, name: str, kind: MediaKind, max_bytes: int) -> bytes:
    answer = HTTPResponse(paced)  # type: ignore[arg-type]  # makefile is all it asks of a socket
    answer.begin()
    if not HTTPStatus.OK <= answer.status < HTTPStatus.MULTIPLE_CHOICES:
        raise MediaError(_refusal(answer, name))
    _check_type(answer.headers, name, kind)
    paced.n_left = 2 * max_bytes + MAX_HEAD  # the marks of chunks beside the body
    return _body(answer, name, max_bytes)


def _refusal(answer: HTTPResponse, name: str) -> str:
    if target := answer.headers.get("Location") if answer.status < HTTPStatus.BAD_REQUEST else None:
        return f"{name} redirects to {shown(target)}, and redirects are not followed; give that address if you trust it"
    return f"cannot fetch {name}: the server answered {answer.status} {shown(answer.reason)}; check the address"


def _check_type(headers: Message, name: str, kind: MediaKind) -> None:
    """Raise UnsupportedMedia for a body that is no media of a kind, or packed: it could be any size when unpacked."""
    if "Content-Type" in headers and not headers.get_content_type().startswith((f"{kind}/", *_BYTES)):
        found = shown(headers.get_content_type())
        raise UnsupportedMedia(f"{name} is {found}, and {kind} is expected; give the address of the file itself")
    if (packed := headers.get("Content-Encoding", "identity").strip().lower()) != "identity":
        raise UnsupportedMedia(f"{name} comes packed as {shown(packed)}, which was not asked for; save it and send the file")


def _body(answer: HTTPResponse, name: str, max_bytes: int) -> bytes:
    data = bytearray()
    while (answer.length or 0) + len(data) <= max_bytes and (block := answer.read1(_BLOCK)):
        data += block
    if (answer.length or 0) + len(data) > max_bytes:
        raise MediaTooLarge(f"{name} has over {max_bytes:,} bytes, more than is fetched; make it smaller")
    if answer.length:
        raise MediaError(f"{name} broke off {answer.length:,} bytes before its end; try again")
    return bytes(data)
