"""What a photo of 24 megapixels takes at the limits that published models come with, each model a process of its own.

    python benchmarks/photo.py --cache /var/tmp/diptych-bench --precision auto

Towers of random weights in the shapes of Qwen2-VL and Qwen2.5-VL, whose limit is 12.8 megapixels, and of Qwen3-VL, whose
limit is 16.8; they are made once in the cache folder (f16, 0.8 to 1.4 GB each). Memory is that of the process: before the
model is loaded, with model and photo ready to be encoded, and the most while it is encoded. The largest take minutes.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from measure import Tower, made, memory, processor, qwen2vl
from windows import EVERY, qwen25vl

PHOTO = 6000, 4000  # pixels
LIMIT = 12_845_056  # pixels, of Qwen2-VL's and Qwen2.5-VL's published preprocessor_config.json
SIDE = 48  # of Qwen3-VL's table of positions
QWEN3VL = {  # layers, width, width of the MLP, of the text half, layers that are tapped
    "qwen3vl-2b": (24, 1024, 4096, 2048, (5, 11, 17)),
    "qwen3vl-8b": (27, 1152, 4304, 4096, (8, 16, 24)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["qwen2vl", "qwen25vl", *QWEN3VL])
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cache", default="/var/tmp/diptych-bench", help="folder the towers are kept in")
    parser.add_argument("--measure", metavar="TOWER", help=argparse.SUPPRESS)
    parser.add_argument("--load-alone", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        return measure(Path(args.measure), args)
    print(f"{processor()}, {args.threads} threads; a photo of {PHOTO[0]}×{PHOTO[1]}", flush=True)
    for model in args.models:
        command = [sys.executable, __file__, "--measure", str(made(tower(model), args))]
        settings = [f"--{name}={getattr(args, name)}" for name in ("precision", "threads")]
        subprocess.run([*command, *settings, "--load-alone"], check=True)  # so that its weights are in the cache
        done = subprocess.run([*command, *settings], check=True, stdout=subprocess.PIPE, text=True)
        print(f"{model:12} {done.stdout.splitlines()[-1]}", flush=True)


def tower(model: str) -> Tower:
    """One of the models in its published shape."""
    limit = {"clip.vision.image_max_pixels": LIMIT}
    if model == "qwen2vl":
        plain = qwen2vl("photo-qwen2vl", 32, 1280, 16, 1536)
        return replace(plain, metadata={**plain.metadata, **limit})
    if model == "qwen25vl":
        plain = qwen25vl(32, EVERY)
        return replace(plain, name="photo-qwen25vl", metadata={**plain.metadata, **limit})
    return qwen3vl(model, *QWEN3VL[model])


def qwen3vl(name: str, n_layer: int, n: int, n_ff: int, n_out: int, tapped: tuple[int, ...]) -> Tower:
    """A tower of Qwen3-VL's form."""
    linear = {"mm.0": (4 * n, 4 * n), "mm.2": (n_out, 4 * n)}
    norms = {"v.post_ln": n}
    for i in range(n_layer):
        linear |= {f"v.blk.{i}.attn_qkv": (3 * n, n), f"v.blk.{i}.attn_out": (n, n)}
        linear |= {f"v.blk.{i}.ffn_up": (n_ff, n), f"v.blk.{i}.ffn_down": (n, n_ff)}
        norms |= {f"v.blk.{i}.ln1": n, f"v.blk.{i}.ln2": n}
    for i in tapped:
        linear |= {f"v.deepstack.{i}.fc1": (4 * n, 4 * n), f"v.deepstack.{i}.fc2": (n_out, 4 * n)}
        norms[f"v.deepstack.{i}.norm"] = 4 * n
    metadata = {
        "clip.projector_type": "qwen3vl_merger",
        "clip.use_gelu": True,
        "clip.vision.projection_dim": n_out,
        "clip.vision.embedding_length": n,
        "clip.vision.feed_forward_length": n_ff,
        "clip.vision.block_count": n_layer,
        "clip.vision.attention.head_count": 16,
    }
    tables = {"v.position_embd": (SIDE**2, n)}
    return Tower(f"photo-{name}", metadata, linear, norms, norm_bias=True, width=n, patch=16, tables=tables)


def measure(path: Path, args: argparse.Namespace) -> None:
    """Load a tower, and encode the photo unless it is to be loaded alone."""
    from diptych.encoder.half import open_half
    from diptych.options import Options
    from diptych.types import Media, MediaSettings

    before = gigabytes("VmRSS")
    half = open_half(path, Options(threads=args.threads, precision=args.precision, warmup=True))
    if args.load_alone:
        return
    pixels = np.random.default_rng(0).integers(0, 256, (PHOTO[1], PHOTO[0], 3), np.uint8)
    (chunk,) = half.preprocess(Media("image", pixels, b""), MediaSettings())
    del pixels
    ready = gigabytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    start = time.perf_counter()
    rows = half.encode(chunk.pieces)[0]
    seconds, peak = time.perf_counter() - start, gigabytes("VmHWM")
    print(
        f"seen as {'×'.join(map(str, chunk.used or ()))}, {len(rows)} tokens of {rows.shape[1]}: {seconds:.0f} s; "
        f"{before:.2f} GB before, {ready:.2f} with model and photo, at most {peak:.2f}",
        flush=True,
    )


def gigabytes(name: str) -> float:
    """One of the figures of memory that Linux has of this process."""
    return memory(name, os.getpid()) * 2**20 / 1e9


if __name__ == "__main__":
    main()
