"""What a run of several pictures saves: eight of one size in runs of up to so many patches, and in a run each.

    python benchmarks/batch.py --cache /var/tmp/diptych-bench

A tower of Qwen2-VL's form and MinerU2.5's width (random weights, made once in the cache folder). Each arithmetic is a
process of its own; in it all limits take turns with a run each. A ratio is the median of the rounds', and over 1 a run of
several is faster. The default of --encode-max-patches is the limit that is best here: a larger one makes the first picture
wait for the last, and gains nothing.
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
WAYS = {"kernels": "int8", "onnxruntime": "f32", "openvino": "int8"}  # runtime → the precision that is measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[112, 224, 336, 504], help=f"pixels a side, multiples of {UNIT}")
    parser.add_argument("--limits", type=int, nargs="+", default=[256, 512, 1024, 2048, 4096], help="patches a run")
    parser.add_argument("--n", type=int, default=8, help="pictures")
    parser.add_argument("--layers", type=int, default=8)
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
    tower = made(qwen2vl(f"tower{args.layers}", args.layers, N_EMBD, N_HEAD, N_OUT), args)
    print(f"{processor()}, {args.threads} threads; {args.layers} layers, {args.type} file; {args.n} pictures", flush=True)
    for way in args.ways:
        lists = ["--sizes", *map(str, args.sizes), "--limits", *map(str, args.limits), "--ways", way]
        rest = [f"--{name}={getattr(args, name)}" for name in ("n", "rounds", "threads")]
        subprocess.run([sys.executable, __file__, "--measure", str(tower), *lists, *rest], check=True)


def measure(tower: Path, args: argparse.Namespace) -> None:
    """Print a line for each size and each limit that cuts in another way than a smaller one."""
    from diptych.encoder.half import open_half
    from diptych.encoder.limits import runs
    from diptych.options import Options

    (runtime,) = args.ways
    half = open_half(tower, Options(threads=args.threads, media_runtime=runtime, precision=WAYS[runtime], encode_max_patches=ALL))
    for size in args.sizes:
        pieces = pictures(half, size, args.n)
        cuts: dict[int, list] = {}  # by how many pictures there are in a run
        for limit in (1, *sorted(args.limits)):
            cut = list(runs(pieces, limit))
            cuts.setdefault(len(cut[0]), cut)
        for cut in cuts.values():
            half.encode(cut[0])  # to warm up: OpenVINO prepares for each shape
        rounds = [[timed(lambda cut=cut: [half.encode(run) for run in cut]) for cut in cuts.values()] for _ in range(args.rounds)]
        for i, n in enumerate(cuts):
            seconds = statistics.median(times[i][0] for times in rounds)
            ratio, busy = (statistics.median(times[0][j] / times[i][j] for times in rounds) for j in range(2))
            print(
                f"{runtime} {WAYS[runtime]} {size}×{size}: {n} in a run, {n * pieces[0].n_patches:5} patches: {seconds:7.3f} s, "
                f"ratio {ratio:.2f} (of processor time {busy:.2f})",
                flush=True,
            )


def pictures(half, size: int, n: int) -> Sequence:
    """Pieces of noise."""
    from diptych.types import Media, MediaSettings

    settings = MediaSettings(min_pixels=size**2, max_pixels=size**2)
    pixels = np.random.default_rng(0).integers(0, 256, (n, size, size, 3), np.uint8)
    return [half.preprocess(Media("image", p, bytes([i])), settings)[0].pieces[0] for i, p in enumerate(pixels)]


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds by the clock and of the processors."""
    start, busy = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - start, time.process_time() - busy


if __name__ == "__main__":
    main()
