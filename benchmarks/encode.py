"""Encode one picture with a Qwen2-VL tower of MinerU2.5's size: Diptych in several precisions against libmtmd.

    python benchmarks/encode.py --cache /var/tmp/diptych-bench --sizes 504 1036

libmtmd reads the f16 and the Q8_0 file; the faster of the two is what Diptych is held against, and the memory of the f16
run. The towers (random weights; 1.3 and 0.7 GB) are made once in the cache folder. Each measurement is a process of its
own: it loads, encodes once to warm up, then `--runs` times. The sides take turns. `--layers` makes a smaller tower.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from measure import UNIT, add_arguments, made, qwen2vl, turns

N_LAYER, N_EMBD, N_HEAD, N_OUT = 32, 1280, 16, 896
PRECISIONS = ("auto", "f32", "bf16", "int8:openvino", "int8:onnxruntime")
F16, Q8_0 = "libmtmd f16", "libmtmd Q8_0"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, size=504)
    parser.add_argument("--sizes", type=int, nargs="+", help="several of them")
    parser.add_argument("--layers", type=int, default=N_LAYER)
    parser.add_argument("--precisions", nargs="*", default=PRECISIONS, help="precision, or precision:runtime")
    args = parser.parse_args()
    sizes = args.sizes or [args.size]
    if wrong := [size for size in sizes if size % UNIT]:
        parser.error(f"{wrong[0]} is not a multiple of {UNIT}")
    shape = qwen2vl("tower" if args.layers == N_LAYER else f"tower-{args.layers}", args.layers, N_EMBD, N_HEAD, N_OUT)
    file, small = made(shape, args), made(shape, args, "Q8_0")
    sides = {f"diptych {p}": (f"diptych:{p}", file) for p in args.precisions}
    peak = product_peak()
    print(f"products of 2048×2048 float32 matrices by NumPy: {peak:.0f} GFLOP/s", flush=True)
    for size in sizes:
        found = turns({**sides, F16: ("libmtmd", file), Q8_0: ("libmtmd", small)}, args, size)
        fastest = min(found[F16].seconds, found[Q8_0].seconds)
        work = flop(size, args.layers)
        for label, figures in found.items():
            print(
                f"{size:5} {label:26} {figures.seconds:6.2f} s   {fastest / figures.seconds:5.2f} times as fast as libmtmd   "
                f"{max(figures.peaks):5.2f} GB, {max(figures.peaks) / max(found[F16].peaks):4.2f} of its f16 run's, "
                f"{max(figures.peaks) / max(found[Q8_0].peaks):4.2f} of its Q8_0 run's   "
                f"{work / figures.seconds / 1e9:5.0f} GFLOP/s   load {figures.loads[0]:.1f}, then {min(figures.loads):.1f} s",
                flush=True,
            )


def flop(size: int, n_layer: int) -> float:
    """Floating-point operations of linear layers and attention, without the projector's 2 %."""
    n = (size * size) // (UNIT // 2) ** 2
    return n_layer * (24 * n * N_EMBD**2 + 4 * n * n * N_EMBD)


def product_peak() -> float:
    """GFLOP/s of a product of float32 matrices, the best of ten."""
    a = np.random.default_rng(0).standard_normal((2048, 2048), np.float32)
    times = []
    for _ in range(10):
        start = time.perf_counter()
        a @ a
        times.append(time.perf_counter() - start)
    return 2 * 2048**3 / min(times) / 1e9


if __name__ == "__main__":
    main()
