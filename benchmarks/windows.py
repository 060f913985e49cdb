"""What windows save: a Qwen2.5-VL tower, and the same one with every layer seeing the whole picture.

    python benchmarks/windows.py --cache /var/tmp/diptych-bench --size 1036

Diptych against libmtmd. The towers (random weights; f16 1.4 GB each) are made once in the cache folder.
`--layers 8` is a quarter of them, one of which sees the whole picture, as one in eight does in the whole. Each measurement
is a process of its own: it loads, encodes once to warm up, then `--runs` times. The four take turns.
"""

from __future__ import annotations

import argparse

from measure import UNIT, Tower, add_arguments, made, turns

N_EMBD, N_HEAD, N_FF, N_OUT = 1280, 16, 3420, 2048  # Qwen2.5-VL-3B's
EVERY = 8  # layers, the last of which sees the whole picture


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, size=1036)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--precision", default="f32")
    args = parser.parse_args()
    if args.size % UNIT:
        parser.error(f"--size {args.size} is not a multiple of {UNIT}")
    windows, whole = (made(qwen25vl(args.layers, every), args) for every in (EVERY, 0))
    found = turns(
        {
            "diptych": (f"diptych:{args.precision}", windows),
            "libmtmd": ("libmtmd", windows),
            "diptych, no windows": (f"diptych:{args.precision}", whole),
            "libmtmd, no windows": ("libmtmd", whole),
        },
        args,
    )
    seconds = {label: figures.seconds for label, figures in found.items()}
    ours, theirs = seconds["diptych"], seconds["libmtmd"]
    print(f"median: diptych {ours:.2f} s, libmtmd {theirs:.2f} s, {theirs / ours:.2f} times as fast")
    for side in ("diptych", "libmtmd"):
        with_, without = seconds[side], seconds[f"{side}, no windows"]
        print(f"windows in {side}: {with_:.2f} s where all layers full take {without:.2f} s, {without / with_:.2f} times as fast")


def qwen25vl(n_layer: int, every: int) -> Tower:
    """`every`: 0 for all layers full, as llama.cpp has it."""
    linear = {"mm.0": (4 * N_EMBD, 4 * N_EMBD), "mm.2": (N_OUT, 4 * N_EMBD)}
    norms = ["v.post_ln"]
    for i in range(n_layer):
        linear |= {f"v.blk.{i}.attn_{n}": (N_EMBD, N_EMBD) for n in ("q", "k", "v", "out")}
        linear |= {f"v.blk.{i}.ffn_{n}": (N_FF, N_EMBD) for n in ("gate", "up")} | {f"v.blk.{i}.ffn_down": (N_EMBD, N_FF)}
        norms += [f"v.blk.{i}.ln1", f"v.blk.{i}.ln2"]
    metadata = {
        "clip.projector_type": "qwen2.5vl_merger",
        "clip.use_silu": True,
        "clip.vision.projection_dim": N_OUT,
        "clip.vision.embedding_length": N_EMBD,
        "clip.vision.feed_forward_length": N_FF,
        "clip.vision.block_count": n_layer,
        "clip.vision.attention.head_count": N_HEAD,
        "clip.vision.n_wa_pattern": every,
    }
    name = f"qwen25vl-{n_layer}-layers-{'windows' if every else 'full'}"
    return Tower(name, metadata, linear, dict.fromkeys(norms, N_EMBD), norm_bias=False)


if __name__ == "__main__":
    main()
