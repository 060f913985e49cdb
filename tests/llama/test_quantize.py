import resource
import subprocess
import sys
from collections import Counter
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
import pytest

import tiny
from diptych.convert import convert
from diptych.errors import FileError, InputError, OutputError
from diptych.llama.model import TextModel
from diptych.llama.quantize import TYPES, quantize
from diptych.weights import open_gguf

WIDE = tiny.Qwen2VL(v_embd=256, v_head=4, hidden=256, n_ff=512, sections=(12, 10, 10))  # rows of whole K-quant blocks


@pytest.fixture(scope="session")
def halves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quantize")
    convert(tiny.qwen2vl(folder / "checkpoint", WIDE), folder / "f32", outtype="f32")
    convert(folder / "checkpoint", folder / "q8_0", outtype="q8_0")
    return folder


def test_the_types_are_those_of_llama_cpp() -> None:
    for name, number in TYPES.items():
        spelt = {"F32": "ALL_F32", "Q5_K": "MOSTLY_Q5_K_M", "Q4_K": "MOSTLY_Q4_K_M", "Q3_K": "MOSTLY_Q3_K_M"}.get(name)
        assert getattr(llama_cpp, f"LLAMA_FTYPE_{spelt or 'MOSTLY_' + name}") == number


@pytest.mark.parametrize("half", ["text", "mmproj"])
@pytest.mark.parametrize(
    "name", ["F32", "F16", "BF16", "Q8_0", "q4_1", "Q4_0", "Q5_1", "q4_k_m", "Q6_K", "Q2_K", "IQ4_XS", "IQ3_S"]
)
def test_weights_stay_near_what_they_were(halves: Path, tmp_path: Path, half: str, name: str) -> None:
    source = halves / "f32" / f"{half}.gguf"
    quantize(source, tmp_path / "out.gguf", name)
    before, after = open_gguf(source), open_gguf(tmp_path / "out.gguf")
    assert after.metadata["general.file_type"] == TYPES[name.upper()]
    assert before.tensors.keys() == after.tensors.keys()
    kinds = Counter(t.type.name for n, t in after.tensors.items() if len(t.shape) == 2)
    assert kinds.most_common(1)[0][0] == name.upper().removesuffix("_M")
    bound = {"F32": 0, "F16": 1e-3, "BF16": 4e-3, "Q8_0": 0.01, "Q6_K": 0.05, "Q2_K": 0.5, "IQ3_S": 0.3}.get(name.upper(), 0.15)
    for n, tensor in after.tensors.items():
        expected = before.tensors[n].float32()
        assert np.linalg.norm(tensor.float32() - expected) <= bound * np.linalg.norm(expected), n


def test_q8_0_is_what_the_conversion_writes(halves: Path, tmp_path: Path) -> None:
    quantize(halves / "f32" / "text.gguf", tmp_path / "out.gguf", "q8_0")
    ours, theirs = open_gguf(halves / "q8_0" / "text.gguf"), open_gguf(tmp_path / "out.gguf")
    for name, tensor in theirs.tensors.items():
        assert tensor.type == ours.tensors[name].type
        assert np.array_equal(tensor.float32(), ours.tensors[name].float32()), name


def test_a_quantised_text_half_loads(halves: Path, tmp_path: Path) -> None:
    quantize(halves / "f32" / "text.gguf", tmp_path / "out.gguf", "Q4_K_M", threads=1)
    with TextModel.load(tmp_path / "out.gguf") as model:
        assert model.n_embd == 256


@pytest.mark.parity
@pytest.mark.parametrize("name", ["Q8_0", "Q4_K_M"])
def test_a_quantised_mmproj_gives_libmtmd_nearly_the_same_rows(halves: Path, tmp_path: Path, name: str) -> None:
    from mtmd import Mtmd

    quantize(halves / "f32" / "mmproj.gguf", tmp_path / "out.gguf", name)
    image = np.random.default_rng(0).integers(0, 256, (56, 84, 3), np.uint8)
    with Mtmd(halves / "f32" / "mmproj.gguf") as exact, Mtmd(tmp_path / "out.gguf") as quantised:
        expected, found = exact.encode(image)[0], quantised.encode(image)[0]
    error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    assert 0 < error < {"Q8_0": 0.05, "Q4_K_M": 0.5}[name]


