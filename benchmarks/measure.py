"""What the benchmarks share: towers of random weights, and sides that take turns, each measurement a process of its own.

As a program it is one such process: `python benchmarks/measure.py diptych:int8 TOWER --size 504 --runs 2 --threads 2`.
A side is `libmtmd`, or `diptych:PRECISION`, or `diptych:PRECISION:RUNTIME`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
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
    """An mmproj to be made: `clip.*` metadata, linear layers with their (out, in), norms with their width, learned tables."""

    name: str
    metadata: Mapping[str, Any]
    linear: Mapping[str, tuple[int, int]]
    norms: Mapping[str, int]
    norm_bias: bool
    width: int = 1280
    patch: int = PATCH
    tables: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    common: Mapping[str, Any] = field(
        default_factory=lambda: {
            "general.architecture": "clip",
            "general.type": "mmproj",
            "clip.has_vision_encoder": True,
            "clip.vision.image_size": 560,
            "clip.vision.attention.layer_norm_epsilon": 1e-6,
            "clip.vision.image_mean": [0.48145466, 0.4578275, 0.40821073],
            "clip.vision.image_std": [0.26862954, 0.26130258, 0.27577711],
        }
    )

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor."""
        out: dict[str, tuple[int, ...]] = {f"v.patch_embd.weight{t}": (self.width, 3, self.patch, self.patch) for t in ("", ".1")}
        for name, shape in self.linear.items():
            out |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
        out |= {f"{name}.weight": shape for name, shape in self.tables.items()}
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
    parser.add_argument("--rounds", type=int, default=2, help="processes of each side")
    parser.add_argument("--runs", type=int, default=2, help="timed runs in each process")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cache", default="/var/tmp/diptych-bench", help="folder the towers are kept in")


def made(tower: Tower, args: argparse.Namespace, type: str = "F16") -> Path:
    """The tower's file in a type of GGUF's, made if the cache has none."""
    path = Path(args.cache) / f"{tower.name}-{type.lower()}.gguf"
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        print(f"making {path}", flush=True)
        write(path, tower, type)
    return path


def write(path: Path, tower: Tower, type: str = "F16") -> None:
    """Random weights, one tensor at a time; those with one axis are float32, kernels of patches at least float16."""
    import gguf

    from diptych.weights import Tensor, Weights, write_gguf

    rng = np.random.default_rng(0)
    wanted = gguf.GGMLQuantizationType[type]

    def values(name: str, shape: tuple[int, ...], kind: gguf.GGMLQuantizationType) -> np.ndarray:
        spread = np.prod(shape[1:]) ** -0.5 if len(shape) > 1 else 0.02
        middle = name.removesuffix(".weight") in tower.norms
        return gguf.quants.quantize(rng.standard_normal(shape, np.float32) * spread + middle, kind)

    tensors = {}
    for name, shape in tower.shapes().items():
        kind = gguf.GGMLQuantizationType.F32 if len(shape) == 1 else wanted
        if len(shape) > 2 and kind not in (gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16):
            kind = gguf.GGMLQuantizationType.F16
        tensors[name] = Tensor(name, shape, kind, lambda name=name, shape=shape, kind=kind: values(name, shape, kind))
    write_gguf(path, Weights({**tower.common, "clip.vision.patch_size": tower.patch, **tower.metadata}, tensors))


@dataclass
class Figures:
    """What was measured of a side: seconds of its runs, the most memory in GB, and the seconds each process took to load."""

    times: list[float] = field(default_factory=list)
    peaks: list[float] = field(default_factory=list)
    loads: list[float] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        return statistics.median(self.times)


def turns(sides: Mapping[str, tuple[str, Path]], args: argparse.Namespace, size: int = 0) -> dict[str, Figures]:
    """Measure sides, label → (side, tower), in turns, each time in a process of its own.

    All must make the same number of tokens.
    """
    size = size or args.size
    print(f"{processor()}, {args.threads} threads; {size}×{size}", flush=True)
    found = {label: Figures() for label in sides}
    for _ in range(args.rounds):
        tokens = {label: report(label, side, tower, size, args, found[label]) for label, (side, tower) in sides.items()}
        assert len(set(tokens.values())) == 1, f"not the same number of tokens: {tokens}"
    return found


def report(label: str, side: str, tower: Path, size: int, args: argparse.Namespace, figures: Figures) -> int:
    """Measure one side in a process of its own, print and keep what was found; the number of tokens it made."""
    settings = [f"--size={size}", *(f"--{k}={getattr(args, k)}" for k in ("runs", "threads"))]
    command = [sys.executable, __file__, side, str(tower), *settings]
    found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])
    each = ", ".join(f"{t:.2f}" for t in found["times"])
    busy = ", ".join(f"{t:.2f}" for t in found["busy"])
    print(
        f"{label:24}  {each} s, the first {found['first']:.2f} s  (processor time {busy} s; {found['tokens']} tokens; "
        f"load {found['load']:.1f} s, peak {found['peak'] / 1024:.2f} GB)",
        flush=True,
    )
    figures.times += found["times"]
    figures.peaks.append(found["peak"] / 1024)
    figures.loads.append(found["load"])
    return int(found["tokens"])


def measure_diptych(tower: Path, size: int, runs: int, threads: int, arithmetic: str) -> dict[str, object]:
    from diptych.encoder.half import open_half
    from diptych.options import Options
    from diptych.types import Media, MediaSettings

    precision, _, runtime = arithmetic.partition(":")
    asked = {"threads": threads, "precision": precision or "auto", "media_runtime": runtime or "auto", "warmup": True}
    start = time.perf_counter()
    half = open_half(tower, Options.model_validate(asked))
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


def timed(encode: Callable[[], int], runs: int, load: float) -> dict[str, object]:
    """Once to warm up, then `runs` times; seconds by the clock and of the processors, and the process's peak memory in MB."""
    start = time.perf_counter()
    tokens, first = encode(), time.perf_counter() - start
    times, busy = [], []
    for _ in range(runs):
        start, worked = time.perf_counter(), time.process_time()
        encode()
        times.append(time.perf_counter() - start)
        busy.append(time.process_time() - worked)
    return {"tokens": tokens, "first": first, "times": times, "busy": busy, "load": load, "peak": peak_memory(os.getpid())}


def peak_memory(pid: int) -> float:
    """The most memory a process had, in MB. getrusage's figure begins with what its parent had when it was started."""
    return memory("VmHWM", pid)


def memory(name: str, pid: int) -> float:
    """One of the figures of memory that Linux has of a process, in MB."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) / 1024 if found else float("nan")


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
    parser.add_argument("side")
    parser.add_argument("tower", type=Path)
    for name in ("size", "runs", "threads"):
        parser.add_argument(f"--{name}", type=int, required=True)
    args = parser.parse_args()
    name, _, arithmetic = args.side.partition(":")
    if name == "libmtmd":
        found = measure_libmtmd(args.tower, args.size, args.runs, args.threads)
    else:
        found = measure_diptych(args.tower, args.size, args.runs, args.threads, arithmetic)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
