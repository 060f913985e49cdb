"""One client: how near decoding comes to llama.cpp's own speed, and what a step of the scheduler costs.

    python benchmarks/decode.py --cache /var/tmp/diptych-bench --llama-server PATH

Over HTTP: Diptych and llama.cpp's own server, both started once with the same files, take turns answer by answer, and
the seconds between tokens are compared turn by turn, since a shared machine changes its speed from one minute to the
next. In the engine: processes take turns, the engine with one client and a bare loop over llama_decode and the same
samplers. Each is a process of its own: OpenMP keeps threads for every thread that computes, and a second one slows both.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import httpx
import numpy as np
from measure import processor
from serve import Side, ask, body, every_side, server

from model import made

LONG = 128  # tokens of the answer that is measured against a bare loop


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=Path("/var/tmp/diptych-bench"), help="folder the model is kept in")
    parser.add_argument("--llama-server", type=Path, help="llama.cpp's own server; without it HTTP is left out")
    parser.add_argument("--turns", type=int, default=60, help="answers of each server")
    parser.add_argument("--tokens", type=int, default=40, help="length of every answer over HTTP")
    parser.add_argument("--prompt", type=int, default=60, help="characters, about as many tokens")
    parser.add_argument("--rounds", type=int, default=4, help="processes of the engine, and of the bare loop")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("alone", nargs="?", choices=("alone", "engine"), help=argparse.SUPPRESS)
    parser.add_argument("--text", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.alone:
        return print(json.dumps({"alone": alone, "engine": engine}[args.alone](args.text, args.threads)))
    text, mmproj = made(args.cache)
    print(f"{processor()}, {args.threads} threads", flush=True)
    if args.llama_server:
        sides = {side.name: side for side in every_side(text, mmproj, args)}
        over_http(sides["diptych"], sides["llama-server"], args)
    in_engine(text, args)


def over_http(ours: Side, theirs: Side, args: argparse.Namespace) -> None:
    """Seconds between the tokens of two servers that take turns; who goes first changes."""
    times: tuple[list[float], list[float]] = [], []
    with ExitStack() as stack:
        urls = [stack.enter_context(server(side))[0] for side in (ours, theirs)]
        for turn in range(-1, args.turns):
            for i in (0, 1) if turn % 2 else (1, 0):
                between = asyncio.run(gap(urls[i], turn % 10**6, args))
                if turn >= 0:  # the one before warms up
                    times[i].append(between)
    for side, found in zip((ours, theirs), times, strict=True):
        low, middle, high = 1e3 * np.quantile(found, [0.25, 0.5, 0.75])
        print(
            f"over HTTP: {side.name:14} {1e3 / middle:5.1f} tokens/s ({middle:.2f} ms between; quartiles {low:.2f}, {high:.2f})"
        )
    ratios = [b / a for a, b in zip(*times, strict=True)]
    print(f"over HTTP: {statistics.median(ratios):.3f} of {theirs.name}'s speed, the median of {len(ratios)} turns", flush=True)


async def gap(url: str, seed: int, args: argparse.Namespace) -> float:
    """Mean seconds between the tokens of one answer."""
    between: list[float] = []
    async with httpx.AsyncClient(base_url=url, timeout=600) as http:
        await ask(http, body(seed, False, args), [], between)
    return statistics.fmean(between)


def in_engine(text: Path, args: argparse.Namespace) -> None:
    """Tokens per second through the engine, and of a loop over llama_decode alone, in turns."""
    rows = [(in_process("alone", text, args), in_process("engine", text, args)) for _ in range(args.rounds)]
    theirs, ours = (statistics.median(row[i]["rate"] for row in rows) for i in (0, 1))
    ratio = statistics.median(row[1]["rate"] / row[0]["rate"] for row in rows)
    print(f"engine: {ours:.1f} tokens/s, {theirs:.1f} in a bare loop; {ratio:.3f}, the median of {len(rows)} turns")
    print(f"engine: {statistics.median(row[1]['step'] for row in rows):.0f} µs of scheduling a step")


def in_process(name: str, text: Path, args: argparse.Namespace) -> dict[str, float]:
    command = [sys.executable, __file__, name, "--text", str(text), "--threads", str(args.threads)]
    found: dict[str, float] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    return found


def alone(text: Path, threads: int) -> dict[str, float]:
    """A loop over llama_decode and the default samplers."""
    from diptych import Options, Sampling
    from diptych.llama.context import Context
    from diptych.llama.model import TextModel
    from diptych.llama.sampler import Sampler
    from diptych.types import Batch, Segment

    options, token, start = Options(n_ctx=2048, threads=threads), 100, 0.0
    sampling = Sampling(seed=1, ignore_eos=True)
    with TextModel.load(text, options) as model, Context(model, options) as context, Sampler(model, sampling) as sampler:
        for i in range(LONG + 8):
            if i == 8:
                start = time.perf_counter()
            planes = np.array([[i], [i], [i], [0]], np.int32)
            context.decode(Batch((Segment(0, planes, tokens=np.array([token], np.int32), wants_logits=True),)))
            token = sampler.sample(context, 0).token
        return {"rate": LONG / (time.perf_counter() - start)}


def engine(text: Path, threads: int) -> dict[str, float]:
    """The engine with one client; also the microseconds of a step that are neither llama.cpp's nor the samplers'."""
    from diptych import Engine, Message, Options, Request, Sampling

    async def answer(loaded: Engine) -> float:
        request = Request((Message("user", ("a",)),), Sampling(seed=1, ignore_eos=True), LONG)
        async for output in loaded.generate(request):
            last = output
        return last.timings.tokens_per_second

    with Engine.load(model=text, options=Options(n_ctx=2048, threads=threads, warmup=True)) as loaded:
        before = loaded.stats()
        rate = asyncio.run(answer(loaded))
        after = loaded.stats()
    calls = after.token_calls - before.token_calls
    return {"rate": rate, "step": 1e6 * (after.schedule_seconds - before.schedule_seconds) / calls}


if __name__ == "__main__":
    main()
