"""What goes wrong in one request stays there: aborts, faults of the halves, faults of our own."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from asking import GREEDY, Load, collect, joined, outputs, png, request, tokens, wait_until

from diptych.engine import Engine
from diptych.errors import EngineError, GrammarError, InputError, MediaError
from diptych.types import Batch, Request, Sampling


async def take(engine: Engine, wanted: Request, n: int) -> None:
    """Read `n` outputs and hang up."""
    stream = engine.generate(wanted)
    for _ in range(n):
        await anext(stream)
    await stream.aclose()


def beside(engine: Engine, bad: Request, error: type[Exception]) -> tuple[int, ...]:
    """Serve a request that fails beside a good one; the tokens of the good one."""

    async def both() -> tuple[int, ...]:
        good = asyncio.create_task(collect(engine, request(png(1), "in the", n=40)))
        with pytest.raises(error):
            await collect(engine, bad)
        return joined(await good)

    return asyncio.run(both())


@pytest.fixture
def undisturbed(load: Load) -> tuple[int, ...]:
    return tokens(load(), request(png(1), "in the", n=40))


def test_hanging_up_frees_the_slot_and_what_was_decoded_is_reused(load: Load) -> None:
    engine, wanted = load(), request(png(), "what", n=None)
    asyncio.run(take(engine, wanted, 2))
    wait_until(lambda: engine.stats().running == 0)
    stats = engine.stats()
    assert stats.token_rows < 500  # it was not decoded to its end
    assert stats.kv_rows > 0
    assert tokens(engine, request(png(), "what", n=12)) == tokens(load(), request(png(), "what", n=12))
    assert engine.stats().n_reused > 0


def test_cancelling_the_task_aborts(engine: Engine) -> None:
    async def cancelled() -> None:
        task = asyncio.create_task(collect(engine, request("what", n=None)))
        while not engine.stats().running:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())
    wait_until(lambda: engine.stats().running == 0)


def test_hanging_up_while_waiting_for_a_slot_leaves_the_line(load: Load) -> None:
    engine = load(n_ctx=4096)

    async def main() -> tuple[int, ...]:
        first = asyncio.create_task(collect(engine, request("the", n=300)))
        while not engine.stats().running:
            await asyncio.sleep(0.001)
        second = asyncio.create_task(collect(engine, request(png(), "what")))
        while not engine.stats().waiting:
            await asyncio.sleep(0.001)
        second.cancel()
        return joined(await first)

    assert len(asyncio.run(main())) > 0
    wait_until(lambda: engine.stats().waiting == 0)
    assert engine.stats().running == 0


def test_hanging_up_before_the_picture_is_encoded_drops_it(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    door = hold(engine, monkeypatch)

    async def main() -> None:
        tasks = [asyncio.create_task(collect(engine, request(png(i), "what"))) for i in range(2)]
        while engine.stats().encoder.waiting < 2 or not engine.stats().running:
            await asyncio.sleep(0.001)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        while engine.stats().running or engine.stats().waiting:
            await asyncio.sleep(0.001)
        door.set()

    asyncio.run(main())
    wait_until(lambda: engine.stats().encoder.waiting == 0)
    assert engine.stats().encoder.runs <= 1  # the one that was in work
    assert engine.stats().media_rows == 0


def hold(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Keep the encoder at its first run until the event is set."""
    door, half = threading.Event(), engine._half
    assert half is not None
    encode = half.encode

    def held(pieces: Any) -> Any:
        assert door.wait(20)
        return encode(pieces)

    monkeypatch.setattr(half, "encode", held)
    return door


