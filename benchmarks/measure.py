"""What the benchmarks share: towers of random weights, and sides that take turns, each measurement a process of its own.

As a program it is one such process: `python benchmarks/measure.py diptych TOWER --size 504 --runs 2 --threads 2`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parent.parent
PATCH = 14  # pixels
UNIT = 2 * PATCH


@dataclass(frozen=True)
class Tower:
    """An mmproj to be made: `clip.*` metadata, linear layers with their (out, in), and norms with their width."""

    name: str
    metadata: Mapping[str, Any]
    linear: Mapping[str, tuple[int, int]]
    norms: Mapping[str, int]
    norm_bias: bool
    width: int = 1280
    common: Mapping[str, Any] = field(
        default_factory=lambda: {
            "general.architecture": "clip",
            "general.type": "mmproj",
            "clip.has_vision_encoder": True,
            "clip.vision.image_size": 560,
            "clip.vision.patch_size": PATCH,
            "clip.vision.attention.layer_norm_epsilon": 1e-6,
            "clip.vision.image_mean": [0.48145466, 0.4578275, 0.40821073],
            "clip.vision.image_std": [0.26862954, 0.26130258, 0.27577711],
        }
    )

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor."""
        out: dict[str, tuple[int, ...]] = {f"v.patch_embd.weight{t}": (self.width, 3, PATCH, PATCH) for t in ("", ".1")}
        for name, shape in self.linear.items():
            out |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
        kinds = ("weight", "bias") if self.norm_bias else ("weight",)
        return out | {f"{name}.{kind}": (n,) for name, n in self.norms.items() for kind in kinds}


def qwen2vl(name: str, n_layer: int, n_embd: int, n_head: int, n_out: int) -> Tower:
    """A tower of Qwen2-VL's form for a text half of width `n_out`."""
    n, n_ff = n_embd, 4 * n_embd
    linear = {"mm.0": (4 * n, 4 * n), "mm.2": (n_out, 4 * n)}
    norms = ["v.post_ln"]
    for i in range(n_layer):
        linear |= {f"v.blk.{i}.attn_{part}": (n, n) for part in ("q", "k", "v", "out")}
        linear |= {f"v.blk.{i}.ffn_up": (n_ff, n), f"v.blk.{i}.ffn_down": (n, n_ff)}
        norms += [f"v.blk.{i}.ln1", f"v.blk.{i}.ln2"]
    metadata = {
        "clip.projector_type": "qwen2vl_merger",
        "clip.vision.projection_dim": n_out,
        "clip.vision.embedding_length": n,
        "clip.vision.feed_forward_length": n_ff,
        "clip.vision.block_count": n_layer,
        "clip.vision.attention.head_count": n_head,
    }
    return Tower(name, metadata, linear, dict.fromkeys(norms, n), norm_bias=True, width=n)


def add_arguments(parser: argparse.ArgumentParser, size: int) -> None:
    """The arguments every benchmark has."""
    parser.add_argument("--size", type=int, default=size, help=f"pixels a side, a multiple of {UNIT}")
    parser.add_argument("--type", choices=("f16", "f32"), default="f16", help="type of the file's weights")
    parser.add_argument("--rounds", type=int, default=2, help="processes of each side")
    parser.add_argument("--runs", type=int, default=2, help="timed runs in each process")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cache", default="/var/tmp/diptych-bench", help="folder the towers are kept in")


def made(tower: Tower, args: argparse.Namespace) -> Path:
    """The tower's file, made if the cache has none."""
    path = Path(args.cache) / f"{tower.name}-{args.type}.gguf"
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        print(f"making {path}", flush=True)
        write(path, tower, np.dtype(np.float16 if args.type == "f16" else np.float32))
    return path


def write(path: Path, tower: Tower, dtype: np.dtype[Any]) -> None:
    """Random weights, one tensor at a time."""
    from gguf import GGMLQuantizationType

    from diptych.weights import Tensor, Weights, write_gguf

    rng = np.random.default_rng(0)

    def values(name: str, shape: tuple[int, ...], type: np.dtype[Any]) -> np.ndarray:
        spread = np.prod(shape[1:]) ** -0.5 if len(shape) > 1 else 0.02
        middle = name.removesuffix(".weight") in tower.norms
        return (rng.standard_normal(shape, np.float32) * spread + middle).astype(type)

    tensors = {}
    for name, shape in tower.shapes().items():
        type = dtype if len(shape) > 1 else np.dtype(np.float32)
        kind = GGMLQuantizationType.F16 if type == np.float16 else GGMLQuantizationType.F32
        tensors[name] = Tensor(name, shape, kind, lambda name=name, shape=shape, type=type: values(name, shape, type))
    write_gguf(path, Weights({**tower.common, **tower.metadata}, tensors))


def turns(sides: Mapping[str, tuple[str, Path]], args: argparse.Namespace) -> dict[str, float]:
    """Measure sides, label → (name of a measure, tower), in turns; the median seconds of each.

    All must make the same number of tokens.
    """
    print(f"{processor()}, {args.threads} threads; {args.size}×{args.size}, {args.type} file", flush=True)
    times: dict[str, list[float]] = {label: [] for label in sides}
    for _ in range(args.rounds):
        tokens = {label: report(label, side, tower, args, times[label]) for label, (side, tower) in sides.items()}
        assert len(set(tokens.values())) == 1, f"not the same number of tokens: {tokens}"
    return {label: statistics.median(seconds) for label, seconds in times.items()}


def report(label: str, side: str, tower: Path, args: argparse.Namespace, times: list[float]) -> int:
    """Measure one side in a process of its own, print and keep its times; the number of tokens it made."""
    settings = [f"--{k}={getattr(args, k)}" for k in ("size", "runs", "threads")]
    command = [sys.executable, __file__, side, str(tower), *settings]
    found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])
    each = ", ".join(f"{t:.2f}" for t in found["times"])
    busy = ", ".join(f"{t:.2f}" for t in found["busy"])
    print(
        f"{label:24}  {each} s  (processor time {busy} s; {found['tokens']} tokens; load {found['load']:.1f} s, "
        f"peak {found['peak'] / 1024:.2f} GB)",
        flush=True,
    )
    times += found["times"]
    return int(found["tokens"])


def measure_diptych(tower: Path, size: int, runs: int, threads: int) -> dict[str, object]:
    from diptych.encoder.half import open_half
    from diptych.options import Options
    from diptych.types import Media, MediaSettings

    start = time.perf_counter()
    half = open_half(
        tower, Options(threads=threads, precision=os.environ.get("PREC", "auto"), media_runtime=os.environ.get("RT", "auto"))
    )
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


def timed(encode: Callable[[], int], runs: int, load: float) -> dict[str, object]:
    """Once to warm up, then `runs` times; seconds by the clock and of the processors, and the process's peak memory in MB."""
    tokens, times, busy = encode(), [], []
    for _ in range(runs):
        start, worked = time.perf_counter(), time.process_time()
        encode()
        times.append(time.perf_counter() - start)
        busy.append(time.process_time() - worked)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"tokens": tokens, "times": times, "busy": busy, "load": load, "peak": peak}


def picture(size: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (size, size, 3), np.uint8)


def processor() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("side", choices=tuple(MEASURES))
    parser.add_argument("tower", type=Path)
    for name in ("size", "runs", "threads"):
        parser.add_argument(f"--{name}", type=int, required=True)
    args = parser.parse_args()
    print(json.dumps(MEASURES[args.side](args.tower, args.size, args.runs, args.threads)))


if __name__ == "__main__":
    main()
