"""Graphs and weights that are kept for the next start: made once, whole or not at all, and never in the way."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import tiny
from diptych import convert, families
from diptych.encoder import prepared as module
from diptych.encoder.load import load
from diptych.encoder.precision import Choice, Precision, Runtime, this_machine
from diptych.encoder.prepared import DATA, MODEL, prepared
from diptych.errors import FileError
from diptych.families.base import Family
from diptych.options import Options
from diptych.types import Media, MediaSettings
from diptych.weights import Tensor, Weights, open_gguf, write_gguf
from pictures import noise

INT8 = Choice("int8", "openvino", "f32", "")
DAY = 86400


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    tiny.qwen2vl(folder)
    write_gguf(folder / "mmproj.gguf", convert.mmproj(convert.read_checkpoint(folder), "f32"))
    return folder / "mmproj.gguf"


@pytest.fixture(autouse=True)
def entries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of entries, of this test's own; nothing may stay in the temporary folder."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setenv("DIPTYCH_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "encoders"


@pytest.fixture
def left(tmp_path: Path) -> Iterator[list[str]]:
    """What is in the temporary folder when the test is over."""
    yield (found := [])
    found += os.listdir(tmp_path / "temporary")
    assert not found


def counted(file: Path, reads: list[str]) -> Family:
    """The family of a file, which tells what weights are read."""

    def told(tensor: Tensor) -> Tensor:
        def read() -> np.ndarray:
            reads.append(tensor.name)
            return tensor.read()

        return replace(tensor, read=read)

    weights = open_gguf(file)
    return families.for_projector("qwen2vl_merger")(Weights(weights.metadata, {n: told(t) for n, t in weights.tensors.items()}))


def made(file: Path, precision: Precision = "int8", runtime: Runtime = "openvino") -> tuple[Path, list[str]]:
    """Where the files of a family stand, and the weights that were read for it."""
    reads: list[str] = []
    family = counted(file, reads)
    with prepared(family, "image", Choice(precision, runtime, "f32", "")) as model:
        assert model.name == MODEL
        assert (model.parent / DATA).stat().st_size > 0
    return model.parent, reads


def rows(family: Family, choice: Choice = INT8) -> np.ndarray:
    """What a session gives for a picture."""
    session = load(family, "image", Options(threads=1), choice)
    (chunk,) = family.preprocess(Media("image", noise(84, 56), b"x"), MediaSettings())
    found = session.run(family.feed(chunk.pieces))
    session.close()
    return found


def test_an_entry_is_made_once_and_a_second_start_reads_no_weight(file: Path, entries: Path) -> None:
    entry, reads = made(file)
    assert set(reads) == set(open_gguf(file).tensors)
    again, none = made(file)
    assert (again, none) == (entry, [])
    assert os.listdir(entries) == [entry.name]
    assert sorted(os.listdir(entry)) == [MODEL, DATA]
    if os.name == "posix":
        assert entry.stat().st_mode & 0o077 == 0  # the user's own


def test_each_precision_and_runtime_has_an_entry_of_its_own(file: Path, entries: Path) -> None:
    kinds: list[tuple[Precision, Runtime]] = [(p, "openvino") for p in ("f32", "bf16", "f16", "int8")]
    found = {made(file, *kind)[0] for kind in [*kinds, ("int8", "onnxruntime"), ("int8", "kernels")]}
    assert len(found) == len(os.listdir(entries)) == 6


def test_content_that_changes_has_another_entry_and_its_own_rows(file: Path, tmp_path: Path) -> None:
    copy = tmp_path / "mmproj.gguf"
    copy.write_bytes(file.read_bytes())
    assert made(copy)[0] == made(file)[0], "the same content in another place"
    before = rows(counted(copy, []))
    weights = open_gguf(file)
    name = "v.blk.0.ffn_up.weight"
    changed = {**weights.tensors, name: replace(weights.tensors[name], read=lambda: 1 + weights.tensors[name].read(), place=None)}
    write_gguf(copy, Weights(weights.metadata, changed), force=True)
    assert made(copy)[0] != made(file)[0]
    assert np.abs(rows(counted(copy, [])) - before).max() > 0.01


@pytest.mark.parametrize(
    "choice", [INT8, Choice("int8", "onnxruntime", "f32", ""), Choice("int8", "kernels", "bf16", "")], ids=lambda c: c.runtime
)
def test_rows_are_the_same_from_an_entry_from_a_new_one_and_from_weights_in_no_file(
    choice: Choice, file: Path, left: list[str]
) -> None:
    if choice.runtime == "kernels" and not this_machine().runs_kernels:
        pytest.skip("the kernels are not for this CPU")
    first, warm = rows(counted(file, []), choice), rows(counted(file, []), choice)
    weights = open_gguf(file)
    nowhere = Weights(weights.metadata, {n: replace(t, place=None) for n, t in weights.tensors.items()})
    elsewhere = rows(families.for_projector("qwen2vl_merger")(nowhere), choice)
    np.testing.assert_array_equal(first, warm)
    np.testing.assert_array_equal(first, elsewhere)


F32 = Choice("f32", "onnxruntime", "f32", "")


def test_in_f32_a_file_of_float32_is_used_where_it_lies(file: Path, entries: Path) -> None:
    reads: list[str] = []
    rows(counted(file, reads), F32)
    assert (reads, entries.exists()) == ([], False)


def test_in_f32_another_file_is_widened_once(tmp_path: Path, file: Path, entries: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    narrow = tmp_path / "mmproj-f16.gguf"
    tiny.qwen2vl(tmp_path)
    write_gguf(narrow, convert.mmproj(convert.read_checkpoint(tmp_path), "f16"))
    reads: list[str] = []
    first = rows(counted(narrow, reads), F32)
    assert reads
    reads.clear()
    np.testing.assert_array_equal(rows(counted(narrow, reads), F32), first)
    assert (reads, len(os.listdir(entries))) == ([], 1)
    monkeypatch.setattr(module, "_kept", lambda *_: False)  # nor has the cache room for it
    module._remove(next(entries.iterdir()))
    np.testing.assert_array_equal(rows(counted(narrow, reads), F32), first)
    assert os.listdir(entries) == []


def test_a_link_to_the_cache_folder_serves_as_well(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    wanted = rows(counted(file, []), Choice("int8", "onnxruntime", "f32", ""))
    monkeypatch.setenv("DIPTYCH_HOME", str(tmp_path / "link"))
    np.testing.assert_array_equal(rows(counted(file, []), Choice("int8", "onnxruntime", "f32", "")), wanted)
    assert len(os.listdir(tmp_path / "real" / "encoders")) == 1


CHILD = """
import sys
from pathlib import Path
from diptych import families
from diptych.encoder.precision import Choice
from diptych.encoder.prepared import prepared
sys.stdin.read(1)
with prepared(families.open_family(Path(sys.argv[1])), "image", Choice("int8", "openvino", "f32", "")) as model:
    print(model.parent, (model.parent / "weights.bin").stat().st_size)