def test_text_is_prefilled_while_the_picture_is_encoded(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    door = hold(engine, monkeypatch)

    async def main() -> None:
        task = asyncio.create_task(collect(engine, request("the user " * 10, png(), "what")))
        while not engine.stats().token_rows:
            await asyncio.sleep(0.001)
        assert engine.stats().encoder.runs == 0
        door.set()
        await task

    asyncio.run(main())


def test_a_bad_picture_leaves_the_neighbour_unharmed(load: Load, undisturbed: tuple[int, ...]) -> None:
    assert beside(load(n_parallel=2), request(b"no picture", "what"), MediaError) == undisturbed


def test_a_bad_grammar_leaves_the_neighbour_unharmed(load: Load, undisturbed: tuple[int, ...]) -> None:
    bad = request("what", sampling=Sampling(grammar="root ::= ("))
    assert beside(load(n_parallel=2), bad, GrammarError) == undisturbed


@pytest.mark.parametrize("seen", [True, False], ids=["by the encoder", "by the context alone"])
@pytest.mark.parametrize("poison", [np.nan, 1e30, 0.0], ids=["not finite", "out of range", "zeros"])
def test_rows_that_would_spoil_the_cache_leave_the_neighbour_unharmed(
    load: Load, undisturbed: tuple[int, ...], monkeypatch: pytest.MonkeyPatch, poison: float, seen: bool
) -> None:
    engine = load(n_parallel=2)
    half, batches = engine._half, media_together(engine, monkeypatch, 2)
    assert half is not None
    encode = half.encode
    monkeypatch.setattr(half, "encode", lambda pieces: [np.full_like(r, poison) if len(r) == 100 else r for r in encode(pieces)])
    if not seen:
        monkeypatch.setattr("diptych.encoder.rows.fault", lambda *_: "")
    assert beside(engine, request(png(0, 280, 280), "what"), EngineError if seen else InputError) == undisturbed
    assert max(batches) == (1 if seen else 2)


def media_together(engine: Engine, monkeypatch: pytest.MonkeyPatch, n: int) -> list[int]:
    """Decode nothing until `n` pictures are encoded; gives the numbers of sequences in each media batch."""
    loop, context, sizes = engine._loop, engine._context, list[int]()
    step, decode = loop._step, context.decode

    def late() -> bool:
        encoder = engine.stats().encoder
        return encoder.pieces == n and not encoder.waiting and step()

    def noting(batch: Batch) -> bool:
        if batch.segments[0].embeddings is not None:
            sizes.append(len(batch.segments))
        return decode(batch)

    monkeypatch.setattr(loop, "_step", late)
    monkeypatch.setattr(context, "decode", noting)
    return sizes


def test_a_batch_that_llama_cpp_refuses_ends_its_sequences_only(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, text = load(n_parallel=2), request("in the", n=40)
    expected = tokens(engine, text)

    async def both() -> tuple[int, ...]:
        good = asyncio.create_task(collect(engine, text))
        with pytest.raises(EngineError, match="planted"):
            await collect(engine, request(png(0, 280, 280), "what"))
        return joined(await good)

    refuse(engine, monkeypatch, lambda batch: batch.segments[0].embeddings is not None)
    assert asyncio.run(both()) == expected
    assert engine.stats().running == 0


def refuse(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, which: Callable[[Batch], bool], error: Exception | None = None
) -> None:
    """Let the context fail on some batches."""
    context = engine._context
    decode = context.decode

    def refusing(batch: Batch) -> bool:
        if which(batch):
            raise error or EngineError("planted")
        return decode(batch)

    monkeypatch.setattr(context, "decode", refusing)


def test_a_fault_of_our_own_reaches_all_who_wait_and_the_engine_lives_on(
    load: Load, undisturbed: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = load(n_parallel=2)
    with monkeypatch.context() as patch:
        refuse(engine, patch, lambda _: True, TypeError("planted"))

        async def many() -> list[Any]:
            wanted = (request(f"user {i}", png(i)) for i in range(4))
            return await asyncio.gather(*(collect(engine, one) for one in wanted), return_exceptions=True)

        for error in asyncio.run(many()):
            assert isinstance(error, EngineError)
            assert "planted" in str(error)
    assert tokens(engine, request(png(1), "in the", n=40)) == undisturbed


def test_a_fault_in_a_sampler_ends_its_sequence_only(
    load: Load, undisturbed: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    from diptych.llama.sampler import Sampler

    sample = Sampler.sample

    def failing(self: Sampler, *given: Any, **more: Any) -> Any:
        if self.seed == 77:
            raise EngineError("planted")
        return sample(self, *given, **more)

    monkeypatch.setattr(Sampler, "sample", failing)
    assert beside(load(n_parallel=2), request("what", sampling=Sampling(seed=77)), EngineError) == undisturbed


def test_closing_ends_what_runs_and_what_waits_with_an_error(load: Load) -> None:
    engine = load(n_ctx=4096)

    async def main() -> list[Any]:
        tasks = [asyncio.create_task(collect(engine, request("the", n=None))) for _ in range(3)]
        while not (engine.stats().running and engine.stats().waiting == 2):
            await asyncio.sleep(0.001)
        await asyncio.to_thread(engine.close)
        return await asyncio.gather(*tasks, return_exceptions=True)

    for error in asyncio.run(main()):
        assert isinstance(error, EngineError)
        assert "closed" in str(error)


def test_an_event_loop_that_is_gone_does_not_hurt_the_engine(engine: Engine) -> None:
    async def started() -> Any:
        stream = engine.generate(request("what", n=None))
        await anext(stream)
        return stream

    loop = asyncio.new_event_loop()
    stream = loop.run_until_complete(started())
    loop.close()
    wait_until(lambda: engine.stats().running == 0)
    assert outputs(engine, request("what", sampling=GREEDY))
    del stream


def test_leaving_python_without_closing_is_no_crash(deployment: Path) -> None:
    code = f"""
import asyncio, threading, time
from diptych import Engine, EngineError, Message, Options, Request
engine = Engine.load({str(deployment)!r}, options=Options(threads=1))
async def ask():
    try:
        async for _ in engine.generate(Request((Message("user", ("the",)),))): pass
    except EngineError as error:
        print(error)
threading.Thread(target=lambda: asyncio.run(ask()), daemon=True).start()
while engine.stats().token_rows < 30: time.sleep(0.001)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr


def test_a_sampler_that_takes_long_to_make_holds_up_nobody(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    from diptych.llama.sampler import Sampler

    engine, made = load(n_parallel=2), Sampler.__init__

    def slowly(self: Sampler, model: Any, sampling: Sampling, *more: Any) -> None:
        if sampling.seed == 77:
            time.sleep(0.6)
        made(self, model, sampling, *more)

    monkeypatch.setattr(Sampler, "__init__", slowly)

    async def main() -> int:
        other = asyncio.create_task(collect(engine, request("what", n=4, sampling=Sampling(seed=77))))
        stream, n = engine.generate(request("the user", n=2000, sampling=Sampling(seed=1, ignore_eos=True))), 0
        async for _ in stream:
            n += 1
            if other.done():
                break
        await stream.aclose()
        await other
        return n

    assert asyncio.run(main()) > 20
