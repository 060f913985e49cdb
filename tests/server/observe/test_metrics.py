"""What Prometheus reads: every name is described, and the numbers are those of what was asked."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families
from sending import url
from sites import Site, site
from starlette.datastructures import Headers

from diptych import reader
from diptych.server.http.exchange import Exchange
from diptych.server.observe.metrics import Metrics, described
from diptych.types import Output, Timings, Usage

DOCS = Path(__file__).parents[3] / "docs" / "operations.md"


@pytest.fixture
def fresh() -> Iterator[Site]:
    """A server that nobody has asked yet."""
    with site(reader.FOLDER) as found:
        yield found


def numbers(site: Site) -> dict[str, float]:
    """Every sample, labels and all."""
    answer = site.get("/metrics")
    assert answer.status_code == 200
    out = {}
    for family in text_string_to_metric_families(answer.text):
        for sample in family.samples:
            labels = ",".join(f"{k}={v}" for k, v in sample.labels.items())
            out[f"{sample.name.removeprefix('diptych_')}{{{labels}}}"] = sample.value
    return defaultdict(float, out)


def wait_until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end, "waited for too long"
        time.sleep(0.01)


def asked(*parts: Any, n: int = 4, **more: Any) -> dict[str, Any]:
    content = [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts]
    return {"messages": [{"role": "user", "content": content}], "max_tokens": n, "ignore_eos": True, **more}


def test_every_name_is_described_and_stands_on_the_page(fresh: Site) -> None:
    families = {f.name: f for f in text_string_to_metric_families(fresh.get("/metrics").text)}
    found = {(f"{name}_total" if f.type == "counter" else name, f.type, f.documentation) for name, f in families.items()}
    assert found == set(described())
    page = DOCS.read_text()
    for name, kind, text in described():
        assert name.startswith("diptych_")
        assert text.endswith(".")
        assert f"| `{name}` | {kind} | {text} |" in page, "run: make docs"


def test_numbers_are_those_of_what_was_asked(fresh: Site) -> None:
    first = fresh.post("/v1/chat/completions", asked(url(0), "Read", n=4)).json()
    again = fresh.post("/v1/chat/completions", asked("See", url(0), "Read", n=3)).json()
    text = fresh.post("/v1/completions", {"prompt": "abc", "max_tokens": 5, "ignore_eos": True, "n": 2}).json()
    assert fresh.post("/v1/chat/completions", {"messages": 1}).status_code == 400
    assert fresh.get("/nothing").status_code == 404
    found, answers = numbers(fresh), (first, again, text)
    assert found["responses_total{route=/v1/chat/completions,status=200}"] == 2
    assert found["responses_total{route=/v1/completions,status=200}"] == 1
    assert found["responses_total{route=/v1/chat/completions,status=400}"] == 1
    assert found["responses_total{route=other,status=404}"] == 1
    for kind in ("prompt", "completion"):
        assert found[f"tokens_total{{kind={kind}}}"] == sum(a["usage"][f"{kind}_tokens"] for a in answers)
    media = first["usage"]["prompt_tokens_details"]["image_tokens"]
    assert media > 0
    assert found["tokens_total{kind=media}"] == 2 * media
    assert found["decode_rows_total{kind=media}"] == 2 * media
    cached = sum(a["usage"]["prompt_tokens_details"]["cached_tokens"] for a in answers)
    assert found["prefix_hit_tokens_total{}"] == cached + 2  # the second choice takes the prompt of the first but its last row
    assert (found["encoder_runs_total{}"], found["encoder_pieces_total{}"]) == (1, 1)
    assert found["encoder_patches_total{}"] >= media
    assert (found["encoder_cache_hits_total{}"], found["encoder_cache_misses_total{}"]) == (1, 1)
    assert found["encoder_cache_entries{}"] == 1
    assert found["encoder_cache_bytes{}"] == media * 4 * fresh.engine.about.n_embd
    seconds = found["encoder_seconds_total{stage=encode}"]
    assert seconds == pytest.approx(first["timings"]["encode_ms"] / 1e3, abs=1e-3)
    preprocess = sum(a["timings"]["preprocess_ms"] for a in answers)
    assert found["preprocess_seconds_total{}"] == pytest.approx(preprocess / 1e3, rel=1e-3)
    assert (found["request_seconds_count{}"], found["time_to_first_token_seconds_count{}"]) == (3, 3)
    first_tokens = sum(a["timings"]["time_to_first_token_ms"] for a in answers) / 1e3
    assert found["time_to_first_token_seconds_sum{}"] == pytest.approx(first_tokens, rel=1e-3)
    assert found["inter_token_seconds_count{}"] == 3 + 2 + 4 + 4
    assert found["inter_token_seconds_bucket{le=+Inf}"] == found["inter_token_seconds_count{}"]
    assert 0 < found["inter_token_seconds_sum{}"] < found["request_seconds_sum{}"]
    assert (found["slots{}"], found["kv_rows{}"]) == (2, fresh.engine.about.n_ctx)
    assert 0 < found["kv_rows_used{}"] <= found["kv_rows{}"]
    assert found["step_seconds_total{part=decode}"] > 0 < found["step_seconds_total{part=schedule}"]
    assert found["decode_calls_total{kind=media}"] >= 1
    process = psutil.Process(os.getpid())
    assert found["process_resident_memory_bytes{}"] == pytest.approx(process.memory_info().rss, rel=0.1)
    assert found["process_start_time_seconds{}"] == pytest.approx(process.create_time(), abs=1)


def test_gauges_tell_who_runs_and_who_waits_and_a_counter_who_was_turned_away() -> None:
    with site(reader.FOLDER, n_parallel=1, max_queue=1) as narrow, ThreadPoolExecutor() as pool:
        long = {"json": asked("a", n=3000, stream=True)}
        with narrow.http.stream("POST", "/v1/chat/completions", **long) as running:
            lines = running.iter_lines()
            next(lines)
            waiting = pool.submit(narrow.post, "/v1/chat/completions", asked("b", n=2))
            wait_until(lambda: numbers(narrow)["requests{state=waiting}"] == 1)
            assert numbers(narrow)["requests{state=running}"] == 1
            refused = narrow.post("/v1/chat/completions", asked("c"))
            assert refused.status_code == 429
            assert int(refused.headers["retry-after"]) >= 1
        assert waiting.result().status_code == 200
        wait_until(lambda: numbers(narrow)["responses_total{route=/v1/chat/completions,status=499}"] == 1)
        found = numbers(narrow)
    assert (found["requests_refused_total{}"], found["requests_aborted_total{}"]) == (1, 1)
    assert found["responses_total{route=/v1/chat/completions,status=429}"] == 1
    assert [found[f"requests{{state={state}}}"] for state in ("preparing", "waiting", "running")] == [0, 0, 0]


def test_what_failed_in_the_middle_counts_as_that_and_a_prompt_counts_once_for_all_choices() -> None:
    metrics = Metrics(lambda: None)
    output = Output("", finish_reason="stop", usage=Usage(10, 4, 5, 1), timings=Timings(queue_ms=5, time_to_first_token_ms=50))
    exchange = Exchange("POST", "/v1/chat/completions", Headers(), "/v1/chat/completions")
    exchange.answers, exchange.sent, exchange.whole, exchange.seconds = [(output, output), (output,)], 200, True, 2.0
    metrics.over(exchange)
    exchange.answers, exchange.error = [], ValueError("x")
    metrics.over(exchange)
    text = metrics.text("")[0].decode()
    for line in (
        'tokens_total{kind="prompt"} 20.0', 'tokens_total{kind="media"} 8.0', 'tokens_total{kind="completion"} 15.0',
        "request_seconds_count 1.0", "queue_seconds_count 2.0", 'time_to_first_token_seconds_bucket{le="0.05"} 2.0',
        'responses_total{route="/v1/chat/completions",status="200"} 1.0',
        'responses_total{route="/v1/chat/completions",status="500"} 1.0',
    ):  # fmt: skip
        assert f"diptych_{line}\n" in text
    assert "_created" not in text


def test_metrics_can_be_switched_off_and_say_when_the_server_began(fresh: Site) -> None:
    answer = fresh.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert abs(int(answer.headers["process-start-time-unix"]) - time.time()) < 120
    openmetrics = fresh.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert openmetrics.text.endswith("# EOF\n")
    with site(reader.FOLDER, metrics=False) as without:
        assert without.get("/metrics").status_code == 501
