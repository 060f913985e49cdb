"""Traces of requests: one span each, below the client's, with a child for each stage that took time."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes
from opentelemetry.trace import SpanKind, StatusCode

from diptych.errors import InputError, MissingExtra, TimedOut
from diptych.server.observe.telemetry import Call, Telemetry, open_telemetry, stages
from diptych.types import MediaUse, Message, Output, Request, Sampling, Timings, Usage

NS = 1_000_000  # in a millisecond
TIMINGS = Timings(
    queue_ms=10, preprocess_ms=20, encode_ms=40, prefill_ms=30, media_prefill_ms=25, decode_ms=100,
    time_to_first_token_ms=105, tokens_per_second=50,
)  # fmt: skip
OUTPUT = Output(
    "", finish_reason="stop", usage=Usage(60, 50, 5, 7), timings=TIMINGS,
    media=(MediaUse("image", (280, 140), (280, 140), 50, "cache"),),
)  # fmt: skip
REQUEST = Request((Message("user", ("Hi",)),), Sampling(temperature=0.5, seed=3), 9, ("\n",), id="chatcmpl-1")
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def memory() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def telemetry(memory: InMemorySpanExporter) -> Iterator[Telemetry]:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(memory))
    made = Telemetry(provider)
    yield made
    made.close()


def call(**headers: str) -> Call:
    return Call(time.time_ns() - 300 * NS, "reader", "chat", headers)


def root(memory: InMemorySpanExporter) -> ReadableSpan:
    (span,) = (span for span in memory.get_finished_spans() if span.kind == SpanKind.SERVER)
    return span


def test_a_request_is_a_span_with_a_child_for_each_stage(telemetry: Telemetry, memory: InMemorySpanExporter) -> None:
    asked = call()
    telemetry.record(asked, REQUEST, [OUTPUT])
    span, children = root(memory), [span for span in memory.get_finished_spans() if span.kind != SpanKind.SERVER]
    assert span.name == "chat reader"
    assert span.start_time == asked.started_ns
    assert span.end_time is not None
    assert time.time_ns() - span.end_time < 5000 * NS
    assert all(child.parent and child.parent.span_id == span.context.span_id for child in children)
    found = [
        (child.name, (child.start_time - asked.started_ns) // NS, (child.end_time - child.start_time) // NS)
        for child in children
        if child.start_time and child.end_time
    ]
    assert found == [
        ("queue", 0, 10),
        ("preprocess", 10, 20),
        ("encode", 30, 40),
        ("media prefill", 75, 25),
        ("text prefill", 100, 5),
        ("decode", 105, 100),
    ]


def test_attributes_have_the_names_of_the_conventions(telemetry: Telemetry, memory: InMemorySpanExporter) -> None:
    telemetry.record(call(), REQUEST, [OUTPUT, replace(OUTPUT, finish_reason="length", usage=Usage(60, 50, 8, 7))])
    found = dict(root(memory).attributes or {})
    assert found == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "diptych",
        "gen_ai.request.model": "reader",
        "gen_ai.request.max_tokens": 9,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_p": 0.95,
        "gen_ai.request.top_k": 40,
        "gen_ai.request.frequency_penalty": 0.0,
        "gen_ai.request.presence_penalty": 0.0,
        "gen_ai.request.seed": 3,
        "gen_ai.request.stop_sequences": ("\n",),
        "gen_ai.response.id": "chatcmpl-1",
        "gen_ai.response.finish_reasons": ("stop", "length"),
        "gen_ai.usage.input_tokens": 60,
        "gen_ai.usage.output_tokens": 13,
        "gen_ai.usage.cache_read.input_tokens": 7,
        "gen_ai.response.time_to_first_chunk": 0.105,
        "diptych.usage.media_tokens": 50,
        "diptych.media.origins": ("cache",),
    }
    known = {value for name, value in vars(gen_ai_attributes).items() if name.startswith("GEN_AI_")}
    assert {name for name in found if name.startswith("gen_ai.")} <= known


def test_the_span_goes_below_that_of_the_client(telemetry: Telemetry, memory: InMemorySpanExporter) -> None:
    telemetry.record(call(Traceparent=PARENT), REQUEST, [OUTPUT])
    parent = root(memory).parent
    assert parent is not None
    assert f"{parent.trace_id:032x}-{parent.span_id:016x}" in PARENT
    assert {span.context.trace_id for span in memory.get_finished_spans()} == {parent.trace_id}


@pytest.mark.parametrize("header", ["", "nonsense", PARENT[:-1], "00-" + "0" * 32 + "-" + "0" * 16 + "-01", "x" * 100_000])
def test_a_traceparent_that_is_none_begins_a_trace(telemetry: Telemetry, memory: InMemorySpanExporter, header: str) -> None:
    telemetry.record(call(traceparent=header), REQUEST, [OUTPUT])
    assert root(memory).parent is None


def test_a_client_that_does_not_sample_gets_no_spans(telemetry: Telemetry, memory: InMemorySpanExporter) -> None:
    telemetry.record(call(traceparent=PARENT[:-2] + "00"), REQUEST, [OUTPUT])
    assert memory.get_finished_spans() == ()


def test_a_request_that_failed_says_so(telemetry: Telemetry, memory: InMemorySpanExporter) -> None:
    telemetry.record(call(), REQUEST, [], TimedOut("the time is over"))
    span = root(memory)
    assert (span.attributes or {})["error.type"] == "TimedOut"
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, "the time is over")
    assert len(memory.get_finished_spans()) == 1


def test_stages_that_took_no_time_are_left_out_and_none_begins_before_the_request() -> None:
    assert stages(Timings()) == []
    assert stages(Timings(queue_ms=1, prefill_ms=4, decode_ms=8)) == [
        ("queue", 0, 1),
        ("text prefill", 1, 4),
        ("decode", 5, 8),
    ]
    early = stages(Timings(prefill_ms=9, media_prefill_ms=5, time_to_first_token_ms=3))
    assert [start for _, start, _ in early] == [0, 0]


def test_nothing_is_sent_unless_asked_for() -> None:
    assert open_telemetry(None) is None


@pytest.mark.parametrize("endpoint", ["", "localhost:4318", "ftp://host/v1/traces", "http://"])
def test_an_endpoint_that_is_none_is_refused(endpoint: str) -> None:
    with pytest.raises(InputError, match="--otlp-traces-endpoint"):
        open_telemetry(endpoint)


@pytest.mark.parametrize("variable", [None, "OTEL_EXPORTER_OTLP_ENDPOINT"])
def test_without_the_extra_the_way_to_install_it_is_told(monkeypatch: pytest.MonkeyPatch, variable: str | None) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    if variable:
        monkeypatch.setenv(variable, "http://localhost:4318")
    with pytest.raises(MissingExtra, match=rf"^{variable or '--otlp'}.*pip install 'diptych\[otel\]'"):
        open_telemetry(None if variable else "http://localhost:4318")


@pytest.mark.parametrize("path", ["", "/", "/own/path"])
def test_spans_reach_a_collector(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="the extra otel is not installed")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=tests")
    got: list[tuple[str, bytes]] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Collector) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        made = open_telemetry(f"http://127.0.0.1:{server.server_port}{path}")
        assert made is not None
        made.record(call(), REQUEST, [OUTPUT])
        made.close()
        server.shutdown()
        thread.join()
    ((where, body),) = got
    assert where == ("/own/path" if path == "/own/path" else "/v1/traces")
    for text in (b"chat reader", b"text prefill", b"service.name", b"diptych", b"deployment.environment"):
        assert text in body