"""


def test_two_processes_at_once_make_one_entry(file: Path, entries: Path) -> None:
    children = [
        subprocess.Popen(
            [sys.executable, "-c", CHILD, file], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ
        )
        for _ in range(2)
    ]
    for child in children:
        assert child.stdin
        child.stdin.write("x")
        child.stdin.flush()
    told = {child.communicate(timeout=60)[0] for child in children}
    assert [child.returncode for child in children] == [0, 0]
    assert len(told) == 1
    assert os.listdir(entries) == [Path(told.pop().rsplit(" ", 1)[0]).name]


@pytest.mark.parametrize("damage", ["no weights", "cut off", "no model", "another model"])
def test_a_damaged_entry_is_made_again(damage: str, file: Path, entries: Path) -> None:
    entry, _ = made(file)
    whole = (entry / DATA).read_bytes()
    match damage:
        case "no weights":
            (entry / DATA).unlink()
        case "cut off":
            os.truncate(entry / DATA, len(whole) - 1)
        case "no model":
            (entry / MODEL).unlink()
        case _:
            (entry / MODEL).write_bytes(b"another")
    again, reads = made(file)
    assert again == entry
    assert reads
    assert (entry / DATA).read_bytes() == whole
    assert os.listdir(entries) == [entry.name]


def test_a_weight_that_cannot_be_read_leaves_nothing(file: Path, entries: Path, left: list[str]) -> None:
    family = counted(file, [])

    def broken() -> np.ndarray:
        raise FileError("the file is cut off")

    last = list(family.weights.tensors)[-1]
    tensors = {**family.weights.tensors, last: replace(family.weights.tensors[last], read=broken)}
    with (
        pytest.raises(FileError, match="cut off"),
        prepared(type(family)(Weights(family.weights.metadata, tensors)), "image", INT8),
    ):
        pass
    assert os.listdir(entries) == []


def test_an_error_inside_the_block_keeps_the_entry(file: Path, entries: Path) -> None:
    with pytest.raises(KeyError), prepared(counted(file, []), "image", INT8):
        raise KeyError
    assert made(file)[1] == []


def full(*_: object, **__: object) -> str:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("how", ["a file in its place", "no folder can be made", "no room for the weights"])
def test_a_cache_that_takes_nothing_is_told_and_the_media_half_works(
    how: str, file: Path, entries: Path, left: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    wanted = rows(counted(file, []))
    for entry in entries.iterdir():
        module._remove(entry)
    if how == "a file in its place":
        entries.rmdir()
        entries.write_text("")
    elif how == "no folder can be made":
        mkdtemp = tempfile.mkdtemp
        monkeypatch.setattr(tempfile, "mkdtemp", lambda dir=None, **k: full() if dir else mkdtemp(**k))
    else:
        fsync = os.fsync
        calls: list[int] = []
        monkeypatch.setattr(os, "fsync", lambda n: fsync(n) if calls or calls.append(n) else full())
    np.testing.assert_array_equal(rows(counted(file, [])), wanted)
    (warning,) = (r.message for r in caplog.records if "not kept for the next start" in r.message)
    assert str(entries) in warning
    if entries.is_dir():
        assert os.listdir(entries) == []


def test_no_room_anywhere_is_told_on_one_line_and_leaves_nothing(
    file: Path, entries: Path, left: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FileError, match=r"MB of the encoder's weights cannot be written to .*: No space left.*TMPDIR"):
        made(file)
    assert os.listdir(entries) == []


def aged(entries: Path, name: str, days: float) -> Path:
    folder = entries / name
    folder.mkdir(parents=True)
    (folder / DATA).write_bytes(b"x")
    past = time.time() - days * DAY
    os.utime(folder / DATA, (past, past))
    os.utime(folder, (past, past))
    return folder


def test_entries_that_nobody_uses_and_what_killed_processes_left_are_removed(file: Path, entries: Path) -> None:
    kept = [aged(entries, "new", 1), aged(entries, "old", 89), aged(entries, ".part-running", 0.5)]
    gone = [aged(entries, "unused", 91), aged(entries, ".part-killed", 1.1)]
    (entries / "stray.txt").write_text("not ours")
    entry, _ = made(file)
    assert {p.name for p in entries.iterdir()} == {entry.name, "stray.txt", *(p.name for p in kept)}
    assert not any(p.exists() for p in gone)


def test_a_folder_that_is_still_written_to_is_not_taken_for_abandoned(file: Path, entries: Path) -> None:
    folder = aged(entries, ".part-slow", 3)
    os.utime(folder / DATA)
    made(file)
    assert folder.exists()


def test_use_keeps_an_entry(file: Path) -> None:
    entry, _ = made(file)
    past = time.time() - 80 * DAY
    os.utime(entry, (past, past))
    made(file)
    assert time.time() - entry.stat().st_mtime < DAY


@pytest.mark.skipif(sys.platform != "linux", reason="maps are Linux's")
def test_openvino_holds_no_page_of_the_file_once_it_has_run(file: Path) -> None:
    family = counted(file, [])
    session = load(family, "image", Options(threads=1), INT8)
    (chunk,) = family.preprocess(Media("image", noise(84, 56), b"x"), MediaSettings())
    session.run(family.feed(chunk.pieces))
    held, ours = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(" ", 1)[0]:
            ours = line.endswith(DATA)
        elif ours and line.startswith("Rss:"):
            held += int(line.split()[1])
    session.close()
    assert held == 0
