"""What a media half takes, as predicted, against the growth of a process that runs it; and what is refused for it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from gguf import GGMLQuantizationType

import tiny
from diptych import convert, families
from diptych.encoder import memory
from diptych.encoder.half import FamilyHalf
from diptych.encoder.memory import MIB, predict
from diptych.encoder.precision import Choice, choose
from diptych.errors import EngineError, MediaTooLarge, MissingExtra
from diptych.families.packed import Packed
from diptych.families.qwen2vl import Qwen2VL
from diptych.options import Options
from diptych.types import Media, MediaSettings
from diptych.weights import Tensor, Weights, open_gguf, write_gguf
from diptych.weights.tensor import elsewhere
from pictures import noise

WITHIN = 0.2  # of the measured peak
PATCH = 14  # pixels
SIZES = (392, 644)  # pixels a side: 784 and 2,116 patches
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process is read from Linux's /proc")

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Tower:
    """An encoder large enough for its arrays to show: random weights of `shapes` and what tells its form."""

    projector: str
    metadata: dict[str, Any]
    shapes: Shapes

    def told(self, n: int, n_ff: int, n_layer: int, n_out: int) -> dict[str, Any]:
        return {
            "general.architecture": "clip", "clip.has_vision_encoder": True, "clip.projector_type": self.projector,
            "clip.vision.image_size": 560, "clip.vision.patch_size": PATCH, "clip.vision.attention.layer_norm_epsilon": 1e-6,
            "clip.vision.image_mean": [0.5] * 3, "clip.vision.image_std": [0.5] * 3, "clip.vision.projection_dim": n_out,
            "clip.vision.embedding_length": n, "clip.vision.feed_forward_length": n_ff, "clip.vision.block_count": n_layer,
            "clip.vision.attention.head_count": n // 64, **self.metadata,
        }  # fmt: skip

    def write(self, path: Path, *sizes: int) -> Path:
        rng = np.random.default_rng(0)

        def tensor(name: str, shape: tuple[int, ...]) -> Tensor:
            narrow = len(shape) > 1
            kind = GGMLQuantizationType.F16 if narrow else GGMLQuantizationType.F32
            values = (rng.standard_normal(shape, np.float32) * 0.02).astype(np.float16 if narrow else np.float32)
            return Tensor(name, shape, kind, lambda: values)

        write_gguf(path, Weights(self.told(*sizes), {name: tensor(name, shape) for name, shape in self.shapes.items()}))
        return path


def linear(**layers: tuple[int, int]) -> Shapes:
    """Weights and biases of layers; a double underscore in a name stands for a dot."""
    out: Shapes = {}
    for name, shape in layers.items():
        out |= {f"{name.replace('__', '.')}.weight": shape, f"{name.replace('__', '.')}.bias": shape[:1]}
    return out


def tower(
    name: str, n: int = 640, n_layer: int = 3, n_out: int = 512, n_ff: int | None = None, taps: tuple[int, ...] = (1,)
) -> tuple[Tower, tuple[int, int, int, int]]:
    n_ff = n_ff or (1712 if name == "qwen2.5vl" else 4 * n)
    shapes: Shapes = {f"v.patch_embd.weight{t}": (n, 3, PATCH, PATCH) for t in ("", ".1")}
    shapes |= linear(mm__0=(4 * n, 4 * n), mm__2=(n_out, 4 * n)) | norm("v.post_ln", n)
    for i in range(n_layer):
        blk = f"v__blk__{i}"
        inner = ("up", "gate") if name == "qwen2.5vl" else ("up",)
        parts = {"qkv": (3 * n, n)} if name == "qwen3vl" else dict.fromkeys(("q", "k", "v"), (n, n))
        layers = {f"{blk}__attn_{part}": shape for part, shape in {**parts, "out": (n, n)}.items()}
        layers |= {f"{blk}__ffn_{part}": (n_ff, n) for part in inner} | {f"{blk}__ffn_down": (n, n_ff)}
        shapes |= linear(**layers) | norm(f"v.blk.{i}.ln1", n) | norm(f"v.blk.{i}.ln2", n)
    metadata: dict[str, Any] = {}
    if name == "qwen2.5vl":
        metadata["clip.vision.n_wa_pattern"] = n_layer
    if name == "qwen3vl":
        shapes |= {"v.position_embd.weight": (2304, n), "v.patch_embd.bias": (n,)}
        for i in taps:
            inner = {f"v__deepstack__{i}__fc1": (4 * n, 4 * n), f"v__deepstack__{i}__fc2": (n_out, 4 * n)}
            shapes |= linear(**inner) | norm(f"v.deepstack.{i}.norm", 4 * n)
    return Tower(f"{name}_merger", metadata, shapes), (n, n_ff, n_layer, n_out)


def norm(name: str, n: int) -> Shapes:
    return {f"{name}.weight": (n,), f"{name}.bias": (n,)}


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("towers")
    out = {}
    for name in ("qwen2vl", "qwen2.5vl", "qwen3vl"):
        made, sizes = tower(name)
        out[name] = made.write(folder / f"{name}.gguf", *sizes)
    made, sizes = tower("qwen2vl")
    made.shapes.update({f"v.blk.{i}.attn_{part}_norm.weight": (64,) for i in range(sizes[2]) for part in "qk"})
    out["head norms"] = made.write(folder / "head-norms.gguf", *sizes)
    return out


def available(precision: str, runtime: str) -> Choice:
    """What such a half computes in; the test is skipped on a machine that cannot."""
    try:
        return choose(Options(precision=precision, media_runtime=runtime, threads=1))  # type: ignore[arg-type]
    except (EngineError, MissingExtra) as error:
        pytest.skip(str(error))


CHILD = """
import json, sys
from pathlib import Path
import numpy as np, onnxruntime
from diptych import families
from diptych.encoder.half import FamilyHalf
from diptych.options import Options
from diptych.types import Media, MediaSettings
path, precision, runtime, *sides = sys.argv[1:]
if runtime == "openvino":
    import openvino
