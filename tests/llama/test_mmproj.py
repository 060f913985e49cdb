"""What an mmproj tells before it is opened, and what is refused at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import tiny_mmproj
from diptych import reader
from diptych.errors import FileError, UnknownModel
from diptych.llama import mmproj
from diptych.weights import Weights, open_gguf, write_gguf
from diptych.weights.tensor import in_memory


def test_the_readers_picture_half_is_told_by_its_metadata() -> None:
    found = mmproj.read(reader.FOLDER / "mmproj.gguf")
    assert found == mmproj.Mmproj({"image": "qwen2vl_merger"}, n_embd=256, n_pos=4, side=28, limited=True)


def test_sound_alone_is_told(tmp_path: Path) -> None:
    found = mmproj.read(tiny_mmproj.ultravox(tmp_path / "m.gguf"))
    assert (found.projectors, found.projector, found.n_embd, found.n_pos) == ({"audio": "ultravox"}, "ultravox", 128, 1)


def changed(path: Path, change: Callable[[dict, dict], None]) -> Path:
    """A gemma3 file whose metadata and tensors were changed."""
    weights = open_gguf(tiny_mmproj.gemma3(path.with_suffix(".base")))
    metadata, tensors = dict(weights.metadata), dict(weights.tensors)
    change(metadata, tensors)
    write_gguf(path, Weights(metadata, tensors))
    return path


QUERY = "v.blk.1.attn_q.weight"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m, t: m.pop("clip.has_vision_encoder"), r"has no encoder of pictures or sound \(it holds 'clip'\)"),
        (lambda m, t: m.update({"clip.vision.projection_dim": 2**31}), "projection_dim 2147483648, and 1 to 131,072 is expected"),
        (lambda m, t: m.update({"clip.vision.projection_dim": 0}), "projection_dim 0, and"),
        (lambda m, t: m.update({"clip.vision.projection_dim": "wide"}), "projection_dim 'wide', and"),
        (lambda m, t: m.pop("clip.vision.projection_dim"), "projection_dim None, and"),
        (lambda m, t: m.update({"clip.vision.block_count": 0}), "block_count 0, and 1 to 1,024 is expected"),
        (lambda m, t: t.pop(QUERY), r"has no tensor v\.blk\.1\.attn_q\.weight"),
        (lambda m, t: t.update({QUERY: in_memory(QUERY, np.zeros((64, 64), np.float64))}), "attn_q.weight as F64, which weights"),
        (lambda m, t: t.update({QUERY: in_memory(QUERY, np.zeros((64, 64), np.int32))}), "attn_q.weight as I32, which weights"),
    ],
)
def test_a_fault_that_libmtmd_would_crash_over_is_told_in_one_line(tmp_path: Path, change, says: str) -> None:
    with pytest.raises(FileError, match=says) as caught:
        mmproj.read(changed(tmp_path / "bad.gguf", change))
    assert "\n" not in str(caught.value)


def test_one_tensor_for_query_key_and_value_will_do(tmp_path: Path) -> None:
    def join(_: dict, tensors: dict) -> None:
        for i in range(2):
            parts = [tensors.pop(f"v.blk.{i}.attn_{p}.weight") for p in "qkv"]
            name = f"v.blk.{i}.attn_qkv.weight"
            tensors[name] = in_memory(name, np.concatenate([p.read() for p in parts]))

    assert mmproj.read(changed(tmp_path / "joined.gguf", join)).n_embd == 128


def test_rows_that_depend_on_their_place_in_the_prompt_are_refused(tmp_path: Path) -> None:
    path = changed(tmp_path / "placed.gguf", lambda m, t: m.update({"clip.projector_type": "deepseek4v"}))
    with pytest.raises(UnknownModel, match="'deepseek4v', whose rows depend on where"):
        mmproj.read(path)
