"""Answers as they come: one request, `n` of them, side by side."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import TypeVar

from diptych.engine import Engine
from diptych.types import Output, Request

T = TypeVar("T")
_SEEDS = 2**32 - 1


async def answers(engine: Engine, request: Request, n: int) -> AsyncGenerator[tuple[int, Output], None]:
    """Outputs of `n` choices, each with its number.

    The others start when the first one's prompt is in the KV cache, and take it from there; each has the next seed.
    """
    if n == 1:
        async with aclosing(engine.generate(request)) as outputs:
            async for output in outputs:
                yield 0, output
        return
    first = engine.generate(request)
    async with aclosing(first):
        begun = await anext(first)
        while begun.progress is not None:
            yield 0, begun
            begun = await anext(first)
        yield 0, begun
        rest: list[AsyncIterator[Output]] = [engine.generate(_other(request, i)) for i in range(1, n)]
        async for item in _merged([first if begun.finish_reason is None else _nothing(), *rest]):
            yield item


async def several(engine: Engine, requests: Sequence[Request], n: int) -> AsyncGenerator[tuple[int, Output], None]:
    """Outputs of `n` choices of each request, numbered one request behind the other.

    As many requests as there are slots are asked at a time, so that many prompts in one call do not fill the queue.
    """
    if len(requests) == 1:
        async with aclosing(answers(engine, requests[0], n)) as outputs:
            async for item in outputs:
                yield item
        return
    turns = asyncio.Semaphore(engine.options.n_parallel)

    async def one(i: int, request: Request) -> AsyncGenerator[tuple[int, Output], None]:
        async with turns, aclosing(answers(engine, request, n)) as outputs:
            async for j, output in outputs:
                yield i * n + j, output

    async with aclosing(_merged([one(i, request) for i, request in enumerate(requests)])) as merged:
        async for _, item in merged:
            yield item


def _other(request: Request, i: int) -> Request:
    seed = request.sampling.seed
    sampling = request.sampling if seed is None else replace(request.sampling, seed=(seed + i) % _SEEDS)
    return replace(request, sampling=sampling, slot=None)


async def _nothing() -> AsyncIterator[Output]:
    return
    yield


async def _merged(streams: Sequence[AsyncIterator[T]]) -> AsyncGenerator[tuple[int, T], None]:
    """What comes out of any of the streams, as it comes; all are closed when one fails."""
    items: asyncio.Queue[tuple[int, T | BaseException | None]] = asyncio.Queue()

    async def pump(i: int, stream: AsyncIterator[T]) -> None:
        try:
            async for output in stream:
                items.put_nowait((i, output))
            items.put_nowait((i, None))
        except Exception as error:
            items.put_nowait((i, error))

    tasks = [asyncio.ensure_future(pump(i, stream)) for i, stream in enumerate(streams)]
    try:
        left = len(tasks)
        while left:
            i, item = await items.get()
            if isinstance(item, BaseException):
                raise item
            if item is None:
                left -= 1
            else:
                yield i, item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
