"""Errors as clients expect them: OpenAI's error object, or Anthropic's, with the status of the error."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping
from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from diptych.errors import ContextOverflow, DiptychError, Overloaded

# status → type, as llama-server and as Anthropic name them
_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    429: "rate_limit_error",
    501: "not_supported_error",
    503: "unavailable_error",
    504: "timeout_error",
}
_ANTHROPIC_TYPES = {413: "request_too_large", 501: "invalid_request_error", 503: "overloaded_error"}
# of what no route has a word for; llama-server's where it has one
_SAID = {404: "File Not Found", 405: "this method is not for this path; the header Allow names those that are"}
_DEEP = "is nested too deeply; send it flatter"
_shown = reprlib.Repr()  # of what may be millions of items, it looks at the first
_shown.maxstring = _shown.maxother = 80
GONE = 499  # nginx's status for a client that hung up; nobody reads it but the log
_ERROR = "diptych_error"  # in the state of a request
ANTHROPIC = "/v1/messages"  # paths that begin so answer in Anthropic's form


def body(error: Exception, path: str = "") -> dict[str, object]:
    """The error object for a client of `path`."""
    status = status_of(error)
    message = str(error) if isinstance(error, DiptychError | HTTPException) else f"{type(error).__name__}: {error}"
    if isinstance(error, HTTPException):
        message = _detail(error)
    message = message.encode(errors="replace").decode()  # half a character that a client sent cannot be sent back
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    if path.startswith(ANTHROPIC):
        kind = _ANTHROPIC_TYPES.get(status, "api_error" if kind == "server_error" else kind)
        return {"type": "error", "error": {"type": kind, "message": message}}
    details: dict[str, object] = {"code": status, "message": message, "type": kind, "param": None}
    if isinstance(error, ContextOverflow):
        details |= {"type": "exceed_context_size_error", "n_prompt_tokens": error.n_prompt, "n_ctx": error.n_ctx}
    return {"error": details}


def status_of(error: Exception) -> int:
    """The HTTP status of an error; 500 for a fault of ours."""
    if isinstance(error, HTTPException):
        return error.status_code
    if isinstance(error, RequestValidationError):
        return 400
    return error.status if isinstance(error, DiptychError) else 500


def response(error: Exception, path: str = "") -> JSONResponse:
    """An error as a whole answer."""
    return JSONResponse(body(error, path), status_of(error), headers=_headers(error))


async def refuse(error: Exception, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer a request with an error before it reaches a route."""
    _keep(error, scope)
    await response(error, scope["path"])(scope, receive, send)


def found(scope: Scope) -> Exception | None:
    """The error that a request was answered with."""
    error = scope.get("state", {}).get(_ERROR)
    return error if isinstance(error, Exception) else None


def install(app: FastAPI) -> None:
    """Answer every error that a route raises on purpose in this form."""

    async def answer(request: Request, error: Exception) -> JSONResponse:
        _keep(error, request.scope)
        return response(error, request.url.path)

    async def invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        _keep(error, request.scope)
        return response(HTTPException(400, _explained(error)), request.url.path)

    async def deep(request: Request, _: Exception) -> JSONResponse:
        return await answer(request, HTTPException(400, f"the body {_DEEP}"))

    app.add_exception_handler(DiptychError, answer)
    app.add_exception_handler(RecursionError, deep)  # nothing here goes deep but what a client sent
    app.add_exception_handler(HTTPException, answer)
    app.add_exception_handler(RequestValidationError, invalid)


def _keep(error: Exception, scope: Scope) -> None:
    """For those who note what became of a request. Who hung up while sending it made no mistake in it."""
    gone = isinstance(error.__cause__, ClientDisconnect)
    scope.setdefault("state", {})[_ERROR] = HTTPException(GONE, "the client hung up") if gone else error


def _detail(error: HTTPException) -> str:
    """What an HTTP error says; of a body that could not be read, why."""
    if error.status_code in _SAID and error.detail == HTTPStatus(error.status_code).phrase:
        return _SAID[error.status_code]
    cause = error.__cause__
    if isinstance(cause, RecursionError):
        return f"the body {_DEEP}"
    if isinstance(cause, ValueError):
        return "the body is not UTF-8" if isinstance(cause, UnicodeDecodeError) else "the body holds a number of too many digits"
    return str(error.detail)


def _headers(error: Exception) -> Mapping[str, str] | None:
    if isinstance(error, Overloaded):
        return {"Retry-After": str(max(1, math.ceil(error.retry_after)))}
    return dict(error.headers) if isinstance(error, HTTPException) and error.headers else None


def _explained(error: RequestValidationError) -> str:
    """The first fault of a body, with the place of the field."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if part != "body")
    if first["type"] == "json_invalid":
        return f"the body is not JSON: {first.get('ctx', {}).get('error', first['msg'])} at character {where}"
    found = "" if first["type"] in ("missing", "value_error") else f", got {_shown.repr(first.get('input')):.80}"
    more = f" (and {len(error.errors()) - 1} more)" if len(error.errors()) > 1 else ""
    return f"{where or 'the body'}: {first['msg']}{found}{more}"
