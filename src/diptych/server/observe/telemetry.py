"""A trace of each request for an OpenTelemetry collector, under the names of its conventions for generative AI.

The spans are made when a request is over, from its timings: the length of each is measured, and where it stands within
the request follows from the order of the stages. Encoding and prefill may overlap, as they do in the engine.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from diptych.errors import InputError, MissingExtra
from diptych.server.observe.notes import reason
from diptych.types import Output, Request, Timings

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")  # OpenTelemetry's own
_NS = 1_000_000  # in a millisecond
_CLOSE = 3.0  # seconds; by itself it tries for 30
Attributes = Mapping[str, str | int | float | Sequence[str]]


@dataclass(frozen=True)
class Call:
    """How a request came: when (`time.time_ns`), for which model, to do what (`chat`, `text_completion`, `embeddings`),
    and the headers, whose `traceparent` its spans go below."""

    started_ns: int
    model: str
    operation: str
    headers: Mapping[str, str]


class Telemetry:
    """Sends spans; `open_telemetry` makes one that sends them to a collector."""

    def __init__(self, provider: TracerProvider) -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer("diptych", version("diptych"))
        self._propagator = TraceContextTextMapPropagator()

    def record(self, call: Call, request: Request | None, outputs: Sequence[Output], error: Exception | None = None) -> None:
        """The spans of a request that is over: of its choices, their last outputs; or what it failed with.

        There is no `request` where it was refused before anybody understood it.
        """
        from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context

        carrier = {name.lower(): value for name, value in call.headers.items()}
        span = self._tracer.start_span(
            f"{call.operation} {call.model}",
            self._propagator.extract(carrier),
            SpanKind.SERVER,
            {**_asked(call, request), **(_answered(outputs) if outputs else {})},
            start_time=call.started_ns,
        )
        if error is not None:
            span.set_attribute("error.type", type(error).__name__)
            span.set_status(Status(StatusCode.ERROR, reason(error)))
        inside, end = set_span_in_context(span), time.time_ns()
        for name, start_ms, ms in stages(outputs[0].timings) if outputs else ():
            begun = call.started_ns + int(start_ms * _NS)
            child = self._tracer.start_span(name, inside, start_time=begun)
            child.end(begun + int(ms * _NS))
            end = max(end, begun + int(ms * _NS))
        span.end(end)

    def close(self) -> None:
        """Send what is left, and stop; a collector that does not answer is not waited for longer than a few seconds."""
        closing = threading.Thread(target=self._provider.shutdown, name="diptych-telemetry", daemon=True)
        closing.start()
        closing.join(_CLOSE)


def open_telemetry(endpoint: str | None) -> Telemetry | None:
    """Spans to a collector: to `endpoint`, or where OpenTelemetry's own variables say; None where nobody asks for it.

    Raises InputError for an endpoint that is no http URL, MissingExtra when OpenTelemetry is not installed.
    """
    if endpoint is None and not any(os.environ.get(name) for name in _VARIABLES):
        return None
    url = _url(endpoint) if endpoint is not None else None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        asked = "--otlp-traces-endpoint" if endpoint is not None else next(filter(os.environ.get, _VARIABLES))
        raise MissingExtra(f"{asked} asks for OpenTelemetry, which is not installed: pip install 'diptych[otel]'") from error
    own = Resource.create({"service.name": "diptych", "service.version": version("diptych")})
    provider = TracerProvider(resource=own.merge(OTELResourceDetector().detect()), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=url)))
    return Telemetry(provider)


def stages(timings: Timings) -> list[tuple[str, float, float]]:
    """The stages that took time: name, start within the request, and length, in milliseconds.

    Prefill ends and decoding begins with the first token.
    """
    t = timings
    before = t.queue_ms + t.preprocess_ms
    first = t.time_to_first_token_ms or before + t.encode_ms + t.prefill_ms
    all_of_them = (
        ("queue", 0.0, t.queue_ms),
        ("preprocess", t.queue_ms, t.preprocess_ms),
        ("encode", before, t.encode_ms),
        ("media prefill", max(first - t.prefill_ms, 0.0), t.media_prefill_ms),
        ("text prefill", max(first - t.text_prefill_ms, 0.0), t.text_prefill_ms),
        ("decode", first, t.decode_ms),
    )
    return [stage for stage in all_of_them if stage[2] > 0]


def _url(endpoint: str) -> str:
    """The address that traces are posted to: the one given, or OTLP's path at the host given."""
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise InputError(f"--otlp-traces-endpoint {endpoint!r} is no address such as http://localhost:4318/v1/traces")
    return endpoint if parts.path not in ("", "/") else f"{parts.scheme}://{parts.netloc}/v1/traces"


def _asked(call: Call, request: Request | None) -> Attributes:
    told: Attributes = {
        "gen_ai.operation.name": call.operation,
        "gen_ai.provider.name": "diptych",
        "gen_ai.request.model": call.model,
    }
    return told if request is None else {**told, **_parameters(request)}


def _parameters(request: Request) -> Attributes:
    sampling = request.sampling
    known = {
        "gen_ai.request.max_tokens": request.max_tokens,
        "gen_ai.request.temperature": sampling.temperature,
        "gen_ai.request.top_p": sampling.top_p,
        "gen_ai.request.top_k": sampling.top_k,
        "gen_ai.request.frequency_penalty": sampling.frequency_penalty,
        "gen_ai.request.presence_penalty": sampling.presence_penalty,
        "gen_ai.request.seed": sampling.seed,
        "gen_ai.request.stop_sequences": request.stop or None,
        "gen_ai.response.id": request.id or None,
    }
    return {name: value for name, value in known.items() if value is not None}


def _answered(outputs: Sequence[Output]) -> Attributes:
    first = outputs[0]
    return {
        "gen_ai.response.finish_reasons": [str(output.finish_reason) for output in outputs],
        "gen_ai.usage.input_tokens": first.usage.prompt_tokens,
        "gen_ai.usage.output_tokens": sum(output.usage.completion_tokens for output in outputs),
        "gen_ai.usage.cache_read.input_tokens": first.usage.cached_tokens,
        "gen_ai.response.time_to_first_chunk": first.timings.time_to_first_token_ms / 1e3,  # seconds
        "diptych.usage.media_tokens": first.usage.media_tokens,
        "diptych.media.origins": [use.origin for use in first.media],
    }
