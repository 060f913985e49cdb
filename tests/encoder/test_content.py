"""Hashes of files, remembered as long as nothing tells that a file has changed."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from diptych import files
from diptych.encoder import content
from diptych.encoder.content import sha256
from diptych.errors import FileError


@pytest.fixture(autouse=True)
def reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """A cache folder of this test's own, and the files that were read from end to end."""
    monkeypatch.setenv("DIPTYCH_HOME", str(tmp_path / "home"))
    found: list[Path] = []
    whole = content.hashed

    def hashed(path: Path) -> str:
        found.append(path)
        return whole(path)

    monkeypatch.setattr(content, "hashed", hashed)
    return found


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mmproj.gguf"
    path.write_bytes(b"weights")
    return path


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_a_file_is_read_once(file: Path, reads: list[Path]) -> None:
    assert [sha256(file) for _ in range(3)] == 3 * [digest(b"weights")]
    assert len(reads) == 1


def test_a_link_is_the_file_it_leads_to(file: Path, tmp_path: Path, reads: list[Path]) -> None:
    (tmp_path / "link.gguf").symlink_to(file)
    assert sha256(file) == sha256(tmp_path / "link.gguf")
    assert len(reads) == 1


def test_a_file_that_changed_is_read_again_even_where_size_and_time_are_what_they_were(file: Path, reads: list[Path]) -> None:
    before = sha256(file), file.stat()
    file.write_bytes(b"WEIGHTS")
    os.utime(file, ns=(before[1].st_atime_ns, before[1].st_mtime_ns))
    assert sha256(file) == digest(b"WEIGHTS") != before[0]
    assert len(reads) == 2


def test_another_file_in_its_place_is_read(file: Path, tmp_path: Path, reads: list[Path]) -> None:
    old = sha256(file)
    other = tmp_path / "other.gguf"
    other.write_bytes(b"another")
    other.replace(file)
    assert sha256(file) == digest(b"another") != old


@pytest.mark.parametrize("damage", [b"", b"{", b"[1]", b'{"x": 3}', b"\xff\xfe", b'{"%s": [1, 2, 3, 4, 5]}', b'{"%s": "abc"}'])
def test_a_damaged_memory_costs_a_read_and_is_mended(damage: bytes, file: Path, reads: list[Path]) -> None:
    sha256(file)
    place = files.home() / "hashes.json"
    place.write_bytes(damage.replace(b"%s", str(file).encode()))
    assert sha256(file) == sha256(file) == digest(b"weights")
    assert len(reads) == 2


def test_only_the_last_files_are_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content, "_MOST", 3)
    for i in range(5):
        (tmp_path / f"{i}.gguf").write_bytes(bytes([i]))
        sha256(tmp_path / f"{i}.gguf")
    known = json.loads((files.home() / "hashes.json").read_text())
    assert [Path(name).name for name in known] == ["2.gguf", "3.gguf", "4.gguf"]


def test_a_cache_folder_that_cannot_be_made_costs_a_read_each_time(file: Path, tmp_path: Path, reads: list[Path]) -> None:
    (tmp_path / "home").write_text("a file in the place of the folder")
    assert sha256(file) == sha256(file) == digest(b"weights")
    assert len(reads) == 2


def test_a_file_that_is_not_there_is_told_on_one_line(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"cannot read .*none.gguf: No such file"):
        sha256(tmp_path / "none.gguf")
