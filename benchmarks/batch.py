"""What one run for several pictures saves: n pictures of one size in a run of the encoder, and in n runs.

    python benchmarks/batch.py --cache /var/tmp/diptych-bench --layers 32

A Qwen2-VL tower of MinerU2.5's width (random weights, made once in the cache folder). Each arithmetic is a process of its
own; in it the two ways take turns, and a ratio is the median of the rounds'. Over 1 the one run is faster. The default
of --encode-max-patches is the most patches at which it is not slower anywhere.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from measure import UNIT, made, processor, qwen2vl

N_EMBD, N_HEAD, N_OUT = 1280, 16, 896
ALL = 1 << 30  # patches: no run is cut
WAYS = {"onnxruntime": "f32", "openvino": "int8"}  # runtime → the precision that is measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[112, 224, 336, 504], help=f"pixels a side, multiples of {UNIT}")
    parser.add_argument("--n", type=int, nargs="+", default=[2, 4, 8], help="pictures")
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--type", choices=("f16", "f32"), default="f16", help="type of the file's weights")
    parser.add_argument("--ways", nargs="+", choices=tuple(WAYS), default=list(WAYS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cache", default="/var/tmp/diptych-bench", help="folder the tower is kept in")
    parser.add_argument("--measure", metavar="TOWER", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if bad := [size for size in args.sizes if size % UNIT]:
        parser.error(f"--sizes {bad[0]} is not a multiple of {UNIT}")
    if args.measure:
        return measure(Path(args.measure), args)
    tower = made(qwen2vl("tower" if args.layers == 32 else f"tower{args.layers}", args.layers, N_EMBD, N_HEAD, N_OUT), args)
    print(f"{processor()}, {args.threads} threads; {args.layers} layers, {args.type} file", flush=True)
    for way in args.ways:
        lists = ["--sizes", *map(str, args.sizes), "--n", *map(str, args.n)]
        rest = ["--rounds", str(args.rounds), "--threads", str(args.threads), "--ways", way]
        subprocess.run([sys.executable, __file__, "--measure", str(tower), *lists, *rest], check=True)


def measure(tower: Path, args: argparse.Namespace) -> None:
    """Print a line for each size and number of pictures."""
    from diptych.encoder.half import open_half
    from diptych.options import Options
    from diptych.types import Media, MediaSettings

    (runtime,) = args.ways
    half = open_half(tower, Options(threads=args.threads, media_runtime=runtime, precision=WAYS[runtime], encode_max_patches=ALL))
    rng = np.random.default_rng(0)
    for size in args.sizes:
        pixels = rng.integers(0, 256, (max(args.n), size, size, 3), np.uint8)
        settings = MediaSettings(min_pixels=size**2, max_pixels=size**2)
        pieces = [half.preprocess(Media("image", p, bytes([i])), settings)[0].pieces[0] for i, p in enumerate(pixels)]
        half.encode(pieces[:1])  # to warm up
        for n in args.n:
            rounds = [turn(half, pieces[:n]) for _ in range(args.rounds)]
            (one, one_busy), (many, many_busy) = np.median(rounds, axis=0)
            ratio, busy = (statistics.median(b[i] / a[i] for a, b in rounds) for i in range(2))
            patches = sum(piece.n_patches for piece in pieces[:n])
            print(
                f"{runtime} {WAYS[runtime]}: {n:2} of {size}×{size} ({patches:5} patches): one run {one:.3f} s, "
                f"{n:2} runs {many:.3f} s, ratio {ratio:.2f}; processor time {one_busy:.3f} and {many_busy:.3f} s, {busy:.2f}",
                flush=True,
            )


def turn(half, pieces: Sequence) -> tuple[tuple[float, float], tuple[float, float]]:
    """Seconds by the clock and of the processors in one run, and in a run for each."""
    return timed(lambda: half.encode(pieces)), timed(lambda: [half.encode([piece]) for piece in pieces])


def timed(work: Callable[[], object]) -> tuple[float, float]:
    start, busy = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - start, time.process_time() - busy


if __name__ == "__main__":
    main()
