import json
import math
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from diptych.convert import convert, read_checkpoint
from diptych.errors import FileError, OutputError
from diptych.weights import open_gguf


def test_both_files_are_written_and_progress_counts_their_bytes(plain: Path, tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    convert(plain, tmp_path / "out", outtype="q8_0", progress=lambda *step: steps.append(step))
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["mmproj.gguf", "text.gguf"]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    halves = [open_gguf(tmp_path / "out" / f"{half}.gguf") for half in ("text", "mmproj")]
    total = sum(t.nbytes for half in halves for t in half.tensors.values())
    assert len(steps) == sum(len(half.tensors) for half in halves)
    assert steps[-1] == (total, total)
    assert [done for done, _ in steps] == sorted(done for done, _ in steps)
    assert {n for _, n in steps} == {total}


def test_files_that_exist_are_kept_without_force(plain: Path, tmp_path: Path) -> None:
    (tmp_path / "mmproj.gguf").write_text("mine")
    with pytest.raises(OutputError, match=r"mmproj.gguf exists"):
        convert(plain, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["mmproj.gguf"]
    convert(plain, tmp_path, force=True)
    assert open_gguf(tmp_path / "mmproj.gguf").metadata["general.type"] == "mmproj"


def test_a_checkpoint_may_take_the_files_beside_it(plain: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(plain, tmp_path / "checkpoint")
    convert(folder, folder)
    assert open_gguf(folder / "text.gguf").tensors
    with pytest.raises(OutputError, match="is also an input"):
        convert(folder, folder, force=True)


def test_a_failure_half_way_leaves_nothing(plain: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(plain, tmp_path / "checkpoint")

    def cut(done: int, total: int) -> None:
        if done > total // 2:
            (folder / "model.safetensors").write_bytes(b"")

    with pytest.raises(FileError, match="shorter"):
        convert(folder, tmp_path / "out", progress=cut)
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint"]


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(plain: Path, tmp_path: Path, name: str) -> None:
    folder = shutil.copytree(plain, tmp_path / "checkpoint")
    (folder / name).unlink()
    with pytest.raises(FileError, match=name):
        read_checkpoint(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "\xff", "[" * 100_000])
def test_a_damaged_config_is_named(plain: Path, tmp_path: Path, text: str) -> None:
    folder = shutil.copytree(plain, tmp_path / "checkpoint")
    (folder / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(FileError, match=r"config.json"):
        read_checkpoint(folder)


def test_what_is_no_folder_is_refused(plain: Path) -> None:
    with pytest.raises(FileError, match="is no folder, and a checkpoint's folder is expected"):
        read_checkpoint(plain / "model.safetensors")


N_EMBD, N_FF, N_LAYER = 2048, 8192, 3
LARGEST = 2 * N_EMBD * N_FF  # bytes of an MLP matrix in bf16: 32 MiB


def _empty_checkpoint(folder: Path, plain: Path) -> Path:
    """A checkpoint of zeros, 380 MB that take no room on the disk."""
    shutil.copytree(plain, folder)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"].update(hidden_size=N_EMBD, intermediate_size=N_FF, num_hidden_layers=N_LAYER)
    (folder / "config.json").write_text(json.dumps(config))
    shapes = {t.name: t.shape for t in read_checkpoint(plain).tensors.values() if "layers.1." not in t.name}
    sizes = {128: N_EMBD, 192: N_FF}
    layer = {n: tuple(sizes.get(s, s) for s in shape) for n, shape in shapes.items() if "layers.0." in n}
    shapes |= {n.replace("layers.0.", f"layers.{i}."): shape for i in range(N_LAYER) for n, shape in layer.items()}
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    assert end > 9 * LARGEST
    return folder


MEASURE = """
import sys
from pathlib import Path
from diptych import families
from diptych.convert import convert
def peak():
    return int(next(l for l in Path("/proc/self/status").read_text().splitlines() if l.startswith("VmHWM")).split()[1]) << 10
families.all()
before = peak()
convert(Path(sys.argv[1]), Path(sys.argv[2]), outtype=sys.argv[3])
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("outtype", ["bf16", "f16", "q8_0"])
def test_memory_stays_near_the_largest_tensor(plain: Path, tmp_path: Path, outtype: str) -> None:
    folder = _empty_checkpoint(tmp_path / "checkpoint", plain)
    command = [sys.executable, "-c", MEASURE, str(folder), str(tmp_path / "out"), outtype]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    used = int(done.stdout)
    rows = 0 if outtype == "bf16" else 48 << 20  # read, in float32, and what NumPy takes to convert them
    assert used < LARGEST + rows + (16 << 20), f"{used / 2**20:.0f} MiB"
