"""What Prometheus reads at /metrics; all names begin with `diptych_`, and docs/operations.md lists them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

import psutil
from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from diptych.engine.stats import GAPS, Stats
from diptych.server.http.exchange import Exchange
from diptych.types import Output

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)  # from a cached prompt to a large page
_GAPS = ("diptych_inter_token_seconds", "Between two tokens of an answer.")
_LONG = (*_SECONDS, 120.0, 300.0, 600.0)
# a second series beside each would say when it began: when the server did
disable_created_metrics()  # type: ignore[no-untyped-call]
Values = Callable[[Stats], float | Mapping[str, float]]


@dataclass(frozen=True)
class Reading:
    """A number that the engine keeps; with `label`, one for each of its values. A gauge goes up and down, a counter up."""

    name: str
    kind: Literal["gauge", "counter"]
    help: str
    values: Values
    label: str = ""

    def metric(self, stats: Stats) -> Metric:
        """As it stands now."""
        family = GaugeMetricFamily if self.kind == "gauge" else CounterMetricFamily
        out = family(f"diptych_{self.name}", self.help, labels=[self.label] if self.label else [])
        values = self.values(stats)
        for label, value in values.items() if isinstance(values, Mapping) else [("", values)]:
            out.add_metric([label] if self.label else [], value)
        return out


READINGS = (
    Reading(
        "requests", "gauge", "Requests inside: being prepared, waiting for a slot, and running in one.",
        lambda s: {"preparing": s.preparing, "waiting": s.waiting, "running": s.running}, "state",
    ),
    Reading("requests_refused", "counter", "Requests turned away because too many were inside.", lambda s: s.refused),
    Reading("requests_aborted", "counter", "Sequences ended because nobody waited for them.", lambda s: s.aborted),
    Reading("slots", "gauge", "Sequences that can be decoded side by side.", lambda s: s.n_slots),
    Reading(
        "kv_rows_used", "gauge",
        "Rows of the KV cache that sequences have, or have left for the next one; shared ones count for each.",
        lambda s: s.kv_rows,
    ),
    Reading("kv_rows", "gauge", "Rows that the KV cache has.", lambda s: s.n_ctx),
    Reading("prefix_hit_tokens", "counter", "Prompt tokens and media rows taken from the KV cache.", lambda s: s.n_reused),
    Reading("preemptions", "counter", "Sequences put back in line because the KV cache was full.", lambda s: s.preemptions),
    Reading(
        "decode_calls", "counter", "Decode calls of the text half, by what was in the batch: tokens or media rows.",
        lambda s: {"tokens": s.token_calls, "media": s.media_calls}, "kind",
    ),
    Reading(
        "decode_rows", "counter", "Rows in these calls, of prompts and of answers.",
        lambda s: {"tokens": s.token_rows, "media": s.media_rows}, "kind",
    ),
    Reading(
        "step_seconds", "counter", "Time of the engine's thread by what it did: schedule (all that is neither), decode, sample.",
        lambda s: {"schedule": s.schedule_seconds, "decode": s.decode_seconds, "sample": s.sample_seconds}, "part",
    ),
    Reading(
        "encoder_seconds", "counter", "Time of the encoder's thread by what it did: encode, join (rows into chunks).",
        lambda s: {"encode": s.encoder.encode_seconds, "join": s.encoder.join_seconds}, "stage",
    ),
    Reading("encoder_runs", "counter", "Runs of the media half's graph.", lambda s: s.encoder.runs),
    Reading("encoder_pieces", "counter", "Pictures, tiles and windows of sound in these runs.", lambda s: s.encoder.pieces),
    Reading("encoder_patches", "counter", "Patches in these runs.", lambda s: s.encoder.patches),
    Reading("encoder_waiting", "gauge", "Chunks of media that are being encoded or wait for it.", lambda s: s.encoder.waiting),
    Reading("encoder_cache_hits", "counter", "Chunks of media whose rows were still there.", lambda s: s.encoder.cache_hits),
    Reading(
        "encoder_cache_disk_hits", "counter", "Chunks of media whose rows were on disk.", lambda s: s.encoder.cache_disk_hits
    ),
    Reading("encoder_cache_misses", "counter", "Chunks of media that had to be encoded.", lambda s: s.encoder.cache_misses),
    Reading(
        "encoder_cache_evictions", "counter", "Chunks whose rows made room for others.", lambda s: s.encoder.cache_evictions
    ),
    Reading("encoder_cache_entries", "gauge", "Chunks whose rows are kept.", lambda s: s.encoder.cache_entries),
    Reading("encoder_cache_bytes", "gauge", "Memory of the rows that are kept.", lambda s: s.encoder.cache_bytes),
    Reading(
        "encoder_cache_disk_bytes", "gauge", "Disk that rows take, those of all processes.", lambda s: s.encoder.cache_disk_bytes
    ),
)  # fmt: skip


class Metrics:
    """The numbers of one server; `stats` gives those of its engine, or None as long as there is none."""

    def __init__(self, stats: Callable[[], Stats | None]) -> None:
        registry = self._registry = CollectorRegistry()
        registry.register(_Readings(stats))

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"diptych_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...] = _SECONDS) -> Histogram:
            return Histogram(f"diptych_{name}", text, buckets=buckets, registry=registry)

        self._responses = counter("responses", "Requests over HTTP that have ended, by route and status.", "route", "status")
        self._tokens = counter("tokens", "Tokens of answered requests: of prompts, of media in them, of answers.", "kind")
        self._preprocess = counter("preprocess_seconds", "Fetching, decoding and resizing media, rendering and tokenising.")
        self._queue = histogram("queue_seconds", "Time an answered request waited for a worker and for a slot.")
        self._first = histogram("time_to_first_token_seconds", "From the coming of a request to its first token.")
        self._whole = histogram("request_seconds", "From the coming of an answered request to the end of its answer.", _LONG)
        for kind in ("prompt", "media", "completion"):
            self._tokens.labels(kind)

    def over(self, exchange: Exchange) -> None:
        """A request came to its end."""
        self._responses.labels(exchange.route, exchange.status).inc()
        for choices in exchange.answers:
            self._answered(choices)
        if exchange.answers:
            self._whole.observe(exchange.seconds)

    def _answered(self, choices: Sequence[Output]) -> None:
        """The answers to one prompt, which counts once."""
        usage, timings = choices[0].usage, choices[0].timings
        self._tokens.labels("prompt").inc(usage.prompt_tokens)
        self._tokens.labels("media").inc(usage.media_tokens)
        self._tokens.labels("completion").inc(sum(choice.usage.completion_tokens for choice in choices))
        self._preprocess.inc(timings.preprocess_ms / 1e3)
        if usage.completion_tokens:
            self._queue.observe(timings.queue_ms / 1e3)
            self._first.observe(timings.time_to_first_token_ms / 1e3)

    def collect(self) -> Iterator[Metric]:
        """Each as it stands now."""
        yield from self._registry.collect()

    def text(self, accept: str) -> tuple[bytes, str]:
        """All of it in the form that a reader accepts, and the media type of that."""
        encoder, media_type = choose_encoder(accept)
        return encoder(self._registry), media_type


class _Readings(Collector):
    """What the engine and the process say when they are asked."""

    def __init__(self, stats: Callable[[], Stats | None]) -> None:
        self._stats, self._process = stats, psutil.Process()

    def collect(self) -> Iterator[Metric]:
        if (stats := self._stats()) is not None:
            yield from (reading.metric(stats) for reading in READINGS)
            yield _gaps(stats)
        yield GaugeMetricFamily(
            "diptych_process_resident_memory_bytes", "Memory of the process.", self._process.memory_info().rss
        )
        yield GaugeMetricFamily("diptych_process_start_time_seconds", "When it was started.", self._process.create_time())


def _gaps(stats: Stats) -> Metric:
    below = list(accumulate(stats.gaps))
    buckets = [*zip(map(floatToGoString, GAPS), below, strict=False), ("+Inf", below[-1])]
    return HistogramMetricFamily(*_GAPS, buckets=buckets, sum_value=stats.gap_seconds)


def described() -> list[tuple[str, str, str]]:
    """Name, kind and help of each, as a reader sees them."""
    ours = [(f"diptych_{reading.name}", reading.kind, reading.help) for reading in READINGS]
    others = [(metric.name, metric.type, metric.documentation) for metric in Metrics(lambda: None).collect()]
    every = [*ours, (_GAPS[0], "histogram", _GAPS[1]), *others]
    return [(f"{name}_total" if kind == "counter" else name, kind, text) for name, kind, text in every]