def mb(field):
    line = next(line for line in open("/proc/self/status") if line.startswith(field))
    return int(line.split()[1]) * 1024
start = mb("VmRSS")
half = FamilyHalf(families.open_family(Path(path)), Options(precision=precision, media_runtime=runtime, threads=1))
half.warm_up()
out = []
for side in map(int, sides):
    pixels = np.zeros((side, side, 3), np.uint8)
    (chunk,) = half.preprocess(Media("image", pixels, b""), MediaSettings(min_pixels=1, max_pixels=side**2))
    open("/proc/self/clear_refs", "w").write("5")  # the peak begins anew
    half.encode(chunk.pieces)
    fed = sum(a.nbytes for piece in chunk.pieces for a in piece.inputs.values())
    out.append(mb("VmHWM") - start - fed)
print(json.dumps(out))
"""


def peaks(
    path: Path, sides: list[str], before: str = "", precision: str = "int8", runtime: str = "kernels", **environment: str
) -> list[int]:
    """Bytes that a media half takes at most, with square pictures one after the other, in a process of its own."""
    command = [sys.executable, "-c", before + CHILD, str(path), precision, runtime, *sides]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **environment})
    out: list[int] = json.loads(done.stdout.splitlines()[-1])
    return out


@LINUX
@pytest.mark.parametrize(
    ("name", "precision", "runtime"),
    [
        ("qwen2vl", "f32", "onnxruntime"),
        ("qwen2vl", "int8", "onnxruntime"),
        ("qwen2vl", "int8", "kernels"),
        ("head norms", "int8", "kernels"),
        ("qwen2vl", "f32", "openvino"),
        ("qwen2vl", "bf16", "openvino"),
        ("qwen2vl", "int8", "openvino"),
        ("qwen2.5vl", "f32", "onnxruntime"),
        ("qwen2.5vl", "int8", "kernels"),
        ("qwen2.5vl", "int8", "openvino"),
        ("qwen3vl", "f32", "onnxruntime"),
        ("qwen3vl", "int8", "kernels"),
        ("qwen3vl", "int8", "openvino"),
    ],
)
def test_the_peak_is_within_a_fifth_of_what_is_predicted(
    towers: dict[str, Path], name: str, precision: str, runtime: str
) -> None:
    choice = available(precision, runtime)
    measured_at = peaks(towers[name], list(map(str, SIZES)), precision=precision, runtime=runtime)
    for side, measured in zip(SIZES, measured_at, strict=True):
        found = predict(families.open_family(towers[name]), choice, [(1, side // PATCH, side // PATCH)])
        told = f"{side} pixels: measured {measured / MIB:.0f} MiB, predicted {found.weights / MIB:.0f} + {found.run / MIB:.0f}"
        assert abs(found.total - measured) < WITHIN * measured, told


@LINUX
def test_a_large_run_takes_what_is_predicted_and_gives_it_back(tmp_path: Path) -> None:
    choice, side = available("int8", "kernels"), 1638
    made, sizes = tower("qwen3vl", n=1280, n_layer=2)
    path = made.write(tmp_path / "tower.gguf", *sizes)
    small, large, again = peaks(path, ["644", str(side), "644"])
    found = predict(families.open_family(path), choice, [(1, side // PATCH, side // PATCH)]).total
    assert abs(found - large) < WITHIN * large, f"measured {large / MIB:.0f} MiB, predicted {found / MIB:.0f}"
    assert again - small < 0.5 * (large - small)


@LINUX
def test_without_an_arena_rows_are_joined_where_the_layers_stood(tmp_path: Path) -> None:
    """The C library is told to map arrays from 1 MiB on, as it always does those of large runs."""
    available("int8", "kernels")
    made, sizes = tower("qwen3vl", n=256, n_layer=2, n_out=4096)
    path, found = made.write(tmp_path / "tower.gguf", *sizes), []
    for most in ("2**40", "1"):
        before = f"from diptych.encoder import memory\nmemory._LARGE = {most}\n"
        found.append(peaks(path, ["1036"], before, MALLOC_MMAP_THRESHOLD_="1048576")[0])
    with_arena, without = found
    assert with_arena - without > 15 * MIB, f"{with_arena / MIB:.0f} MiB with an arena, {without / MIB:.0f} without"


def test_a_picture_gets_the_same_rows_with_an_arena_and_without(towers: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    half = FamilyHalf(families.open_family(towers["qwen3vl"]), Options(threads=1), choice=available("int8", "kernels"))
    pieces, rows = half.preprocess(picture(280, 280), MediaSettings())[0].pieces, []
    for size in (memory._LARGE, 1, memory._LARGE):
        monkeypatch.setattr(memory, "_LARGE", size)
        rows += half.encode(pieces)
        assert [arena for _, arena in half._sessions] == [size > 1]
    assert all(np.array_equal(rows[0], other) for other in rows)
    half.close()


@pytest.mark.parametrize(
    ("name", "sizes", "rest", "most"),
    [
        ("qwen2vl", (1280, 32, 3584, 5120), "bf16", 1.7),
        ("qwen2.5vl", (1280, 32, 3584, 3420), "bf16", 1.7),
        ("qwen3vl", (1024, 24, 2048, 4096), "bf16", 1.5),  # 2B
        ("qwen3vl", (1024, 24, 2560, 4096), "bf16", 1.6),  # 4B
        ("qwen3vl", (1152, 27, 4096, 4304), "bf16", 2.0),  # 8B
        ("qwen2vl", (1280, 32, 3584, 5120), "f32", 5.0),  # where attention is ONNX Runtime's
    ],
)
def test_a_photo_at_a_published_models_limit_stays_under_two_gigabytes(
    name: str, sizes: tuple[int, int, int, int], rest: Literal["bf16", "f32"], most: float
) -> None:
    """24 megapixels at the 12.8 and 16.8 that preprocessor_config.json has, as `benchmarks/photo.py` measures it."""
    made, told = tower(name, *sizes, taps=(5, 11, 17))
    patch, limit = (16, 2**24) if name == "qwen3vl" else (PATCH, 12_845_056)
    metadata = {**made.told(*told), "clip.vision.image_max_pixels": limit, "clip.vision.patch_size": patch}
    weights = Weights(metadata, {name: elsewhere(name, shape) for name, shape in made.shapes.items()})
    family = families.for_projector(made.projector)(weights)
    assert isinstance(family, Packed)
    width, height = family.used(6000, 4000, *family.pixel_limits(MediaSettings()))
    grid = (1, height // patch, width // patch)
    assert grid[1] * grid[2] > 64_000
    found = predict(family, Choice("int8", "kernels", rest, ""), [grid])
    assert 0.9 * most < found.total / 1e9 < most


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, and its media half as an mmproj file."""
    out = tiny.qwen2vl(tmp_path_factory.mktemp("memory"))
    write_gguf(out / "mmproj.gguf", convert.mmproj(convert.read_checkpoint(out), "f32"))
    return out


