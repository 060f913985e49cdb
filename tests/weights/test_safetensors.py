import json
import struct
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from diptych.errors import FileError
from diptych.weights import open_safetensors


@pytest.fixture
def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {
        "a": rng.standard_normal((3, 5)).astype(np.float32),
        "b": rng.standard_normal((7,)).astype(np.float16),
        "c": rng.standard_normal((2, 3, 4)).astype(ml_dtypes.bfloat16),
        "d": np.array(1.5, np.float32),
    }


def _sharded(folder: Path, arrays: dict[str, np.ndarray]) -> dict[str, str]:
    where = {name: f"model-0000{i % 2 + 1}-of-00002.safetensors" for i, name in enumerate(arrays)}
    for shard in set(where.values()):
        save_file({n: a for n, a in arrays.items() if where[n] == shard}, folder / shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    return where


@pytest.mark.parametrize("shards", [1, 2])
def test_tensors_come_as_they_were_stored(tmp_path: Path, arrays: dict[str, np.ndarray], shards: int) -> None:
    if shards == 1:
        save_file(arrays, tmp_path / "model.safetensors", {"format": "pt"})
    else:
        _sharded(tmp_path, arrays)
    found = open_safetensors(tmp_path).tensors
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        read = found[name].read()
        assert read.dtype == array.dtype
        assert read.shape == array.shape == found[name].shape
        assert np.array_equal(read, array)
        assert np.array_equal(found[name].float32(), array.astype(np.float32))
        path, offset, nbytes = found[name].place
        assert path.read_bytes()[offset : offset + nbytes] == array.tobytes()


def test_a_missing_shard_is_named(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    _sharded(tmp_path, arrays)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(FileError, match=r"lacks 1 of its 2 shards: model-00002-of-00002.safetensors"):
        open_safetensors(tmp_path)


def test_a_truncated_shard_is_named(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    _sharded(tmp_path, arrays)
    shard = tmp_path / "model-00001-of-00002.safetensors"
    data = shard.read_bytes()
    for end in (0, 4, 8, 60, len(data) - 1):
        shard.write_bytes(data[:end])
        with pytest.raises(FileError, match=r"model-00001-of-00002.safetensors"):
            open_safetensors(tmp_path)


def test_a_tensor_that_only_the_index_knows_is_named(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    where = _sharded(tmp_path, arrays)
    index = {"weight_map": {**where, "e": where["a"]}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(FileError, match=r"model-00001-of-00002.safetensors has no e,"):
        open_safetensors(tmp_path)


@pytest.mark.parametrize(
    "index", ["", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": 3}}', '{"weight_map": {"a": "../x"}}']
)
def test_a_bad_index_is_refused(tmp_path: Path, index: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(FileError, match="no weight_map"):
        open_safetensors(tmp_path)


def test_a_folder_without_safetensors_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"neither model.safetensors"):
        open_safetensors(tmp_path)


def _with_header(path: Path, header: Any, data: bytes = bytes(64)) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


GOOD = {"dtype": "F32", "shape": [4, 4], "data_offsets": [0, 64]}


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({**GOOD, "dtype": "F8_E4M3"}, "is F8_E4M3, and F32, F16, BF16 can be read"),
        ({**GOOD, "dtype": 3}, "is 3, and F32"),
        ({**GOOD, "shape": [4, 5]}, "does not fit"),
        ({**GOOD, "shape": [-4, -4]}, "does not fit"),
        ({**GOOD, "shape": [2**40, 2**40]}, "does not fit"),
        ({**GOOD, "shape": "x"}, "not that of a safetensors file"),
        ({**GOOD, "data_offsets": [0, 128]}, "does not fit"),
        ({**GOOD, "data_offsets": [-64, 0]}, "does not fit"),
        ({**GOOD, "data_offsets": [64, 128]}, "does not fit"),
        ({**GOOD, "data_offsets": [0]}, "not that of a safetensors file"),
        ({}, "not that of a safetensors file"),
        (None, "not that of a safetensors file"),
    ],
)
def test_a_bad_entry_is_refused(tmp_path: Path, entry: Any, message: str) -> None:
    _with_header(tmp_path / "model.safetensors", {"t": entry})
    with pytest.raises(FileError, match=r"model.safetensors") as caught:
        open_safetensors(tmp_path)
    assert message in str(caught.value)


@pytest.mark.parametrize("header", [b"", b"[]", b"{", b"[" * 200_000, b"\xff\xfe{}", b'{"t": 1e999}'])
def test_a_bad_header_is_refused(tmp_path: Path, header: bytes) -> None:
    _with_header(tmp_path / "model.safetensors", header)
    with pytest.raises(FileError, match="not that of a safetensors file"):
        open_safetensors(tmp_path)


@pytest.mark.parametrize("length", [2**63, 2**40, 17 << 20])
def test_a_header_longer_than_the_file_or_than_any_is_refused(tmp_path: Path, length: int) -> None:
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", length))
        file.truncate(32 << 20)
    with pytest.raises(FileError, match=f"its header would have {length}"):
        open_safetensors(tmp_path)
