"""One small, bounded fetch over HTTP: no redirects, media only, limits on size and time."""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from email.message import Message
from http.client import HTTPException, HTTPResponse
from typing import IO

from diptych.errors import MediaError
from diptych.types import MediaKind

MAX_BYTES = 64 * 2**20
MAX_SECONDS = 60.0  # for the whole
PATIENCE = 10.0  # seconds without a byte
_BLOCK = 2**16
_BYTES = ("application/octet-stream", "binary/octet-stream")  # object stores often know no better


def fetch(url: str, name: str, kind: MediaKind = "image") -> bytes:
    """The body at an http: or https: URL.

    Raises MediaError when the server cannot be reached, answers with an error, a redirect or something other than
    the kind of media asked for, or when the body is larger than MAX_BYTES or slower than MAX_SECONDS.
    """
    deadline = time.monotonic() + MAX_SECONDS
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "diptych", "Accept": f"{kind}/*"})
        with urllib.request.build_opener(_NoRedirects).open(request, timeout=PATIENCE) as answer:
            _check_type(answer.headers, name, kind)
            return _body(answer, deadline, name)
    except urllib.error.HTTPError as error:
        with error:
            raise MediaError(_refusal(error, name)) from None
    except (OSError, HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise MediaError(f"cannot fetch {name}: {reason}; check the address, or save it and give the file") from error


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect may lead anywhere, and is told instead of followed."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> None:
        return None


def _refusal(error: urllib.error.HTTPError, name: str) -> str:
    if target := error.headers.get("Location") if 300 <= error.code < 400 else None:
        return f"{name} redirects to {target}, and redirects are not followed; give that address if you trust it"
    return f"cannot fetch {name}: the server answered {error.code} {error.reason}; check the address"


def _check_type(headers: Message, name: str, kind: MediaKind) -> None:
    if "Content-Type" in headers and not headers.get_content_type().startswith((f"{kind}/", *_BYTES)):
        found = headers.get_content_type()
        raise MediaError(f"{name} is {found}, and {kind} is expected; give the address of the file itself")


def _body(answer: HTTPResponse, deadline: float, name: str) -> bytes:
    data = bytearray()
    while block := answer.read1(_BLOCK):
        data += block
        if len(data) > MAX_BYTES:
            raise MediaError(f"{name} has over {MAX_BYTES:,} bytes, more than is fetched; save it and give the file")
        if time.monotonic() > deadline:
            raise MediaError(f"{name} did not arrive within {MAX_SECONDS:g} s; save it and give the file")
    if answer.length:
        raise MediaError(f"{name} broke off {answer.length:,} bytes before its end; try again")
    return bytes(data)
