"""A trace of requests side by side: what each did stands in its slot's lane, spans do not cross, arrows lead through."""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from asking import collect, png, request
from prompts import picture, sequence, text

import tiny
from diptych.engine import Engine
from diptych.engine.lanes import Lanes
from diptych.engine.scheduler import schedule
from diptych.trace import OFF, TraceFile

N = 4
Event = dict[str, Any]


@pytest.fixture(scope="module")
def events(deployment: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Event]:
    """The trace of four requests with a picture each, in two slots."""
    path = tmp_path_factory.mktemp("trace") / "trace.json"
    options = tiny.EXACT.model_copy(update={"trace": path, "n_parallel": 2})
    wanted = [replace(request("what", png(i, 224, 168), "is this", n=6), id=f"r{i}") for i in range(N)]

    async def together(engine: Engine) -> None:
        await asyncio.gather(*(collect(engine, one) for one in wanted))

    with Engine.load(deployment, options=options) as engine:
        asyncio.run(together(engine))
    found: list[Event] = json.loads(path.read_text())
    names = {e["tid"]: e["args"]["name"] for e in found if e["name"] == "thread_name"}
    return [{**e, "lane": names.get(e.get("tid"), "")} for e in found]


def spans(events: list[Event], lane: str) -> list[Event]:
    return sorted((e for e in events if e["ph"] == "X" and e["lane"].startswith(lane)), key=lambda e: (e["ts"], -e["dur"]))


def test_every_stage_of_every_request_stands_in_its_lane(events: list[Event]) -> None:
    assert {e["args"]["request"] for e in spans(events, "worker") if e["name"] == "preprocess"} == {f"r{i}" for i in range(N)}
    runs = [e for e in spans(events, "encoder") if e["name"] == "encode"]
    assert {name for run in runs for name in run["args"]["requests"]} == {f"r{i}" for i in range(N)}
    did: dict[str, set[str]] = defaultdict(set)
    for event in spans(events, "slot"):
        did[event["args"]["request"]].add(event["name"])
    assert {name: found - {"waiting"} for name, found in did.items()} == {
        f"r{i}": {"prefill", "media prefill", "decode", "sample"} for i in range(N)
    }
    assert any("waiting" in found for found in did.values())
    assert {e["lane"] for e in spans(events, "slot")} == {"slot 0", "slot 1"}


def test_spans_of_a_lane_do_not_cross(events: list[Event]) -> None:
    for lane in {e["lane"] for e in events if e["ph"] == "X"}:
        ends: list[float] = []
        for span in spans(events, lane):
            while ends and ends[-1] <= span["ts"] + 0.002:  # µs
                ends.pop()
            assert not ends or span["ts"] + span["dur"] <= ends[-1] + 0.002, lane
            ends.append(span["ts"] + span["dur"])


def test_arrows_lead_from_the_preparation_over_the_encoder_to_the_last_token(events: list[Event]) -> None:
    by_request: dict[int, list[Event]] = defaultdict(list)
    for event in events:
        if event["ph"] in "stf":
            by_request[event["id"]].append(event)
    assert len(by_request) == N
    for points in by_request.values():
        points.sort(key=lambda e: e["ts"])
        lanes = [(e["ph"], e["lane"].rstrip("0123456789 _")) for e in points]
        assert lanes[0] == ("s", "worker")
        assert ("t", "encoder") in lanes
        assert ("t", "slot") in lanes
        assert lanes[-1] == ("f", "slot")
        assert [phase for phase, _ in lanes].count("f") == 1
        for point in points:  # an arrow sticks to the span around it
            around = [e for e in spans(events, point["lane"]) if e["ts"] <= point["ts"] < e["ts"] + e["dur"]]
            assert around, point
        last = spans(events, points[-1]["lane"])
        own = [e for e in last if e["args"]["request"] == _request(points, events)]
        assert points[-1]["ts"] == own[-1]["ts"]


def _request(points: list[Event], events: list[Event]) -> str:
    """The request whose preparation the arrow starts at."""
    start = points[0]
    (found,) = (e for e in spans(events, start["lane"]) if e["ts"] == start["ts"] and e["name"] == "preprocess")
    return str(found["args"]["request"])


def test_who_was_put_back_in_line_waits_anew_in_the_slot_it_gets_next(tmp_path: Path) -> None:
    trace = TraceFile(tmp_path / "trace.json")
    lanes, one = Lanes(trace), sequence([text(3), picture("a", 2, 2), text(2)])
    for slot in (0, 1):
        one.slot = slot
        lanes.took(one)
        step = schedule([one], 8)
        assert step is not None
        lanes.decoded(step, 10.0 + slot, 10.5 + slot)
        lanes.left(one)
    trace.close()
    found = json.loads((tmp_path / "trace.json").read_text())
    assert [e["name"] for e in found if e["ph"] == "X" and e["args"].get("request") == ""].count("prefill") == 2
    assert not [e for e in found if e["ph"] in "stf"]  # it has no id, so there is nothing to lead through


def test_without_a_trace_nothing_is_kept() -> None:
    lanes, one = Lanes(OFF), sequence([text(3)])
    one.slot = 0
    lanes.took(one)
    step = schedule([one], 8)
    assert step is not None
    lanes.decoded(step, 1.0, 2.0)
    lanes.sampled(one, 2.0, 3.0)
    lanes.left(one)
    assert not lanes._stays
