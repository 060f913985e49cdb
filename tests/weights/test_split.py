"""GGUFs in several files: read as one, and every way in which they do not belong together."""

from __future__ import annotations

import ctypes
import shutil
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import pytest
from gguf import GGMLQuantizationType

from diptych import reader
from diptych.errors import FileError
from diptych.llama.model import TextModel
from diptych.llama.quantize import quantize
from diptych.weights import Tensor, Weights, open_gguf, write_gguf
from diptych.weights.gguf import read_gguf
from diptych.weights.split import check_parts, part_names
from splitting import split

WHOLE = reader.FOLDER / "text.gguf"


@pytest.fixture
def first(tmp_path: Path) -> Path:
    """The first of three parts of the reader's text half."""
    return split(WHOLE, tmp_path / "reader", 3)


def second(first: Path) -> Path:
    return first.with_name("reader-00002-of-00003.gguf")


def changed(path: Path, **metadata: Any) -> None:
    """Write one part again with other metadata (None: without it); `_` in a key stands for a dot."""
    weights = read_gguf(path)
    values = {**weights.metadata, **{key.replace("_", "."): value for key, value in metadata.items()}}
    write_gguf(path, Weights({k: v for k, v in values.items() if v is not None}, weights.tensors), force=True)


@pytest.mark.parametrize("tensors_first", [True, False])
def test_a_split_model_is_read_as_the_whole_it_was(tmp_path: Path, tensors_first: bool) -> None:
    whole, parts = open_gguf(WHOLE), open_gguf(split(WHOLE, tmp_path / "x", 3, tensors_first=tensors_first))
    assert list(parts.metadata) == list(whole.metadata), "nothing tells of the split any more"
    assert list(parts.tensors) == list(whole.tensors)
    for name, tensor in whole.tensors.items():
        np.testing.assert_array_equal(parts.tensors[name].read(), tensor.read())


def test_llama_cpp_loads_the_rest_when_given_the_first_part(first: Path) -> None:
    with TextModel.load(first) as model, TextModel.load(WHOLE) as whole:
        assert (model.n_embd, model.n_layer, model.n_vocab) == (whole.n_embd, whole.n_layer, whole.n_vocab)


@pytest.fixture
def exact(tmp_path: Path) -> Path:
    """The reader's text half in f32."""
    whole, path = open_gguf(WHOLE), tmp_path / "f32.gguf"
    tensors = {t.name: Tensor(t.name, t.shape, GGMLQuantizationType.F32, t.float32) for t in whole.tensors.values()}
    write_gguf(path, Weights({**whole.metadata, "general.file_type": 0}, tensors))
    return path


def test_a_split_model_can_be_quantised(exact: Path, tmp_path: Path) -> None:
    quantize(split(exact, tmp_path / "x", 3), tmp_path / "out.gguf", "Q8_0")
    whole, out = open_gguf(exact), open_gguf(tmp_path / "out.gguf")
    assert (out.tensors.keys(), out.metadata["general.file_type"]) == (whole.tensors.keys(), 7)


def test_parts_that_llama_cpp_wrote_are_read_as_its_whole(exact: Path, tmp_path: Path) -> None:
    quantize(exact, tmp_path / "whole.gguf", "Q8_0")
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread, params.keep_split = llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0, 1, True
    source = split(exact, tmp_path / "x", 3)
    assert llama_cpp.llama_model_quantize(bytes(source), bytes(tmp_path / "parts"), ctypes.byref(params)) == 0
    whole, parts = open_gguf(tmp_path / "whole.gguf"), open_gguf(tmp_path / "parts-00001-of-00003.gguf")
    assert parts.metadata.keys() == whole.metadata.keys()
    assert parts.tensors.keys() == whole.tensors.keys()
    for name, tensor in whole.tensors.items():
        np.testing.assert_array_equal(parts.tensors[name].read(), tensor.read())


@pytest.mark.parametrize("load", [open_gguf, TextModel.load])
def test_a_later_part_names_the_first(first: Path, load: Any) -> None:
    with pytest.raises(FileError, match=r"part 2 of 3 .*give the first, .*reader-00001-of-00003\.gguf"):
        load(second(first))


@pytest.mark.parametrize("load", [open_gguf, TextModel.load])
def test_a_missing_part_is_named(first: Path, load: Any) -> None:
    second(first).unlink()
    with pytest.raises(FileError, match=r"reader-00002-of-00003\.gguf is not beside it"):
        load(first)


@pytest.mark.parametrize("load", [open_gguf, TextModel.load])
def test_a_part_that_is_cut_short_is_named(first: Path, load: Any) -> None:
    second(first).write_bytes(second(first).read_bytes()[:-100])
    with pytest.raises(FileError, match=r"reader-00002-of-00003\.gguf.*truncated or damaged"):
        load(first)


def test_a_renamed_part_is_told_its_name(first: Path, tmp_path: Path) -> None:
    first.rename(tmp_path / "renamed.gguf")
    with pytest.raises(FileError, match=r"part 1 of 3 .*call it renamed-00001-of-00003\.gguf"):
        open_gguf(tmp_path / "renamed.gguf")
    with pytest.raises(FileError, match=r"renamed\.gguf is a part of a split model.*-00001-of-"):
        TextModel.load(tmp_path / "renamed.gguf")


def test_a_part_of_another_split_is_refused(first: Path, tmp_path: Path) -> None:
    other = split(WHOLE, tmp_path / "other", 2)
    shutil.copy(other.with_name("other-00002-of-00002.gguf"), second(first))
    with pytest.raises(FileError, match="is not part 2 of 3"):
        open_gguf(first)


def test_parts_that_hold_too_few_tensors_are_refused(first: Path) -> None:
    changed(first, split_tensors_count=np.int32(51))
    with pytest.raises(FileError, match="hold 50 tensors, and 51 are expected"):
        open_gguf(first)


@pytest.mark.parametrize("value", ["three", 2.0, np.array([3], np.uint16)])
def test_a_count_that_is_no_number_is_refused(first: Path, value: object) -> None:
    changed(first, split_count=value)
    with pytest.raises(FileError, match=r"split\.count"):
        open_gguf(first)


def test_a_file_that_is_only_named_like_a_part_stands_alone(tmp_path: Path) -> None:
    path = tmp_path / "x-00001-of-00003.gguf"
    shutil.copy(WHOLE, path)
    assert len(open_gguf(path).tensors) == 50
    check_parts(path)


def test_the_names_of_all_parts_follow_from_one() -> None:
    assert part_names("a/b-00002-of-00003.gguf") == [f"a/b-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    for alone in "b.gguf", "b-00002-of-00003.txt", "-00001-of-00002.gguf", "b-1-of-2.gguf", "b-00001-of-00000.gguf":
        assert part_names(alone) == [alone]
