import struct
import tracemalloc
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFValueType

from diptych.errors import DiptychError, FileError, OutputError
from diptych.weights import Tensor, Weights, open_gguf, write_gguf

QUANTISED = ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def theirs(tmp_path: Path, rng: np.random.Generator) -> Path:
    """A file with every type of value and the usual types of tensors, written by gguf-py."""
    path = tmp_path / "theirs.gguf"
    writer = gguf.GGUFWriter(path, "qwen2vl")
    for kind in ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"):
        getattr(writer, f"add_{kind}")(f"n.{kind}", 7)
    writer.add_int32("n.negative", -7)
    writer.add_float32("n.float32", 0.1)
    writer.add_float64("n.float64", 0.1)
    writer.add_bool("n.bool", True)
    writer.add_string("text", "λ\n|")
    writer.add_token_list(["a", "", "Ġthe", "日本"])
    writer.add_array("ints", [16, 24, 24, 0])
    writer.add_array("floats", [0.5, 0.25])
    writer.add_array("bools", [True, False])
    values = rng.standard_normal((6, 64)).astype(np.float32)
    writer.add_tensor("f32", values)
    writer.add_tensor("f16.odd", values[:, :3].astype(np.float16))
    writer.add_tensor("one", values[0])
    for name in ("BF16", *QUANTISED):
        kind = GGMLQuantizationType[name]
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_metadata_comes_with_the_types_it_has(theirs: Path) -> None:
    found = open_gguf(theirs).metadata
    for kind in ("uint8", "int8", "uint16", "int16", "int32", "uint64", "int64"):
        assert found[f"n.{kind}"] == 7
        assert type(found[f"n.{kind}"]) is getattr(np, kind)
    assert found["n.uint32"] == 7
    assert type(found["n.uint32"]) is int
    assert found["n.negative"] == -7
    assert found["n.float32"] == np.float32(0.1)
    assert type(found["n.float32"]) is float
    assert found["n.float64"] == 0.1
    assert type(found["n.float64"]) is np.float64
    assert found["n.bool"] is True
    assert found["text"] == "λ\n|"
    assert found["tokenizer.ggml.tokens"] == ["a", "", "Ġthe", "日本"]
    assert found["ints"].dtype == np.int32
    assert found["ints"].tolist() == [16, 24, 24, 0]
    assert found["floats"].dtype == np.float32
    assert found["floats"].tolist() == [0.5, 0.25]
    assert found["bools"].dtype == np.bool_
    assert found["bools"].tolist() == [True, False]


def test_tensors_are_those_that_gguf_py_reads(theirs: Path) -> None:
    ours = open_gguf(theirs).tensors
    reader = gguf.GGUFReader(theirs)
    assert list(ours) == [t.name for t in reader.tensors]
    for other in reader.tensors:
        mine = ours[other.name]
        assert mine.shape == tuple(int(n) for n in other.shape[::-1])
        assert mine.type == other.tensor_type
        stored = mine.read()
        assert np.array_equal(stored.view(np.uint8), np.asarray(other.data).view(np.uint8))
        assert mine.nbytes == stored.nbytes
        path, offset, nbytes = mine.place
        assert path.read_bytes()[offset : offset + nbytes] == stored.tobytes()
        values = gguf.quants.dequantize(np.asarray(other.data), other.tensor_type)
        assert np.array_equal(mine.float32(), values.reshape(mine.shape))


def test_a_file_written_again_is_the_same_file(theirs: Path, tmp_path: Path) -> None:
    write_gguf(tmp_path / "ours.gguf", open_gguf(theirs))
    assert (tmp_path / "ours.gguf").read_bytes() == theirs.read_bytes()


