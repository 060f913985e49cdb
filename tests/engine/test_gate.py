"""The gate: who is let in, and what those are told who are not."""

from __future__ import annotations

import threading

import pytest
from asking import Load, collect, request, wait_until

from diptych.engine.gate import Gate
from diptych.errors import InputError, Overloaded


def test_more_than_slots_and_queue_are_turned_away_and_those_who_left_make_room() -> None:
    gate = Gate(n_slots=1, max_queue=1)
    with gate.inside(), gate.inside():
        with pytest.raises(Overloaded, match="2 requests are being served or wait, and 2 are the most") as caught, gate.inside():
            pass
        assert caught.value.retry_after > 0
        assert caught.value.status == 429
    assert (gate.n_inside, gate.n_refused) == (0, 1)
    with gate.inside():
        assert gate.n_inside == 1


def test_who_fails_inside_makes_room_too() -> None:
    gate = Gate(1, 0)
    with pytest.raises(ZeroDivisionError), gate.inside():
        raise ZeroDivisionError
    assert gate.n_inside == 0


def test_threads_that_come_together_never_are_too_many_inside() -> None:
    gate, most, refused = Gate(2, 3), [], []
    start = threading.Barrier(16)

    def come() -> None:
        start.wait()
        for _ in range(200):
            try:
                with gate.inside():
                    most.append(gate.n_inside)
            except Overloaded:
                refused.append(1)

    threads = [threading.Thread(target=come) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) <= 5
    assert len(most) + len(refused) == 3200
    assert gate.n_inside == 0


def test_the_engine_turns_away_whom_its_queue_does_not_hold(load: Load) -> None:
    import asyncio

    engine = load(max_queue=1)

    async def three() -> list[object]:
        wanted = [request("the user", n=400) for _ in range(3)]
        return await asyncio.gather(*(collect(engine, one) for one in wanted), return_exceptions=True)

    found = asyncio.run(three())
    assert [isinstance(one, Overloaded) for one in found] == [False, False, True]
    assert engine.stats().refused == 1
    wait_until(lambda: engine.stats().running == 0)
    with pytest.raises(InputError):
        asyncio.run(collect(engine, request("what", n=0)))
    assert engine._gate.n_inside == 0
