"""The trace: a file that viewers take at every time, lanes with names, and next to nothing where it is off."""

from __future__ import annotations

import io
import json
import logging
import resource
import subprocess
import sys
import threading
import time
import timeit
import tracemalloc
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from diptych.engine import Engine
from diptych.errors import InputError, OutputError
from diptych.options import Options
from diptych.trace import OFF, Trace, open_trace


def events(path: Path, phase: str = "X") -> list[dict[str, Any]]:
    return [event for event in json.loads(path.read_text()) if event["ph"] == phase]


def lanes(path: Path) -> dict[int, str]:
    """Lane by number."""
    return {e["tid"]: e["args"]["name"] for e in events(path, "M") if e["name"] == "thread_name"}


def test_spans_lie_in_lanes_with_names_and_nest(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    trace = open_trace(path)
    with trace.span("outer", "slot 0", request="a"), trace.span("inner", "slot 0"):
        time.sleep(0.002)
    now = time.perf_counter()
    trace.complete("decode", "slot 1", now - 0.5, now, n_tokens=3)
    trace.instant("cache hit", "encoder")
    trace.counter("waiting", 2)
    trace.close()
    spans = {e["name"]: e for e in events(path)}
    named = lanes(path)
    assert {name: named[e["tid"]] for name, e in spans.items()} == {"outer": "slot 0", "inner": "slot 0", "decode": "slot 1"}
    assert spans["outer"]["args"] == {"request": "a"}
    assert spans["outer"]["ts"] <= spans["inner"]["ts"]
    assert spans["inner"]["ts"] + spans["inner"]["dur"] <= spans["outer"]["ts"] + spans["outer"]["dur"]
    assert spans["inner"]["dur"] >= 2000  # µs
    assert spans["decode"]["dur"] == pytest.approx(500_000, abs=0.01)
    assert [named[e["tid"]] for e in events(path, "i")] == ["encoder"]
    assert [(e["name"], e["args"]) for e in events(path, "C")] == [("waiting", {"value": 2})]


def test_spans_that_follow_each_other_touch_and_do_not_overlap(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    trace = open_trace(path)
    begin = time.perf_counter()
    for i in range(2000):
        trace.complete("step", "engine", begin + i * 1.23456789e-5, begin + (i + 1) * 1.23456789e-5)
    trace.close()
    spans = events(path)
    for one, two in pairwise(spans):
        assert one["ts"] + one["dur"] == pytest.approx(two["ts"], abs=1e-6)


def test_arrows_lead_through_the_spans_of_a_request(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    trace = open_trace(path)
    now = time.perf_counter()
    trace.flow("a\ud800", "start", "worker", now)
    trace.flow("b", "start", "worker", now)
    trace.flow("a\ud800", "step", "encoder", now + 1)
    trace.flow("a\ud800", "end", "slot 0", now + 2)
    trace.close()
    found = [e for phase in "stf" for e in events(path, phase)]
    ids = {e["id"] for e in found}
    assert len(ids) == 2
    assert all(isinstance(one, int) for one in ids)
    first = [(e["ph"], lanes(path)[e["tid"]]) for e in found if e["id"] == found[0]["id"]]
    assert first == [("s", "worker"), ("t", "encoder"), ("f", "slot 0")]


def test_threads_write_at_once_each_to_its_own_lane(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    trace = open_trace(path)

    def work() -> None:
        for i in range(300):
            with trace.span("work", i=i):
                pass

    threads = [threading.Thread(target=work, name=f"diptych-thread_{i}") for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    trace.close()
    by_lane = {name: [e["args"]["i"] for e in events(path) if e["tid"] == n] for n, name in lanes(path).items()}
    assert by_lane == {f"thread_{i}": list(range(300)) for i in range(4)}


def test_a_process_that_dies_leaves_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    program = f"""
import os, time
from pathlib import Path
from diptych.trace import open_trace
trace = open_trace(Path({str(path)!r}))
for i in range(3000):
    with trace.span("step", "engine", text="x" * 50):
        pass
time.sleep(1.1)
trace.instant("last")
trace.instant("lost")
os.kill(os.getpid(), 9)
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == -9
    text = path.read_text()
    assert not text.rstrip().endswith("]")
    names = [event["name"] for event in json.loads(text + "]")]
    assert names.count("step") == 3000
    assert names[-1] == "last"


def test_memory_holds_the_last_events_only(tmp_path: Path) -> None:
    trace = open_trace(tmp_path / "trace.json")

    def write(n: int) -> None:
        for _ in range(n):
            trace.complete("step", "slot 0", 0.0, 1.0, request="r" * 40)

    write(1000)
    tracemalloc.start()
    write(20_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    trace.close()
    assert (tmp_path / "trace.json").stat().st_size > 2_000_000
    assert peak < 500_000


def test_what_comes_after_the_end_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    trace = open_trace(path)
    trace.close()
    before = path.read_bytes()
    trace.instant("late")
    trace.close()
    assert path.read_bytes() == before
    assert not trace.on
    json.loads(before)


def test_a_file_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"nowhere.*No such file"):
        open_trace(tmp_path / "nowhere" / "trace.json")
    with pytest.raises(OutputError, match="directory"):
        open_trace(tmp_path)
    with pytest.raises(OutputError, match="No space"):
        open_trace(Path("/dev/full"))


def test_only_a_trace_is_written_over(tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    model.write_bytes(b"GGUF and more")
    with pytest.raises(OutputError, match=r"model\.gguf is there and is no trace"):
        open_trace(model)
    assert model.read_bytes() == b"GGUF and more"
    for _ in range(2):
        open_trace(tmp_path / "trace.json").close()
    (tmp_path / "empty").touch()
    open_trace(tmp_path / "empty").close()


def test_a_disk_that_fills_ends_the_trace_and_nothing_else(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "trace.json"
    trace = open_trace(path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    try:
        with caplog.at_level(logging.WARNING):
            for i in range(10_000):
                trace.complete("step", "engine", i, i + 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    trace.close()
    assert caplog.text.count("cannot be written any more") == 1
    assert not trace.on
    assert 1000 < len(events(path)) < 10_000


def test_a_trace_that_is_off_writes_nothing_and_costs_next_to_nothing(tmp_path: Path) -> None:
    trace: Trace = open_trace(None)
    assert trace is OFF
    assert not trace.on
    with trace.span("step", "engine", n=1):
        trace.complete("x", "engine", 0.0, 1.0)
        trace.instant("x")
        trace.counter("x", 1)
        trace.flow("r", "start", "engine", 0.0)
    trace.close()
    assert list(tmp_path.iterdir()) == []
    n = 20_000
    seconds = min(timeit.repeat(lambda: trace.complete("step", "engine", 0.0, 1.0, n=1), number=n, repeat=5)) / n
    assert seconds < 2e-6


def test_operators_without_a_trace_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--trace FILE"):
        Options(trace_ops=True)
    assert Options(trace=tmp_path / "t.json", trace_ops=True).trace_ops
    trace = open_trace(tmp_path / "t.json", ops=True)
    assert trace.ops
    trace.close()


def test_an_engine_tells_what_a_request_did_in_lanes_that_do_not_cross(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    with Engine.load("reader", options=Options(threads=1, n_ctx=512, trace=path, trace_ops=True)) as engine:
        engine.ask("Read the text.", [picture()], max_tokens=4, ignore_eos=True)
    named = lanes(path)
    by_lane: dict[str, list[dict[str, Any]]] = {}
    for event in sorted(events(path), key=lambda e: (e["ts"], -e["dur"])):
        by_lane.setdefault(named[event["tid"]], []).append(event)
    names = {lane: {e["name"] for e in spans} for lane, spans in by_lane.items()}
    assert names["worker_0"] == {"preprocess", "picture"}
    assert names["encoder"] == {"encode", "join"}
    assert {"prefill", "media prefill", "decode", "sample"} <= names["slot 0"]
    assert {"decode tokens", "decode media"} <= names["engine"]
    for spans in by_lane.values():
        open_until: list[float] = []
        for span in spans:
            while open_until and open_until[-1] <= span["ts"] + 0.002:  # µs
                open_until.pop()
            end = span["ts"] + span["dur"]
            assert not open_until or end <= open_until[-1] + 0.002
            open_until.append(end)
    (run,) = (e for e in by_lane["encoder"] if e["name"] == "encode")
    inside = [e for e in by_lane["encoder operators"] if run["ts"] <= e["ts"] <= run["ts"] + run["dur"]]
    assert sum(e["dur"] for e in inside) > 0.5 * run["dur"]


def picture() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (280, 140), "white").save(file, "PNG")
    return file.getvalue()
