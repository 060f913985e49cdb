"""Limits of time: a request that takes too long ends, wherever it is, and its slot is free."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import pytest
from asking import GREEDY, Load, collect, outputs, png, request, tokens, wait_until

from diptych.engine import Engine
from diptych.errors import TimedOut

ON = replace(GREEDY, ignore_eos=True)


def test_an_answer_that_takes_too_long_ends_with_what_it_has(engine: Engine) -> None:
    start = time.perf_counter()
    found = outputs(engine, replace(request("the user", n=None, sampling=ON), max_seconds=0.2))
    assert 0.15 < time.perf_counter() - start < 2
    assert found[-1].finish_reason == "length"
    assert 0 < found[-1].usage.completion_tokens < 3000
    assert engine.stats().running == 0
    assert tokens(engine, request("what"))


def test_who_waits_for_a_slot_for_too_long_is_told(load: Load) -> None:
    engine = load()

    async def behind_another() -> None:
        first = engine.generate(request("the user", n=1500, sampling=ON))
        await anext(first)
        with pytest.raises(TimedOut, match=r"0\.1 s"):
            await collect(engine, replace(request("in the"), max_seconds=0.1))
        assert (await anext(first)).text
        await first.aclose()

    asyncio.run(behind_another())


def test_who_waits_for_the_encoder_for_too_long_is_told(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = load()
    half = engine._half
    assert half is not None
    encode = half.encode

    def slowly(pieces: object) -> object:
        time.sleep(0.6)
        return encode(pieces)

    monkeypatch.setattr(half, "encode", slowly)
    start = time.perf_counter()
    with pytest.raises(TimedOut):
        outputs(engine, replace(request(png(), "what"), max_seconds=0.1))
    assert time.perf_counter() - start < 0.5  # the engine thread woke for it, with nothing to decode
    wait_until(lambda: engine.stats().running == 0)


def test_the_time_of_prediction_counts_from_the_first_token_and_ends_behind_a_new_line(engine: Engine) -> None:
    line = replace(ON, grammar='root ::= "a\\n" [b]+')
    found = outputs(engine, replace(request("what", n=None, sampling=line), max_predict_seconds=0.05))
    assert found[-1].finish_reason == "length"
    assert found[-1].usage.completion_tokens < 2000
    without = replace(ON, grammar="root ::= [b]+")
    found = outputs(engine, replace(request("what", n=300, sampling=without), max_predict_seconds=1e-6))
    assert found[-1].usage.completion_tokens == 300