def room_for(path: Path, side: int) -> int:
    """MiB with which a picture of side × side pixels just fits."""
    grid = (1, side // PATCH, side // PATCH)
    return -(-predict(Qwen2VL(open_gguf(path)), choose(Options()), [grid]).total // MIB)


def opened(path: Path, mib: int | None) -> FamilyHalf:
    return FamilyHalf(families.open_family(path), Options(encode_memory=mib, encode_max_patches=16384, threads=1))


def picture(width: int, height: int) -> Media:
    return Media("image", noise(width, height, seed=1), b"")


def test_a_picture_that_needs_more_than_is_allowed_is_refused_with_the_numbers(folder: Path) -> None:
    path = folder / "mmproj.gguf"
    mib = room_for(path, 280)
    half = opened(path, mib)
    half.encode(half.preprocess(picture(280, 280), MediaSettings())[0].pieces)
    with pytest.raises(MediaTooLarge, match=rf"needs (\d+) MiB .* allows {mib} MiB, enough for (\d+) pixels") as caught:
        half.preprocess(picture(840, 840), MediaSettings())
    need, pixels = (int(caught.value.args[0].split(word)[1].split()[0]) for word in ("needs ", "enough for "))
    assert need == room_for(path, 840)
    assert caught.value.status == 413
    assert half.preprocess(picture(840, 840), MediaSettings(max_pixels=pixels)), "what the message says to do"
    assert opened(path, need).preprocess(picture(840, 840), MediaSettings())
    half.close()


def test_without_a_number_nothing_is_refused(folder: Path) -> None:
    assert opened(folder / "mmproj.gguf", None).preprocess(picture(840, 840), MediaSettings())


def test_a_media_half_whose_weights_do_not_fit_is_not_loaded(folder: Path) -> None:
    with pytest.raises(EngineError, match=r"for the smallest picture, .* weights in f32, and --encode-memory allows 1 MiB"):
        opened(folder / "mmproj.gguf", 1)


def test_runs_are_cut_to_what_fits(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, n_runs = folder / "mmproj.gguf", {}
    for mib in (room_for(path, 280), None):
        half, n = opened(path, mib), 0
        (session,) = half._sessions.values()
        run = session.run

        def counted(feed: Any, run: Any = run) -> Any:
            nonlocal n
            n += 1
            return run(feed)

        monkeypatch.setattr(session, "run", counted)
        pieces = [half.preprocess(picture(280, 280), MediaSettings())[0].pieces[0]] * 6
        rows = half.encode(pieces)
        assert all(np.array_equal(rows[0], other) for other in rows)
        n_runs[mib] = n
        half.close()
    fewer, more = n_runs[None], n_runs[room_for(path, 280)]
    assert (fewer, more > fewer) == (1, True)


MANY_SIZES = """
import os, sys
from pathlib import Path
import numpy as np
from diptych import families
from diptych.encoder.half import FamilyHalf
from diptych.options import Options
from diptych.types import Media, MediaSettings
path, precision, runtime = sys.argv[1:]
half = FamilyHalf(families.open_family(Path(path)), Options(precision=precision, media_runtime=runtime, threads=1))
for i in range(96):
    pixels = np.zeros((28 * (8 - i // 12), 28 * (12 - i % 12), 3), np.uint8)
    (chunk,) = half.preprocess(Media("image", pixels, b""), MediaSettings(min_pixels=1))
    half.encode(chunk.pieces)
    if i + 1 in (36, 96):
        print(int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 2**20)
"""


@LINUX
@pytest.mark.parametrize(("precision", "runtime"), [("f32", "onnxruntime"), ("int8", "kernels"), ("int8", "openvino")])
def test_memory_stays_flat_over_pictures_of_many_sizes(tmp_path: Path, precision: str, runtime: str) -> None:
    """With OpenVINO's own limits of what it keeps for each size it grows by 14 MiB and more here."""
    available(precision, runtime)
    made, sizes = tower("qwen2vl", n=256, n_layer=4, n_out=256)
    path = made.write(tmp_path / "tower.gguf", *sizes)
    done = subprocess.run([sys.executable, "-c", MANY_SIZES, str(path), precision, runtime], capture_output=True, text=True)
    assert not done.returncode, done.stderr
    early, late = map(int, done.stdout.split())
    assert late - early < 8, f"{early} MiB with 36 sizes, {late} MiB with 96"
