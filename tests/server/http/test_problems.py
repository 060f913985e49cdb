"""Errors: the status and form that clients of OpenAI and of Anthropic expect, whatever goes wrong."""

from __future__ import annotations

import inspect

import pytest
from fastapi.exceptions import RequestValidationError
from sites import Site
from starlette.exceptions import HTTPException

from diptych import errors
from diptych.errors import ContextOverflow, DiptychError, MediaTooLarge, Overloaded, Unavailable
from diptych.server.http import problems

KINDS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, DiptychError)]


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_of_ours_has_its_status_and_both_forms(kind: type[DiptychError]) -> None:
    error = kind("what was found")
    found = problems.body(error, "/v1/chat/completions")["error"]
    assert isinstance(found, dict)
    assert found["message"] == "what was found"
    assert found["code"] == problems.status_of(error) == kind.status
    assert found["type"].endswith("_error")
    theirs = problems.body(error, "/v1/messages")
    assert theirs["type"] == "error"
    assert isinstance(theirs["error"], dict)
    assert set(theirs["error"]) == {"type", "message"}


@pytest.mark.parametrize(
    ("error", "openai", "anthropic"),
    [
        (HTTPException(401, "no"), "authentication_error", "authentication_error"),
        (HTTPException(403, "no"), "permission_error", "permission_error"),
        (HTTPException(404, "no"), "not_found_error", "not_found_error"),
        (HTTPException(408, "no"), "timeout_error", "timeout_error"),
        (MediaTooLarge("no"), "invalid_request_error", "request_too_large"),
        (Overloaded("no"), "rate_limit_error", "rate_limit_error"),
        (Unavailable("no"), "unavailable_error", "overloaded_error"),
        (ValueError("no"), "server_error", "api_error"),
    ],
)
def test_types_are_those_that_the_clients_know(error: Exception, openai: str, anthropic: str) -> None:
    ours, theirs = problems.body(error)["error"], problems.body(error, "/v1/messages")["error"]
    assert isinstance(ours, dict)
    assert isinstance(theirs, dict)
    assert (ours["type"], theirs["type"]) == (openai, anthropic)


def test_who_is_turned_away_is_told_when_to_come_again() -> None:
    for seconds, told in ((0.01, "1"), (1.0, "1"), (1.2, "2"), (90, "90")):
        assert problems.response(Overloaded("full", seconds)).headers["retry-after"] == told


def test_a_prompt_that_is_too_long_is_told_by_how_much() -> None:
    found = problems.body(ContextOverflow("too long", 9000, 4096))["error"]
    assert isinstance(found, dict)
    assert (found["type"], found["n_prompt_tokens"], found["n_ctx"]) == ("exceed_context_size_error", 9000, 4096)


def test_half_a_character_in_a_message_does_not_keep_it_from_being_sent() -> None:
    assert b"?" in problems.response(HTTPException(400, "bad \ud800")).body


def test_a_field_that_does_not_fit_is_named_and_quoted_in_short() -> None:
    fault = {"loc": ("body", "messages"), "msg": "Input should be a valid list", "type": "list_type", "input": "x" * 10**6}
    found = problems._explained(RequestValidationError([fault, fault]))
    assert found.startswith("messages: Input should be a valid list, got 'xxx")
    assert found.endswith("(and 1 more)")
    assert len(found) < 200


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "the body: Field required"),
        (b"{", "the body is not JSON"),
        (b"[]", "the body: Input should be"),
        (b"null", "the body"),
        (b'"\xff"', "not UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"content": ' + b"9" * 5000 + b"}", "too many digits"),
        (b'{"content": NaN}', "content"),
    ],
)
def test_bodies_that_are_nothing_are_400_and_the_server_lives(served: Site, content: bytes, said: str) -> None:
    answer = served.http.post("/tokenize", content=content)
    assert answer.status_code == 400
    assert said in answer.json()["error"]["message"]
    assert served.get("/health").status_code == 200
