"""Requests with pictures side by side: while one is encoded others are prefilled and answered, as the trace shows."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import wait
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from asking import Load, collect, joined, png, request, together, tokens, wait_until

from diptych.encoder import kernels
from diptych.encoder.encoder import Encoder, Encoding
from diptych.engine import Engine
from diptych.families.base import Rows
from diptych.types import MediaChunk, Piece, Request

WANTED = [replace(request(f"what {i} ", png(i, 420, 420 + 28 * i), "is this", n=200), id=f"r{i}") for i in range(4)]
SLOW = 0.05  # seconds that a run of the encoder takes longer, as one of a model that is not tiny
ALL = {("encode", "prefill"), ("encode", "decode"), ("prefill", "decode")}
Ask = Callable[[Engine], object]


class Stage(NamedTuple):
    """What was done for a request, and when, in microseconds."""

    name: str
    request: str
    start: float
    end: float


def side_by_side(engine: Engine) -> object:
    return together(engine, WANTED)


def one_by_one(engine: Engine) -> object:
    return [asyncio.run(collect(engine, one)) for one in WANTED]


def overlaps(load: Load, ask: Ask, path: Path) -> set[tuple[str, str]]:
    """The pairs of stages that were under way at the same time for different requests, read from the trace."""
    engine = load(trace=path, n_parallel=4, n_ctx=2048, encode_max_patches=1)  # each picture in a run of its own
    slow_down(engine)
    ask(engine)
    engine.close()
    found = stages(json.loads(path.read_text()))
    assert {(s.name, s.request) for s in found} == set(product(("encode", "prefill", "decode"), (f"r{i}" for i in range(4))))
    return {(a.name, b.name) for a, b in product(found, found) if _crossing(a, b)} & ALL


def slow_down(engine: Engine) -> None:
    half = engine._half
    assert half is not None
    encode = half.encode

    def slow(pieces: Sequence[Piece]) -> list[Rows]:
        time.sleep(SLOW)
        return encode(pieces)

    half.encode = slow  # type: ignore[method-assign]


def hold(engine: Engine) -> tuple[threading.Event, threading.Event]:
    """Make the media half wait: whether it does, and what lets it go on."""
    stuck, free, half = threading.Event(), threading.Event(), engine._half
    assert half is not None
    encode = half.encode

    def waiting(pieces: Sequence[Piece]) -> list[Rows]:
        stuck.set()
        assert free.wait(20)
        return encode(pieces)

    half.encode = waiting  # type: ignore[method-assign]
    return stuck, free


def stages(events: Iterable[dict[str, Any]]) -> list[Stage]:
    """Runs of the encoder, and of the slots what they prefill and decode."""
    out = []
    for event in events:
        if event["ph"] != "X":
            continue
        requests = event["args"].get("requests") or [event["args"].get("request")]
        name = "prefill" if event["name"] == "media prefill" else event["name"]
        if name in ("encode", "prefill", "decode"):
            out += [Stage(name, one, event["ts"], event["ts"] + event["dur"]) for one in requests]
    return out


def _crossing(a: Stage, b: Stage) -> bool:
    return a.request != b.request and max(a.start, b.start) < min(a.end, b.end)


def test_encode_prefill_and_decode_of_different_requests_happen_at_the_same_time(load: Load, tmp_path: Path) -> None:
    assert overlaps(load, side_by_side, tmp_path / "trace.json") == ALL


def test_one_after_the_other_nothing_happens_at_the_same_time(load: Load, tmp_path: Path) -> None:
    assert not overlaps(load, one_by_one, tmp_path / "trace.json")


def test_where_the_engine_waits_for_each_picture_nothing_is_decoded_meanwhile(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit = Encoder.submit

    def waiting(self: Encoder, chunk: MediaChunk, owner: str = "") -> Encoding:
        encoding = submit(self, chunk, owner)
        wait([encoding])
        return encoding

    monkeypatch.setattr(Encoder, "submit", waiting)
    assert overlaps(load, side_by_side, tmp_path / "trace.json") <= {("prefill", "decode")}


def test_while_the_encoder_is_stuck_others_are_answered(load: Load) -> None:
    seen, other = request(png(9), "what", n=24), request("the user", n=24)
    alone = [tokens(load(), one) for one in (seen, other, WANTED[0])]
    engine = load(n_parallel=3)
    tokens(engine, seen)  # its picture is in the cache
    stuck, free = hold(engine)

    async def main() -> list[tuple[int, ...]]:
        waiting = asyncio.create_task(collect(engine, WANTED[0]))
        await asyncio.to_thread(wait_until, stuck.is_set)
        others = [joined(await collect(engine, one)) for one in (seen, other)]
        assert not free.is_set()
        assert not waiting.done()
        free.set()
        return [*others, joined(await waiting)]

    assert asyncio.run(main()) == alone


@pytest.mark.parametrize(
    ("options", "beside", "left"),
    [
        ({"threads": 2}, 1, 1),
        ({"threads": 3}, 1, 2),
        ({"threads": 1}, 1, 1),
        ({"threads": 2, "threads_while_encoding": 9}, 2, 1),
    ],
    ids=["half of them", "the smaller half", "one there is", "as many as there are"],
)
def test_while_a_picture_is_encoded_each_half_leaves_cores_to_the_other(
    load: Load, monkeypatch: pytest.MonkeyPatch, options: dict[str, int], beside: int, left: int
) -> None:
    limits: list[int] = []
    monkeypatch.setattr(kernels, "_use_threads", lambda: limits.append)
    engine = load(n_parallel=2, **options)
    context, (stuck, free) = engine._context, hold(engine)
    seen: list[int] = []
    decode = context.decode
    context.decode = lambda batch: seen.append(context.n_threads) or decode(batch)  # type: ignore[method-assign]

    async def main() -> None:
        waiting = asyncio.create_task(collect(engine, request(png(), n=1)))
        await asyncio.to_thread(wait_until, stuck.is_set)
        seen.clear()
        await collect(engine, request("the", n=3))
        assert set(seen) == {beside}
        told = list(limits)  # also of the text before the picture, where that is decoded late
        assert told == [left, 0] * (len(told) // 2)
        assert len(told) >= 2 * len(seen)
        free.set()
        await waiting
        assert limits == told, "alone the text half takes no cores from anybody"

    asyncio.run(main())
    assert seen[-1] == options["threads"]


@pytest.mark.parametrize("form", ["chat", "prompt"])
def test_pictures_of_one_request_are_prepared_side_by_side(load: Load, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    wanted = request(png(0), png(1), "what")
    if form == "prompt":
        wanted = Request(prompt=wanted.messages[0].parts, sampling=wanted.sampling, max_tokens=8)
    alone = tokens(load(), wanted)
    engine, meeting = load(), threading.Barrier(2, timeout=20)  # each goes on when the other has come as far
    half = engine._half
    assert half is not None
    preprocess = half.preprocess
    monkeypatch.setattr(half, "preprocess", lambda *given: (meeting.wait(), preprocess(*given))[1])
    assert tokens(engine, wanted) == alone
