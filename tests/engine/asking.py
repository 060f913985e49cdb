"""Requests in short notation, and what an engine says to them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable

from diptych.engine import Engine
from diptych.types import Message, Output, Request, Sampling, Source
from pictures import png as png

GREEDY = Sampling(temperature=0)
Load = Callable[..., Engine]  # the fixture `load`


def request(*parts: str | bytes, n: int | None = 8, sampling: Sampling = GREEDY, stop: tuple[str, ...] = ()) -> Request:
    """One turn of texts and pictures, to be answered with `n` tokens."""
    said = tuple(Source("image", data=part) if isinstance(part, bytes) else part for part in parts)
    return Request((Message("user", said),), sampling, n, stop)


async def collect(engine: Engine, wanted: Request) -> list[Output]:
    return [output async for output in engine.generate(wanted)]


def outputs(engine: Engine, wanted: Request) -> list[Output]:
    return asyncio.run(collect(engine, wanted))


def tokens(engine: Engine, wanted: Request) -> tuple[int, ...]:
    return joined(outputs(engine, wanted))


def together(engine: Engine, wanted: Iterable[Request]) -> list[tuple[int, ...]]:
    """The tokens of requests served at the same time."""

    async def all_of_them() -> list[list[Output]]:
        return await asyncio.gather(*(collect(engine, one) for one in wanted))

    return [joined(found) for found in asyncio.run(all_of_them())]


def joined(found: Iterable[Output]) -> tuple[int, ...]:
    return tuple(token for output in found for token in output.tokens)


def wait_until(true: Callable[[], bool]) -> None:
    """Wait for another thread; fails after 20 seconds."""
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end, "waited for too long"
        time.sleep(0.005)
