"""A request from its coming to its end: counted, logged and traced once, whatever becomes of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from raw import called, echo, scope_of
from sending import url
from sites import Site, site
from starlette.types import Receive, Scope, Send

from diptych import reader
from diptych.errors import InputError
from diptych.server.http import exchange, problems
from diptych.server.http.exchange import Exchange, Recorder
from diptych.server.observe.telemetry import Telemetry

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def recorded(app: Any, scope: Scope | None = None, pieces: tuple[bytes, ...] = (b"",)) -> tuple[Any, Exchange]:
    over: list[Exchange] = []
    answer = called(Recorder(app, over.append), scope or scope_of("POST", "/tokenize"), pieces)
    (found,) = over
    return answer, found


def test_an_answer_is_over_with_its_status_and_time() -> None:
    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(0.02)
        await echo(scope, receive, send)

    answer, found = recorded(slow)
    assert (answer.status, found.status, found.failure) == (200, 200, None)
    assert 0.02 <= found.seconds < 1
    assert answer.headers["x-request-id"] == found.id
    assert found.route == "other"


def test_a_fault_that_nobody_caught_is_an_answer_and_a_line_without_what_it_says(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    word = "".join(["ses", "ame"])  # which does not stand in the line of code that fails

    async def faulty(_scope: Scope, _receive: Receive, _send: Send) -> None:
        raise KeyError(word)

    answer, found = recorded(faulty)
    assert (answer.status, answer.error["type"], found.status) == (500, "server_error", 500)
    assert "KeyError" in caplog.text
    assert "in faulty" in caplog.text
    assert word not in caplog.text
    monkeypatch.setenv("DIPTYCH_DEBUG", "1")
    recorded(faulty)
    assert word in caplog.text


def test_a_fault_behind_the_head_of_an_answer_breaks_it_off() -> None:
    over: list[Exchange] = []

    async def faulty(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise KeyError("x")

    with pytest.raises(KeyError):
        called(Recorder(faulty, over.append), scope_of())
    assert over[0].status == 500


def test_an_answer_that_was_not_sent_to_its_end_is_499_and_one_that_was_cancelled_503() -> None:
    async def cut(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"a", "more_body": True})

    assert recorded(cut)[1].status == 499
    over: list[Exchange] = []

    async def for_ever(_scope: Scope, _receive: Receive, _send: Send) -> None:
        await asyncio.sleep(60)

    async def cancelled() -> None:
        async def nothing(*_: object) -> Any:
            return None

        task = asyncio.ensure_future(Recorder(for_ever, over.append)(scope_of(), nothing, nothing))
        await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(cancelled())
    assert over[0].status == 503


def test_what_it_was_refused_for_is_known() -> None:
    async def refusing(scope: Scope, receive: Receive, send: Send) -> None:
        await problems.refuse(InputError("no"), scope, receive, send)

    answer, found = recorded(refusing)
    assert (answer.status, found.status) == (400, 400)
    assert isinstance(found.failure, InputError)


def test_requests_of_the_engine_are_named_after_it() -> None:
    names = []

    async def naming(scope: Scope, receive: Receive, send: Send) -> None:
        names.append(exchange.name("cmpl-"))
        await echo(scope, receive, send)

    _, found = recorded(naming, scope_of(headers=[(b"x-request-id", b"mine")]))
    assert (names, found.id) == (["cmpl-mine"], "mine")
    assert len(exchange.name("")) == 32  # outside of any


# from here on a real server, whose spans are kept


@pytest.fixture(scope="module")
def traced() -> Iterator[tuple[Site, InMemorySpanExporter]]:
    memory, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(memory))
    with site(reader.FOLDER) as found:
        found.serving.telemetry = Telemetry(provider)
        yield found, memory


Ask = Callable[..., list[ReadableSpan]]


@pytest.fixture
def ask(traced: tuple[Site, InMemorySpanExporter]) -> Ask:
    """What posting a body to a path gives: the spans of the request, the outermost first."""

    def asked(path: str, body: object, **headers: str) -> list[ReadableSpan]:
        site, memory = traced
        memory.clear()
        site.post(path, body, headers=headers)
        end = time.monotonic() + 10
        while not any(span.kind == SpanKind.SERVER for span in memory.get_finished_spans()):
            assert time.monotonic() < end
            time.sleep(0.005)
        return sorted(memory.get_finished_spans(), key=lambda span: span.kind != SpanKind.SERVER)

    return asked


CHAT = {"messages": [{"role": "user", "content": [url(0), {"type": "text", "text": "Read"}]}], "max_tokens": 3}


def test_an_answered_request_is_a_span_below_the_clients_with_its_stages(ask: Ask) -> None:
    root, *stages = ask("/v1/chat/completions", {**CHAT, "temperature": 0.5}, traceparent=f"00-{TRACE}-{SPAN}-01")
    assert root.name == "chat reader"
    assert root.parent is not None
    assert (format(root.parent.trace_id, "032x"), format(root.parent.span_id, "016x")) == (TRACE, SPAN)
    assert {"preprocess", "encode", "media prefill", "text prefill", "decode"} <= {span.name for span in stages}
    found = dict(root.attributes or {})
    assert found["gen_ai.request.temperature"] == 0.5
    assert found["gen_ai.usage.output_tokens"] == 3
    assert str(found["gen_ai.response.id"]).startswith("chatcmpl-")
    assert root.start_time is not None
    assert abs(time.time_ns() - root.start_time) < 60e9
    streamed, *_ = ask("/v1/chat/completions", {**CHAT, "stream": True})
    assert (streamed.attributes or {})["gen_ai.usage.output_tokens"] == 3


@pytest.mark.parametrize(
    ("path", "body", "name", "error"),
    [
        ("/v1/chat/completions", {"messages": 1}, "chat reader", "RequestValidationError"),
        ("/v1/chat/completions", {"messages": []}, "chat reader", "RequestValidationError"),
        ("/v1/chat/completions", {**CHAT, "grammar": "root ::= ("}, "chat reader", "GrammarError"),
        ("/v1/completions", {"prompt": "a" * 20000}, "text_completion reader", "ContextOverflow"),
        ("/v1/embeddings", {"input": "a"}, "embeddings reader", "NotSupported"),
        ("/tokenize", {"content": 5.5}, "tokenize reader", "InputError"),
    ],
)
def test_a_failed_request_of_any_route_is_a_span_that_says_so(ask: Ask, path: str, body: Any, name: str, error: str) -> None:
    root, *stages = ask(path, body)
    assert root.name == name
    assert not stages
    assert (root.attributes or {})["error.type"] == error
    assert root.status.status_code == StatusCode.ERROR


def test_other_routes_are_spans_too(ask: Ask) -> None:
    root, *_ = ask("/tokenize", {"content": "abc"})
    assert (root.name, root.status.status_code) == ("tokenize reader", StatusCode.UNSET)
    root, *_ = ask("/v1/completions", {"prompt": ["a", "b"], "max_tokens": 2})
    assert root.name == "text_completion reader"
