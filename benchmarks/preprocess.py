"""From a photo's bytes to the encoder's patches: seconds of each step, for one photo and for four at once.

    python benchmarks/preprocess.py --cache /var/tmp/diptych-bench

The photo is a JPEG of 12 megapixels, made here, and seen in `--size` × `--size` pixels. With a cache folder the share of
preprocessing in the time to the first token is measured too, with the model of benchmarks/model.py.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from measure import processor
from PIL import Image

from diptych import Engine, Message, Options, Request, Sampling
from diptych.families.packed import MEAN, STD, patchify
from diptych.media.image import decode, resize
from diptych.media.load import content_key
from diptych.types import Output, Source
from model import made

SIZE = 4032, 3024  # (width, height), as telephones take them
PATCH, MERGE, N_FRAMES = 14, 2, 2  # Qwen2-VL's
LEVELS = ((np.arange(256)[:, None] / 255 - MEAN) / STD).astype(np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, help="folder the model is kept in; without it there is no time to first token")
    parser.add_argument("--size", type=int, default=1036, help="pixels a side that the model sees")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--workers", type=int, default=4, help="photos at once")
    parser.add_argument("--threads", type=int, default=2, help="of both halves")
    parser.add_argument("--precision", default="auto", help="of the media half")
    args = parser.parse_args()
    data = photo(0)
    print(f"{processor()}; {SIZE[0]}×{SIZE[1]} JPEG of {len(data) / 1e6:.1f} MB, seen in {args.size}×{args.size}", flush=True)
    steps(data, args)
    at_once(data, args)
    if args.cache:
        first_token(args)


def steps(data: bytes, args: argparse.Namespace) -> None:
    """The median seconds of each step."""
    pixels = decode(data, max_pixels=2**28, name="photo")
    small = resize(pixels, args.size, args.size)
    each: dict[str, Callable[[], object]] = {
        "decode": lambda: decode(data, max_pixels=2**28, name="photo"),
        "hash": lambda: content_key(pixels),
        "resize": lambda: resize(pixels, args.size, args.size),
        "patchify": lambda: patchify(small, PATCH, MERGE, N_FRAMES, LEVELS),
        "patchify at the photo's size": lambda: patchify(pixels, PATCH, MERGE, N_FRAMES, LEVELS),
    }
    for name, step in each.items():
        print(f"{name:30} {median(step, args.runs):.3f} s", flush=True)


def at_once(data: bytes, args: argparse.Namespace) -> None:
    """One photo, some one after the other, and as many at once."""

    def whole(_: int = 0) -> None:
        pixels = decode(data, max_pixels=2**28, name="photo")
        content_key(pixels)
        patchify(resize(pixels, args.size, args.size), PATCH, MERGE, N_FRAMES, LEVELS)

    n = args.workers
    with ThreadPoolExecutor(n) as pool:
        one = median(whole, args.runs)
        serial = median(lambda: [whole() for _ in range(n)], args.runs)
        parallel = median(lambda: list(pool.map(whole, range(n))), args.runs)
    print(f"{'one photo':30} {one:.3f} s")
    print(
        f"{f'{n} photos':30} {serial:.3f} s one by one, {parallel:.3f} s at once, {serial / parallel:.2f} times as fast",
        flush=True,
    )


def first_token(args: argparse.Namespace) -> None:
    """The share of preprocessing in the time to the first token, for a request of one photo and one of several."""
    text, mmproj = made(args.cache)
    options = Options(
        n_ctx=8192, threads=args.threads, precision=args.precision, max_pixels=args.size**2, warmup=True, encode_cache_mib=0,
        encode_disk_mib=0,
    )  # fmt: skip
    with Engine.load(model=text, mmproj=mmproj, options=options) as engine:
        for n in (1, args.workers):
            timings = [asyncio.run(asked(engine, [photo(1 + run * n + i) for i in range(n)])).timings for run in range(2)]
            share = statistics.median(t.preprocess_ms / t.time_to_first_token_ms for t in timings)
            took, first = (
                statistics.median(getattr(t, f"{name}_ms") for t in timings) / 1e3
                for name in ("preprocess", "time_to_first_token")
            )
            print(f"{n} in a request: preprocessed in {took:.3f} s of {first:.2f} s to the first token, {share:.1%}", flush=True)


async def asked(engine: Engine, photos: list[bytes]) -> Output:
    """The last of what is said to a request of one token."""
    parts: list[Any] = [*(Source("image", data=data) for data in photos), "what"]
    last = Output("")
    async for output in engine.generate(Request((Message("user", tuple(parts)),), Sampling(), 1)):
        last = output
    return last


def photo(seed: int) -> bytes:
    """The bytes of a JPEG of 12 megapixels, no two alike."""
    coarse = np.random.default_rng(seed).integers(0, 256, (SIZE[1] // 12, SIZE[0] // 12, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(coarse).resize(SIZE, Image.Resampling.BICUBIC).save(out, "JPEG", quality=90)
    return out.getvalue()


def median(work: Callable[[], object], runs: int) -> float:
    """The median seconds of some runs, after one to warm up."""
    times = []
    for _ in range(runs + 1):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


if __name__ == "__main__":
    main()