def test_another_alignment_is_kept(tmp_path: Path, rng: np.random.Generator) -> None:
    writer = gguf.GGUFWriter(tmp_path / "theirs.gguf", "clip")
    writer.add_custom_alignment(128)
    values = rng.standard_normal((2, 5)).astype(np.float32)
    writer.add_tensor("a", values)
    writer.add_tensor("b", -values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = open_gguf(tmp_path / "theirs.gguf")
    assert np.array_equal(found.tensors["b"].read(), -values)
    write_gguf(tmp_path / "ours.gguf", found)
    assert (tmp_path / "ours.gguf").read_bytes() == (tmp_path / "theirs.gguf").read_bytes()


def test_plain_python_values_take_the_types_gguf_py_gives_them(tmp_path: Path) -> None:
    values = {"general.architecture": "clip", "n": 3, "x": 0.5, "yes": True, "ints": [1, -2], "floats": [0.5, 1], "none": []}
    write_gguf(tmp_path / "a.gguf", Weights(values, {}))
    fields = gguf.GGUFReader(tmp_path / "a.gguf").fields
    types = {k: fields[k].types for k in values if k != "none"}
    array = GGUFValueType.ARRAY
    assert types == {
        "general.architecture": [GGUFValueType.STRING], "n": [GGUFValueType.UINT32], "x": [GGUFValueType.FLOAT32],
        "yes": [GGUFValueType.BOOL], "ints": [array, GGUFValueType.INT32], "floats": [array, GGUFValueType.FLOAT32],
    }  # fmt: skip
    assert {k: fields[k].contents() for k in types} == {k: values[k] for k in types}


@pytest.mark.parametrize("value", [-1, 2**32, 2**70, None, {"a": 1}, [1, 2**40], ["a", 1], np.complex64(1)])
def test_a_value_without_a_type_is_named(tmp_path: Path, value: object) -> None:
    with pytest.raises(FileError, match=r"^some.key is "):
        write_gguf(tmp_path / "a.gguf", Weights({"some.key": value}, {}))
    assert list(tmp_path.iterdir()) == []


def test_progress_counts_bytes(theirs: Path, tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    weights = open_gguf(theirs)
    write_gguf(tmp_path / "a.gguf", weights, progress=lambda *step: steps.append(step))
    total = sum(t.nbytes for t in weights.tensors.values())
    assert len(steps) == len(weights.tensors)
    assert steps[-1] == (total, total)
    assert [done for done, _ in steps] == sorted(done for done, _ in steps)


def test_an_output_is_whole_or_absent(theirs: Path, tmp_path: Path) -> None:
    weights = open_gguf(theirs)

    def fail() -> np.ndarray:
        raise FileError("gone")

    broken = Weights(weights.metadata, {**weights.tensors, "z": Tensor("z", (1,), GGMLQuantizationType.F32, fail)})
    with pytest.raises(FileError, match="gone"):
        write_gguf(tmp_path / "a.gguf", broken)
    with pytest.raises(OutputError, match="input"):
        write_gguf(theirs, weights, force=True, inputs=[theirs])
    assert [p.name for p in tmp_path.iterdir()] == ["theirs.gguf"]


def test_a_file_that_shrinks_while_it_is_read_is_named(theirs: Path) -> None:
    tensor = open_gguf(theirs).tensors["Q5_1"]
    theirs.write_bytes(theirs.read_bytes()[:2000])
    with pytest.raises(FileError, match="shorter"):
        tensor.read()


def _file(pairs: bytes = b"", n_pairs: int = 0, infos: bytes = b"", n_infos: int = 0, data: bytes = bytes(64)) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", 3, n_infos, n_pairs) + pairs + infos
    return head + bytes(-len(head) % 32) + data


def _text(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def _info(name: str = "t", dims: tuple[int, ...] = (4,), kind: int = 0, offset: int = 0) -> bytes:
    return _text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


U32 = struct.pack("<II", 4, 1)
HOSTILE = {
    "empty": (b"", "no GGUF: it has 0 bytes"),
    "text": (b"<html>" + bytes(100), "no GGUF: it begins with b'<htm'"),
    "version 1": (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "GGUF version 1"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    "many tensors": (_file(n_infos=2**60), "claims 1152921504606846976 tensors"),
    "many values": (_file(n_pairs=2**63), "metadata values, too many"),
    "long key": (_file(struct.pack("<Q", 2**62) + U32, 1), "ends inside its header"),
    "long string": (_file(_text("k") + struct.pack("<IQ", 8, 2**40), 1), "ends inside its header"),
    "long array": (_file(_text("k") + struct.pack("<IIQ", 9, 4, 2**61), 1), "ends inside its header"),
    "long list": (_file(_text("k") + struct.pack("<IIQ", 9, 8, 2**61), 1), "ends inside its header"),
    "nested array": (_file(_text("k") + struct.pack("<IIQ", 9, 9, 1), 1), "unknown type 9"),
    "unknown value": (_file(_text("k") + struct.pack("<IQ", 77, 0), 1), "unknown type 77"),
    "same key": (_file(2 * (_text("k") + U32), 2), "2 metadata keys, and only 1"),
    "alignment 0": (_file(_text("general.alignment") + struct.pack("<II", 4, 0), 1), "general.alignment 0"),
    "alignment 48": (_file(_text("general.alignment") + struct.pack("<II", 4, 48), 1), "general.alignment 48"),
    "alignment text": (_file(_text("general.alignment") + struct.pack("<I", 8) + _text("x"), 1), "general.alignment 'x'"),
    "same tensor": (_file(infos=2 * _info(), n_infos=2), "2 tensors, and only 1"),
    "five axes": (_file(infos=_info(dims=(1,) * 5), n_infos=1), "has 5 axes"),
    "unknown tensor type": (_file(infos=_info(kind=999), n_infos=1), "unknown type 999"),
    "half a block": (_file(infos=_info(dims=(33,), kind=8), n_infos=1), "cannot be Q8_0"),
    "crooked offset": (_file(infos=_info(offset=4), n_infos=1), "at 4 cannot be F32"),
    "far offset": (_file(infos=_info(offset=2**62), n_infos=1), "and the file ends at"),
    "huge tensor": (_file(infos=_info(dims=(2**62, 2**62)), n_infos=1), "and the file ends at"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_damaged_file_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    data, message = HOSTILE[name]
    path = tmp_path / "bad.gguf"
    path.write_bytes(data)
    with pytest.raises(FileError, match=r"bad.gguf") as caught:
        open_gguf(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_truncation_is_noticed(theirs: Path, tmp_path: Path) -> None:
    data, path = theirs.read_bytes(), tmp_path / "cut.gguf"
    last = max(offset + nbytes for _, offset, nbytes in (t.place for t in open_gguf(theirs).tensors.values()))
    for end in [*range(0, 1200, 7), *range(1200, last, 61), last - 1]:
        path.write_bytes(data[:end])
        with pytest.raises(FileError):
            open_gguf(path)


def test_random_damage_never_costs_memory_or_another_error(theirs: Path, tmp_path: Path, rng: np.random.Generator) -> None:
    data, path = theirs.read_bytes(), tmp_path / "damaged.gguf"
    said: list[str] = []
    tracemalloc.start()
    for _ in range(400):
        damaged = bytearray(data)
        for at in rng.integers(4, 1500, 3):
            damaged[at] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            for tensor in open_gguf(path).tensors.values():
                tensor.read()
        except DiptychError as error:
            said.append(str(error))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 << 20
    assert len(said) > 100
    assert not [line for line in said if "\n" in line]


def test_a_header_larger_than_any_models_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "big.gguf"
    with path.open("wb") as file:
        file.write(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + _text("k") + struct.pack("<IQ", 8, 1 << 32))
        file.truncate(5 << 30)
    tracemalloc.start()
    with pytest.raises(FileError, match="64 MiB"):
        open_gguf(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 << 20


@pytest.mark.parametrize(("path", "message"), [("none.gguf", "there is no"), (".", "is a folder")])
def test_what_is_no_file_is_said(tmp_path: Path, path: str, message: str) -> None:
    with pytest.raises(FileError, match=message):
        open_gguf(tmp_path / path)
