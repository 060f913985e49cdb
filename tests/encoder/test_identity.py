"""What a media half is known by: the content of its files and the arithmetic, not where they lie."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

import onnx_files
import tiny
from diptych import convert, deploy, export
from diptych.deploy import OnnxHalf
from diptych.encoder import identity as module
from diptych.encoder.foreign import open_foreign
from diptych.encoder.half import FamilyHalf, open_half
from diptych.encoder.identity import identity, of_family
from diptych.encoder.precision import this_machine
from diptych.options import Options
from diptych.weights import Weights
from diptych.weights.tensor import in_memory

PLAIN = Options(threads=1)
VALUES = {
    "vision_preprocess__rescale_factor": 1 / 255,
    "vision_preprocess__image_mean": [0.5, 0.5, 0.5],
    "vision_preprocess__image_std": [1.0, 1.0, 1.0],
}


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with an mmproj, and the ONNX files of it with their weights beside them."""
    folder = tmp_path_factory.mktemp("tiny")
    tiny.qwen2vl(folder / "checkpoint", tiny.Qwen2VL(v_depth=1, n_layer=1))
    convert.convert(folder / "checkpoint", folder / "out", outtype="f32")
    return folder / "out"


def known(path: Path, options: Options = PLAIN) -> str | None:
    """What the half of an mmproj is known by, or that of a folder's ONNX files."""
    found = deploy.find(path).onnx if path.is_dir() else None
    half = open_foreign(found, options) if isinstance(found, OnnxHalf) else open_half(path, options)
    try:
        return identity(half)
    finally:
        half.close()


def test_a_copy_is_the_same_half_and_any_other_byte_makes_another(deployed: Path, tmp_path: Path) -> None:
    original, copy = deployed / "mmproj.gguf", tmp_path / "copy.gguf"
    shutil.copy(original, copy)
    assert known(original) == known(copy)
    data = bytearray(copy.read_bytes())
    data[-4:] = np.float32(0.5).tobytes()
    (tmp_path / "changed.gguf").write_bytes(data)
    assert known(tmp_path / "changed.gguf") not in (None, known(original))


def test_each_arithmetic_is_another_half(deployed: Path) -> None:
    told = [
        {"precision": "f32", "media_runtime": "onnxruntime"},
        {"precision": "int8", "media_runtime": "onnxruntime"},
        {"provider_options": {"CPUExecutionProvider": {"arena_extend_strategy": "kSameAsRequested"}}},
    ]
    found = {known(deployed / "mmproj.gguf", PLAIN.model_copy(update=options)) for options in told}
    assert len(found - {None}) == 3


@pytest.mark.skipif(not this_machine().runs_kernels, reason="the kernels are not for this CPU")
def test_other_kernels_are_another_half(deployed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = PLAIN.model_copy(update={"precision": "int8", "media_runtime": "kernels"})
    before = known(deployed / "mmproj.gguf", options)
    (tmp_path / "kernels.so").write_bytes(module.LIBRARY.read_bytes() + b"\0")
    monkeypatch.setattr(module, "LIBRARY", tmp_path / "kernels.so")
    assert known(deployed / "mmproj.gguf", options) not in (None, before)


def test_what_does_not_change_rows_does_not_change_what_a_half_is_known_by(deployed: Path) -> None:
    options = PLAIN.model_copy(update={"n_ctx": 99, "encode_cache_mib": 1, "encode_max_patches": 9, "max_pixels": 10**5})
    assert known(deployed / "mmproj.gguf", options) == known(deployed / "mmproj.gguf")


def test_weights_in_no_file_are_known_by_nothing(deployed: Path) -> None:
    half = open_half(deployed / "mmproj.gguf", PLAIN)
    assert isinstance(half, FamilyHalf)
    weights = half.family.weights
    name = next(iter(weights.tensors))
    half.family.weights = Weights(weights.metadata, {**weights.tensors, name: in_memory(name, weights.tensors[name].read())})
    assert of_family(half.family, half.arithmetic, PLAIN) == ()
    half.close()


def test_a_file_that_is_gone_is_known_by_nothing(deployed: Path, tmp_path: Path) -> None:
    shutil.copy(deployed / "mmproj.gguf", tmp_path / "gone.gguf")
    half = open_half(tmp_path / "gone.gguf", PLAIN)
    (tmp_path / "gone.gguf").unlink()
    assert identity(half) is None
    half.close()


def test_onnx_files_are_known_by_their_content_and_the_configuration(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    onnx_files.smt(one, "Qwen3VL", "v.onnx", vision_model__input_width=96, vision_model__input_height=64, **VALUES)
    onnx_files.pixels(one / "v.onnx", (96, 64), 32)
    shutil.copytree(one, two)
    assert known(one) == known(two) is not None
    config = (two / "config.json").read_text()
    (two / "config.json").write_text(config.replace("0.5", "0.25"))
    assert known(one) != known(two)
    (two / "config.json").write_text(config)
    assert known(one) == known(two)
    spoil(two / "v.onnx", onnx_files.mix(3)[0].tobytes())
    assert known(one) != known(two)


def test_weights_beside_onnx_files_count(deployed: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    place = {"vision_model__input_width": 112, "vision_model__input_height": 56, "text_model__hidden_size": 128}
    onnx_files.smt(one, "Qwen2VLForConditionalGeneration", "encoder-112x56.onnx", **place, **VALUES)
    export.export(deployed / "mmproj.gguf", one, sizes=[(112, 56)])
    shutil.copytree(one, two)
    assert known(one) == known(two)
    (beside,) = (file for file in two.iterdir() if file.suffix not in (".onnx", ".json", ".gguf"))
    spoil(beside, beside.read_bytes()[-4:])
    assert known(one) != known(two)


def spoil(file: Path, part: bytes) -> None:
    data = file.read_bytes()
    assert part in data
    file.write_bytes(data.replace(part, bytes(reversed(part))))
