"""Whether memory stays flat: many pictures of many sizes through one media half, each runtime a process of its own.

    python benchmarks/sizes.py --cache /var/tmp/diptych-bench --images 1000 --sizes 50

A small Qwen2-VL tower (random weights, made once in the cache folder), so that what is kept for each size would show beside
the weights. The memory is that of the process, after each tenth of the pictures; what the largest picture takes comes first.
"""

from __future__ import annotations

import argparse
import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from measure import UNIT, made, processor, qwen2vl

N_LAYER, N_EMBD, N_HEAD, N_OUT = 4, 256, 4, 256
ARITHMETIC = (("f32", "onnxruntime"), ("int8", "onnxruntime"), ("f32", "openvino"), ("bf16", "openvino"), ("int8", "openvino"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--sizes", type=int, default=50)
    parser.add_argument("--largest", type=int, default=560, help=f"pixels of the longest side, a multiple of {UNIT}")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--arithmetic", nargs="+", default=["/".join(pair) for pair in ARITHMETIC], help="PRECISION/RUNTIME")
    parser.add_argument("--cache", default="/var/tmp/diptych-bench", help="folder the tower is kept in")
    parser.add_argument("--measure", metavar="TOWER", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        return measure(Path(args.measure), args)
    tower = made(qwen2vl(f"sizes-{N_LAYER}-layers", N_LAYER, N_EMBD, N_HEAD, N_OUT), args)
    print(f"{processor()}, {args.threads} threads; {args.images} pictures of {args.sizes} sizes; MB of the process", flush=True)
    for pair in args.arithmetic:
        given = [f"--{name}={getattr(args, name)}" for name in ("images", "sizes", "largest", "threads")]
        subprocess.run([sys.executable, __file__, "--measure", str(tower), "--arithmetic", pair, *given], check=True)


def measure(tower: Path, args: argparse.Namespace) -> None:
    """Print the process's memory with all sizes seen once, then after each tenth of the pictures."""
    from diptych.encoder.half import open_half
    from diptych.options import Options
    from diptych.types import Media, MediaSettings

    precision, runtime = args.arithmetic[0].split("/")
    half = open_half(tower, Options(threads=args.threads, precision=precision, media_runtime=runtime))
    found = [resident()]
    for i, (width, height) in enumerate(itertools.islice(itertools.cycle(sizes(args.sizes, args.largest)), args.images)):
        pixels = np.full((height, width, 3), i % 256, np.uint8)
        (chunk,) = half.preprocess(Media("image", pixels, b""), MediaSettings(min_pixels=1))
        half.encode(chunk.pieces)
        if (i + 1) % max(args.images // 10, 1) == 0 or i + 1 == args.sizes:
            found.append(resident())
    print(f"{precision:5} {runtime:12} " + " ".join(f"{mb:5.0f}" for mb in found), flush=True)


def sizes(n: int, largest: int) -> list[tuple[int, int]]:
    """n different sizes, (width, height), the largest first."""
    sides = range(largest, 0, -UNIT)
    every = sorted(itertools.product(sides, sides), key=lambda size: -size[0] * size[1])
    return [every[round(i)] for i in np.linspace(0, len(every) - 1, n)]


def resident() -> float:
    """Memory of this process in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


if __name__ == "__main__":
    main()
