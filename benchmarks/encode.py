"""Encode one picture with a Qwen2-VL tower of MinerU2.5's size: Diptych at f32 against libmtmd.

    python benchmarks/encode.py --cache /var/tmp/diptych-bench --size 504

The towers (random weights; f16 1.3 GB, f32 2.6 GB) are made once in the cache folder. Each measurement is a process of
its own: it loads, encodes once to warm up, then `--runs` times. The two take turns.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent
N_LAYER, N_EMBD, N_HEAD, N_FF, N_OUT, PATCH = 32, 1280, 16, 5120, 896, 14
UNIT = 2 * PATCH


def main() -> None:
    args = arguments()
    if args.measure:
        print(json.dumps(MEASURES[args.measure](args.tower, args.size, args.runs, args.threads)))
        return
    folder = Path(args.cache)
    folder.mkdir(parents=True, exist_ok=True)
    tower = folder / f"tower-{args.type}.gguf"
    if not tower.exists():
        print(f"making {tower}", flush=True)
        make_tower(tower, np.float16 if args.type == "f16" else np.float32)
    print(f"{processor()}, {args.threads} threads; {args.size}×{args.size}, {args.type} file")
    times: dict[str, list[float]] = {name: [] for name in MEASURES}
    for _ in range(args.rounds):
        tokens = {name: report(name, args, tower, times[name]) for name in MEASURES}
        assert len(set(tokens.values())) == 1, f"not the same number of tokens: {tokens}"
    ours, theirs = (statistics.median(times[name]) for name in ("diptych", "libmtmd"))
    print(f"median: diptych {ours:.2f} s, libmtmd {theirs:.2f} s, {theirs / ours:.2f} times as fast")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=504, help="pixels a side, a multiple of 28")
    parser.add_argument("--type", choices=("f16", "f32"), default="f16", help="type of the file's weights")
    parser.add_argument("--rounds", type=int, default=2, help="processes of each side")
    parser.add_argument("--runs", type=int, default=2, help="timed runs in each process")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cache", default="/var/tmp/diptych-bench", help="folder the towers are kept in")
    parser.add_argument("--measure", choices=tuple(MEASURES), help=argparse.SUPPRESS)
    parser.add_argument("--tower", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.size % UNIT:
        parser.error(f"--size {args.size} is not a multiple of {UNIT}")
    return args


def report(name: str, args: argparse.Namespace, tower: Path, times: list[float]) -> int:
    """Measure one side in a process of its own, print and keep its times; the number of tokens it made."""
    settings = [f"--{k}={getattr(args, k)}" for k in ("size", "runs", "threads")]
    command = [sys.executable, __file__, f"--measure={name}", f"--tower={tower}", *settings]
    made = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    each = ", ".join(f"{t:.2f}" for t in made["times"])
    print(
        f"{name:8}  {each} s  ({made['tokens']} tokens; load {made['load']:.1f} s, peak {made['peak'] / 1024:.2f} GB)", flush=True
    )
    times += made["times"]
    return int(made["tokens"])


def measure_diptych(tower: Path, size: int, runs: int, threads: int) -> dict[str, object]:
    from diptych.encoder.half import open_half
    from diptych.options import Options
    from diptych.types import Media, MediaSettings

    start = time.perf_counter()
    half = open_half(tower, Options(threads=threads))
    load = time.perf_counter() - start
    media = Media("image", picture(size), b"")

    def encode() -> int:
        (chunk,) = half.preprocess(media, MediaSettings(max_pixels=size * size))
        return len(half.encode(chunk.pieces)[0])

    return timed(encode, runs, load)


def measure_libmtmd(tower: Path, size: int, runs: int, threads: int) -> dict[str, object]:
    sys.path.insert(0, str(ROOT / "tests"))
    from mtmd import Mtmd

    start = time.perf_counter()
    model = Mtmd(tower, max_tokens=(size // UNIT) ** 2, n_threads=threads)
    load = time.perf_counter() - start
    return timed(lambda: len(model.encode(picture(size))[0]), runs, load)


MEASURES = {"diptych": measure_diptych, "libmtmd": measure_libmtmd}


def timed(encode, runs: int, load: float) -> dict[str, object]:
    """Once to warm up, then `runs` times; seconds, and the process's peak memory in MB."""
    tokens, times = encode(), []
    for _ in range(runs):
        start = time.perf_counter()
        encode()
        times.append(time.perf_counter() - start)
    return {"tokens": tokens, "times": times, "load": load, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def picture(size: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (size, size, 3), np.uint8)


def make_tower(path: Path, dtype: type[np.generic]) -> None:
    """Random weights, one tensor at a time."""
    import gguf

    part = path.with_suffix(".part")
    writer = gguf.GGUFWriter(part, "clip")
    writer.add_type("mmproj")
    writer.add_clip_has_vision_encoder(True)
    writer.add_clip_projector_type("qwen2vl_merger")
    writer.add_vision_projection_dim(N_OUT)
    writer.add_vision_image_size(560)
    writer.add_vision_patch_size(PATCH)
    writer.add_vision_embedding_length(N_EMBD)
    writer.add_vision_feed_forward_length(N_FF)
    writer.add_vision_block_count(N_LAYER)
    writer.add_vision_head_count(N_HEAD)
    writer.add_vision_attention_layernorm_eps(1e-6)
    writer.add_vision_image_mean([0.48145466, 0.4578275, 0.40821073])
    writer.add_vision_image_std([0.26862954, 0.26130258, 0.27577711])
    types = {name: np.dtype(dtype if len(shape) > 1 else np.float32) for name, shape in shapes().items()}
    for name, shape in shapes().items():
        writer.add_tensor_info(name, shape, types[name], int(np.prod(shape)) * types[name].itemsize)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    rng = np.random.default_rng(0)
    for name, shape in shapes().items():
        values = rng.standard_normal(shape, np.float32) * (np.prod(shape[1:]) ** -0.5 if len(shape) > 1 else 0.02)
        writer.write_tensor_data((values + is_scale(name)).astype(types[name]))
    writer.close()
    part.replace(path)


def is_scale(name: str) -> bool:
    return name.endswith((".ln1.weight", ".ln2.weight", "post_ln.weight"))


def shapes() -> dict[str, tuple[int, ...]]:
    """Every tensor of the tower."""
    linear = {"mm.0": (4 * N_EMBD, 4 * N_EMBD), "mm.2": (N_OUT, 4 * N_EMBD)}
    out: dict[str, tuple[int, ...]] = {f"v.patch_embd.weight{t}": (N_EMBD, 3, PATCH, PATCH) for t in ("", ".1")}
    norms = ["v.post_ln"]
    for i in range(N_LAYER):
        linear |= {f"v.blk.{i}.attn_{n}": (N_EMBD, N_EMBD) for n in ("q", "k", "v", "out")}
        linear |= {f"v.blk.{i}.ffn_up": (N_FF, N_EMBD), f"v.blk.{i}.ffn_down": (N_EMBD, N_FF)}
        norms += [f"v.blk.{i}.ln1", f"v.blk.{i}.ln2"]
    for name, shape in linear.items():
        out |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return out | {f"{name}.{kind}": (N_EMBD,) for name in norms for kind in ("weight", "bias")}


def processor() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
