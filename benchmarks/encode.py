"""Encode one picture with a Qwen2-VL tower of MinerU2.5's size: Diptych at f32 against libmtmd.

    python benchmarks/encode.py --cache /var/tmp/diptych-bench --size 504

The towers (random weights; f16 1.3 GB, f32 2.6 GB) are made once in the cache folder. Each measurement is a process of
its own: it loads, encodes once to warm up, then `--runs` times. The two take turns.
"""

from __future__ import annotations

import argparse

from measure import UNIT, add_arguments, made, qwen2vl, turns

N_LAYER, N_EMBD, N_HEAD, N_OUT = 32, 1280, 16, 896


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, size=504)
    args = parser.parse_args()
    if args.size % UNIT:
        parser.error(f"--size {args.size} is not a multiple of {UNIT}")
    tower = made(qwen2vl("tower", N_LAYER, N_EMBD, N_HEAD, N_OUT), args)
    seconds = turns({side: (side, tower) for side in ("diptych", "libmtmd")}, args)
    ours, theirs = seconds["diptych"], seconds["libmtmd"]
    print(f"median: diptych {ours:.2f} s, libmtmd {theirs:.2f} s, {theirs / ours:.2f} times as fast")


if __name__ == "__main__":
    main()
