"""Four requests with a picture each at the same time, against the same four one after the other.

    python benchmarks/overlap.py --cache /var/tmp/diptych-bench --threads 2
    python benchmarks/overlap.py --cache /var/tmp/diptych-bench --threads 1 --large

Both take turns in one engine, each turn with other pictures and texts, so that no cache helps; who goes first changes. The
model is that of benchmarks/model.py, with a tower of 46 million weights or of 675. Each half has so many threads: with one
on two cores, neither takes the other's. Printed are the seconds of each turn, the median of the ratios, and how long each
stage was at work, as a part of the time that passed: side by side these parts sum up to more than one.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import os
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from encode import N_EMBD, N_HEAD, N_LAYER, N_OUT
from measure import made as made_tower
from measure import processor, qwen2vl
from PIL import Image

from diptych import Engine, Message, Options, Request, Sampling
from diptych.types import Output, Source
from model import made

STAGES = ("preprocess", "encode", "prefill and decode", "sample")


@dataclass(frozen=True)
class Turn:
    """Seconds that some requests took in all, the mean to their first token, and those of each of STAGES."""

    seconds: float
    first: float
    stages: tuple[float, ...]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=Path("/var/tmp/diptych-bench"), help="folder the model is kept in")
    parser.add_argument("--large", action="store_true", help="a tower of 675 million weights")
    parser.add_argument("--requests", type=int, default=4)
    parser.add_argument("--size", type=int, default=504, help="pixels a side of the pictures")
    parser.add_argument("--prompt", type=int, default=60, help="characters behind the picture, about as many tokens")
    parser.add_argument("--tokens", type=int, default=32, help="length of every answer")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--threads-while-encoding", type=int, help="of the text half; as many as --threads to see what it gains")
    parser.add_argument("--cores", type=int, nargs="*", help="the cores to run on, by number; by default all")
    parser.add_argument("--precision", default="auto", help="of the media half")
    args = parser.parse_args()
    if args.cores:
        os.sched_setaffinity(0, args.cores)
    text, mmproj = made(args.cache)
    if args.large:
        mmproj = made_tower(qwen2vl("tower", N_LAYER, N_EMBD, N_HEAD, N_OUT), args)
    options = Options(
        n_ctx=8192, n_parallel=args.requests, threads=args.threads, threads_while_encoding=args.threads_while_encoding,
        precision=args.precision, warmup=True, encode_cache_mib=0, encode_disk_mib=0,
    )  # fmt: skip
    with Engine.load(model=text, mmproj=mmproj, options=options) as engine:
        print(
            f"{processor()}, {len(os.sched_getaffinity(0))} cores, {args.threads} threads; {args.requests} requests", flush=True
        )
        asyncio.run(compare(engine, args))


async def compare(engine: Engine, args: argparse.Namespace) -> None:
    """Turns of both, and what comes of them; one of each before warms up."""
    ways = {"one by one": one_by_one, "together": together}
    found: dict[str, list[Turn]] = {name: [] for name in ways}
    for i in range(-1, args.turns):
        for j, name in enumerate(sorted(ways, reverse=bool(i % 2))):
            seeds = range(100 * (2 * i + j + 2), 100 * (2 * i + j + 2) + args.requests)
            turn = await measured(engine, [asked(seed, args) for seed in seeds], ways[name])
            if i >= 0:
                found[name].append(turn)
    for name, turns in found.items():
        print(row(name, turns), flush=True)
    ratios = [a.seconds / b.seconds for a, b in zip(found["one by one"], found["together"], strict=True)]
    each = ", ".join(f"{ratio:.2f}" for ratio in ratios)
    print(f"together {statistics.median(ratios):.2f} times as fast, the median of {each}")


def row(name: str, turns: Sequence[Turn]) -> str:
    """The medians of some turns."""
    seconds, first = (statistics.median(getattr(turn, field) for turn in turns) for field in ("seconds", "first"))
    stages = zip(STAGES, zip(*(turn.stages for turn in turns), strict=True), strict=True)
    parts = ", ".join(f"{stage} {statistics.median(taken) / seconds:.0%}" for stage, taken in stages)
    each = ", ".join(f"{turn.seconds:.2f}" for turn in turns)
    return f"{name:10}  {seconds:.2f} s ({each}); first token after {first:.2f} s; {parts}"


async def measured(engine: Engine, wanted: Sequence[Request], way: Callable[..., Awaitable[list[Output]]]) -> Turn:
    before, start = engine.stats(), time.perf_counter()
    last = await way(engine, wanted)
    seconds, after = time.perf_counter() - start, engine.stats()
    stages = (
        sum(output.timings.preprocess_ms for output in last) / 1e3,
        after.encoder.encode_seconds - before.encoder.encode_seconds,
        after.decode_seconds - before.decode_seconds,
        after.sample_seconds - before.sample_seconds,
    )
    return Turn(seconds, statistics.fmean(output.timings.time_to_first_token_ms for output in last) / 1e3, stages)


async def one_by_one(engine: Engine, wanted: Sequence[Request]) -> list[Output]:
    return [await answer(engine, one) for one in wanted]


async def together(engine: Engine, wanted: Sequence[Request]) -> list[Output]:
    return await asyncio.gather(*(answer(engine, one) for one in wanted))


async def answer(engine: Engine, wanted: Request) -> Output:
    """The last of what is said to a request."""
    last = Output("")
    async for output in engine.generate(wanted):
        last = output
    return last


def asked(seed: int, args: argparse.Namespace) -> Request:
    """A request like no other, with an answer of a fixed length."""
    pixels = np.random.default_rng(seed).integers(0, 256, (args.size // 14, args.size // 14, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).resize((args.size, args.size)).save(out, "PNG")
    said = f"{seed} " + "".join(chr(97 + (seed * 7 + i * i) % 26) for i in range(args.prompt))
    message = Message("user", (Source("image", data=out.getvalue()), said))
    return Request((message,), Sampling(seed=seed, ignore_eos=True), args.tokens)


if __name__ == "__main__":
    main()