def test_nothing_is_printed_but_one_line_on_other_types(
    tmp_path: Path, halves: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    narrow = tmp_path / "narrow.gguf"
    writer = gguf.GGUFWriter(narrow, "clip")
    writer.add_tensor("v.blk.0.ffn_up.weight", np.ones((8, 64), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    quantize(halves / "f32" / "text.gguf", tmp_path / "a.gguf", "Q4_K_M")
    assert not caplog.records
    quantize(narrow, tmp_path / "b.gguf", "Q4_K_M")
    assert [r.getMessage() for r in caplog.records] == ["1 tensors have rows that Q4_K_M cannot hold, and took a type that can"]
    assert capfd.readouterr() == ("", "")


def test_an_unknown_type_lists_the_known_ones(halves: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"the type is 'Q9_9', and one of these is expected: F32, F16, .*Q4_K_M"):
        quantize(halves / "f32" / "text.gguf", tmp_path / "out.gguf", "Q9_9")


def test_a_quantised_source_is_refused(halves: Path, tmp_path: Path) -> None:
    with pytest.raises(FileError, match="requantizing from type q8_0 is disabled; quantise from the f32, bf16 or f16 file"):
        quantize(halves / "q8_0" / "text.gguf", tmp_path / "out.gguf", "Q4_0")
    assert list(tmp_path.iterdir()) == []


def test_a_type_that_needs_an_importance_matrix_is_refused(halves: Path, tmp_path: Path) -> None:
    with pytest.raises(FileError, match="requires an imatrix!; choose a type that needs no importance matrix"):
        quantize(halves / "f32" / "text.gguf", tmp_path / "out.gguf", "IQ2_XXS")
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_source_is_refused(halves: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.gguf"
    bad.write_bytes((halves / "f32" / "text.gguf").read_bytes()[:-1000])
    with pytest.raises(FileError, match="truncated"):
        quantize(bad, tmp_path / "out.gguf", "Q8_0")
    bad.write_bytes(b"not a model, really")
    with pytest.raises(FileError, match="is no GGUF"):
        quantize(bad, tmp_path / "out.gguf", "Q8_0")
    with pytest.raises(FileError, match="there is no"):
        quantize(tmp_path / "none.gguf", tmp_path / "out.gguf", "Q8_0")
    assert [p.name for p in tmp_path.iterdir()] == ["bad.gguf"]


def test_an_architecture_that_llama_cpp_does_not_know_is_named(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "odd.gguf", "oddity")
    writer.add_tensor("x.weight", np.ones((8, 64), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(FileError, match="unknown model architecture: 'oddity'; choose another type, or convert"):
        quantize(tmp_path / "odd.gguf", tmp_path / "out.gguf", "Q8_0")


def test_an_output_that_exists_or_is_the_input_is_kept(halves: Path, tmp_path: Path) -> None:
    source, out = halves / "f32" / "text.gguf", tmp_path / "out.gguf"
    out.write_text("mine")
    with pytest.raises(OutputError, match="exists"):
        quantize(source, out, "Q8_0")
    assert out.read_text() == "mine"
    with pytest.raises(OutputError, match="is also an input"):
        quantize(source, source, "Q8_0", force=True)
    quantize(source, out, "Q8_0", force=True)
    assert open_gguf(out).tensors


FULL = """
import resource, sys
from pathlib import Path
from diptych.errors import OutputError
from diptych.llama.quantize import quantize
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    quantize(Path(sys.argv[1]), Path(sys.argv[2]), "F16")
except OutputError as error:
    print(error)
"""


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="stands in for a full disk")
def test_a_full_disk_leaves_nothing(halves: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", FULL, str(halves / "f32" / "text.gguf"), str(tmp_path / "out.gguf")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"cannot write {tmp_path / 'out.gguf'}: ")
    assert "nothing was kept, free some space" in done.stdout
    assert list(tmp_path.iterdir()) == []
