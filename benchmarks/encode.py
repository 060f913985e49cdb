"""Encode one picture with a Qwen2-VL tower of MinerU2.5's size: Diptych at f32 against libmtmd.

    python benchmarks/encode.py --cache /var/tmp/diptych-bench --size 504

The towers (random weights; f16 1.3 GB, f32 2.6 GB) are made once in the cache folder. Each measurement is a process of
its own: it loads, encodes once to warm up, then `--runs` times. The two take turns.
"""

from __future__ import annotations

import argparse

from measure import UNIT, Tower, add_arguments, made, turns

N_LAYER, N_EMBD, N_HEAD, N_FF, N_OUT = 32, 1280, 16, 5120, 896


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, size=504)
    args = parser.parse_args()
    if args.size % UNIT:
        parser.error(f"--size {args.size} is not a multiple of {UNIT}")
    tower = made(qwen2vl(), args)
    seconds = turns({side: (side, tower) for side in ("diptych", "libmtmd")}, args)
    ours, theirs = seconds["diptych"], seconds["libmtmd"]
    print(f"median: diptych {ours:.2f} s, libmtmd {theirs:.2f} s, {theirs / ours:.2f} times as fast")


def qwen2vl() -> Tower:
    linear = {"mm.0": (4 * N_EMBD, 4 * N_EMBD), "mm.2": (N_OUT, 4 * N_EMBD)}
    norms = ["v.post_ln"]
    for i in range(N_LAYER):
        linear |= {f"v.blk.{i}.attn_{n}": (N_EMBD, N_EMBD) for n in ("q", "k", "v", "out")}
        linear |= {f"v.blk.{i}.ffn_up": (N_FF, N_EMBD), f"v.blk.{i}.ffn_down": (N_EMBD, N_FF)}
        norms += [f"v.blk.{i}.ln1", f"v.blk.{i}.ln2"]
    metadata = {
        "clip.projector_type": "qwen2vl_merger",
        "clip.vision.projection_dim": N_OUT,
        "clip.vision.embedding_length": N_EMBD,
        "clip.vision.feed_forward_length": N_FF,
        "clip.vision.block_count": N_LAYER,
        "clip.vision.attention.head_count": N_HEAD,
    }
    return Tower("tower", metadata, linear, dict.fromkeys(norms, N_EMBD), norm_bias=True)


if __name__ == "__main__":
    main()
