"""Exported ONNX files: valid, sharing one data file, and running where nothing of Diptych is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

import tiny
from diptych import convert, export
from diptych.encoder.half import FamilyHalf
from diptych.errors import DiptychError, InputError, OutputError, UnknownModel
from diptych.families.qwen2vl import Qwen2VL
from diptych.options import Options
from diptych.types import Media, MediaChunk, MediaSettings
from diptych.weights import Weights, open_gguf, write_gguf
from pictures import noise

PLAIN = """
import sys, numpy as np, onnxruntime
feed = np.load(sys.argv[2])
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
assert not any(m.split(".")[0] in ("diptych", "onnx_ir", "gguf") for m in sys.modules)
np.save(sys.argv[3], session.run(None, {i.name: feed[i.name] for i in session.get_inputs()})[0])
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.qwen2vl(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module", params=["f32", "f16", "bf16", "q8_0"])
def mmproj(request: pytest.FixtureRequest, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp(request.param) / "mmproj.gguf"
    write_gguf(path, convert.mmproj(convert.read_checkpoint(checkpoint), request.param))
    return path


def fed(family: Qwen2VL, *sizes: tuple[int, int]) -> list[MediaChunk]:
    wide = MediaSettings(min_pixels=1, max_pixels=10**7)
    return [family.preprocess(Media("image", noise(w, h, seed=i), b""), wide)[0] for i, (w, h) in enumerate(sizes)]


def run_plainly(model: Path, feed: dict[str, np.ndarray], folder: Path) -> np.ndarray:
    """In a process that has ONNX Runtime and NumPy, and may see nothing else of this project."""
    np.savez(folder / "feed.npz", **feed)
    made = subprocess.run(
        [sys.executable, "-I", "-W", "ignore", "-c", PLAIN, str(model), str(folder / "feed.npz"), str(folder / "out.npy")],
        capture_output=True,
        text=True,
    )
    assert made.returncode == 0, made.stderr
    assert not made.stderr
    return np.load(folder / "out.npy")


def check(path: Path) -> onnx.ModelProto:
    onnx.checker.check_model(path, full_check=True)
    return onnx.load(path, load_external_data=False)


def test_a_dynamic_graph_gives_the_encoders_rows_in_plain_onnx_runtime(mmproj: Path, tmp_path: Path) -> None:
    files = export.export(mmproj, tmp_path / "out")
    assert [f.name for f in files] == ["encoder.onnx", "encoder.data"]
    check(files[0])
    family = Qwen2VL(open_gguf(mmproj))
    half = FamilyHalf(family, Options())
    pieces = [p for c in fed(family, (84, 56), (140, 196)) for p in c.pieces]
    wanted = np.concatenate(half.encode(pieces))
    got = run_plainly(files[0], family.feed(pieces), tmp_path)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=2e-6 * np.abs(wanted).max())


def test_static_graphs_differ_in_shapes_alone_and_share_one_file_of_weights(mmproj: Path, tmp_path: Path) -> None:
    sizes = [(224, 224), (504, 252), (28, 28), (1036, 252)]  # the last has more patches than a block of queries
    files = export.export(mmproj, tmp_path / "out", sizes=sizes)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(f.name for f in files)
    assert [f.name for f in files[-2:]] == ["encoder-1036x252.onnx", "encoder.data"]
    family = Qwen2VL(open_gguf(mmproj))
    half = FamilyHalf(family, Options())
    weights = []
    for path, size, chunk in zip(files, sizes, fed(family, *sizes), strict=False):
        model = check(path)
        (given,), (output,) = model.graph.input, model.graph.output
        n_patch = size[0] * size[1] // 14**2
        assert shape(given) == [n_patch, 1176]
        assert shape(output) == [n_patch // 4, 128]
        assert {n.domain for n in model.graph.node} == {""}
        stored = {i.name: [(e.key, e.value) for e in i.external_data] for i in model.graph.initializer if i.external_data}
        assert {dict(e)["location"] for e in stored.values()} == {"encoder.data"}
        weights.append(stored)
        (wanted,) = half.encode(chunk.pieces)
        got = run_plainly(path, {"patches": chunk.pieces[0].inputs["patches"]}, tmp_path)
        np.testing.assert_allclose(got, wanted, rtol=0, atol=5e-6 * np.abs(wanted).max())
    assert all(w == weights[0] for w in weights)


def shape(value: onnx.ValueInfoProto) -> list[int]:
    return [d.dim_value for d in value.type.tensor_type.shape.dim]


def test_weights_keep_their_type(mmproj: Path, tmp_path: Path) -> None:
    files = export.export(mmproj, tmp_path / "out")
    graph = check(files[0]).graph
    types = {i.name: onnx.TensorProto.DataType.Name(i.data_type) for i in graph.initializer}
    wanted = {"F32": "FLOAT", "F16": "FLOAT16", "BF16": "BFLOAT16", "Q8_0": "INT8"}
    for name, tensor in open_gguf(mmproj).tensors.items():
        assert types[name] == wanted[tensor.type.name], name
    assert files[1].stat().st_size < sum(t.nbytes for t in open_gguf(mmproj).tensors.values()) + 4096 * len(types)


def test_a_checkpoint_exports_as_its_mmproj_does(checkpoint: Path, tmp_path: Path) -> None:
    write_gguf(tmp_path / "mmproj.gguf", convert.mmproj(convert.read_checkpoint(checkpoint), "f32"))
    one = export.export(checkpoint, tmp_path / "one", sizes=[(56, 84)])
    two = export.export(tmp_path / "mmproj.gguf", tmp_path / "two", sizes=[(56, 84)])
    assert [f.read_bytes() for f in one] == [f.read_bytes() for f in two]


def test_the_file_says_what_it_is_and_how_it_is_fed(checkpoint: Path, tmp_path: Path) -> None:
    props = {p.key: p.value for p in check(export.export(checkpoint, tmp_path / "out")[0]).metadata_props}
    assert props["diptych.opset"] == "21"
    assert props["diptych.projector"] == "qwen2vl_merger"
    assert set(props) >= {"input.patches", "input.cos", "input.sin", "input.spans", "output.embeddings"}
    assert props["input.patches"].startswith("float32 (n_patch, 1176): RGB picture stretched (bicubic, as Pillow)")
    assert "0.48145467" in props["input.patches"]
    assert props["output.embeddings"].startswith("float32 (n_token, 128): one row for each cell")


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((500, 504), "500x504.*multiples of 28.*504x504"),
        ((1, 1), "1x1.*multiples of 28.*28x28"),
        ((0, 28), "0x28.*pixels"),
        ((280000, 280000), "280000x280000.*pixels"),
        ((28 * 300, 28), "200 times"),
    ],
)
def test_a_size_the_model_does_not_take_is_refused(checkpoint: Path, tmp_path: Path, size: tuple[int, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        export.export(checkpoint, tmp_path / "out", sizes=[size])
    assert not (tmp_path / "out").exists()


def test_files_that_exist_stay_unless_told_otherwise(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = export.export(checkpoint, out)
    before = first[1].read_bytes()
    with pytest.raises(OutputError, match=r"encoder\.onnx exists"):
        export.export(checkpoint, out)
    with pytest.raises(OutputError, match=r"encoder\.data exists"):
        export.export(checkpoint, out, sizes=[(56, 56)])
    assert sorted(p.name for p in out.iterdir()) == ["encoder.data", "encoder.onnx"]
    export.export(checkpoint, out, force=True)
    assert first[1].read_bytes() == before


def test_progress_ends_at_the_whole(checkpoint: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    export.export(checkpoint, tmp_path / "out", progress=lambda done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1] > 0
    assert seen == sorted(seen)


def test_an_unknown_model_is_refused(tmp_path: Path) -> None:
    write_gguf(tmp_path / "x.gguf", Weights({"general.architecture": "clip", "clip.projector_type": "other"}, {}))
    with pytest.raises(UnknownModel, match="'other'"):
        export.export(tmp_path / "x.gguf", tmp_path / "out")
    with pytest.raises(DiptychError, match="nowhere"):
        export.export(tmp_path / "nowhere", tmp_path / "out")
