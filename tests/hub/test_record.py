"""What is recorded, and that removing takes away what Diptych brought and nothing else."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest
from huggingface_hub import constants, hf_hub_download, scan_cache_dir

from diptych.errors import FileError
from diptych.hub import download as ours
from diptych.hub import record
from hub.stand_in import Hub

NAME = "me/reader-GGUF"
TEXT, MMPROJ = b"text" * 20_000, b"mmproj" * 5_000
FILES = {"a-Q4_K_M.gguf": TEXT, "a-Q8_0.gguf": TEXT[::-1], "mmproj-F16.gguf": MMPROJ, "README.md": b"read me"}


@pytest.fixture(autouse=True)
def repo(hub: Hub) -> None:
    hub.repo(NAME, FILES)


def cache() -> Path:
    return Path(constants.HF_HUB_CACHE)


def downloaded(name: str) -> record.Download:
    return next(d for d in record.listed() if d.name == name)


def in_cache() -> set[str]:
    """The files that other tools see."""
    return {f.file_name for repo in scan_cache_dir(cache()).repos for r in repo.revisions for f in r.files}


def lying() -> list[Path]:
    return [p for p in cache().rglob("*") if not p.is_dir()]


def test_nothing_is_listed_where_nothing_was_downloaded() -> None:
    assert record.listed() == []
    assert not record.home().exists(), "looking makes no folder"


def test_removing_gives_all_the_room_back() -> None:
    ours.fetch(NAME)
    removed = ours.remove(downloaded(f"{NAME}:Q4_K_M"))
    assert removed == record.Removed(2, len(TEXT) + len(MMPROJ), ())
    assert lying() == []
    assert record.listed() == []
    assert not (cache() / "models--me--reader-GGUF").exists()


def test_a_file_that_another_model_needs_stays_until_that_goes_too() -> None:
    ours.fetch(NAME)
    ours.fetch(f"{NAME}:Q8_0")
    removed = ours.remove(downloaded(f"{NAME}:Q4_K_M"))
    assert (removed.files, removed.size) == (1, len(TEXT))
    assert [Path(p).name for p in removed.kept] == ["mmproj-F16.gguf"]
    assert ours.fetch(f"{NAME}:Q8_0", offline=True).mmproj
    assert ours.remove(downloaded(f"{NAME}:Q8_0")).size == len(TEXT) + len(MMPROJ)
    assert lying() == []


def test_what_another_tool_brought_stays() -> None:
    theirs = Path(hf_hub_download(NAME, "mmproj-F16.gguf", cache_dir=cache()))
    readme = Path(hf_hub_download(NAME, "README.md", cache_dir=cache()))
    ours.fetch(NAME)
    removed = ours.remove(downloaded(f"{NAME}:Q4_K_M"))
    assert (removed.files, removed.size, removed.kept) == (1, len(TEXT), (str(theirs),))
    assert (theirs.read_bytes(), readme.read_bytes()) == (MMPROJ, b"read me")
    assert in_cache() == {"mmproj-F16.gguf", "README.md"}
    assert (cache() / "models--me--reader-GGUF" / "refs" / "main").is_file()


def test_a_blob_that_another_snapshot_points_to_stays(hub: Hub) -> None:
    ours.fetch(NAME)
    hub.repos[NAME].commit({**FILES, "README.md": b"changed"})
    theirs = Path(hf_hub_download(NAME, "a-Q4_K_M.gguf", cache_dir=cache()))  # links to the blob that we brought
    removed = ours.remove(downloaded(f"{NAME}:Q4_K_M"))
    assert (removed.files, removed.size) == (2, len(MMPROJ))
    assert theirs.read_bytes() == TEXT


def test_two_revisions_are_removed_one_by_one(hub: Hub) -> None:
    old = ours.fetch(NAME)
    hub.repos[NAME].commit({**FILES, "a-Q4_K_M.gguf": b"new" * 1000})
    ours.fetch(NAME, revision="main")
    new, first = record.listed()
    assert ours.remove(new).size == 3000
    assert ours.fetch(NAME, offline=True) == old
    assert ours.remove(first).size == len(TEXT) + len(MMPROJ)
    assert lying() == []


def test_a_download_that_was_broken_off_can_be_removed(hub: Hub) -> None:
    hub.faults.cut_after, hub.faults.no_range = 40_000, True
    with pytest.raises(FileError, match="cannot get"):
        ours.fetch(NAME)
    (found,) = record.listed()
    assert (found.complete, found.whole, 0 < found.here <= 40_000) == (False, False, True)
    assert [p.suffix for p in lying() if p.parent.name == "blobs"] == [".incomplete"]
    ours.remove(found)
    assert lying() == []
    assert record.listed() == []


def test_what_was_deleted_by_hand_is_no_error() -> None:
    ours.fetch(NAME)
    shutil.rmtree(cache())
    (found,) = record.listed()
    assert (found.complete, found.whole, found.here) == (True, False, 0)
    assert ours.remove(found) == record.Removed(0, 0, ())
    assert record.listed() == []


def test_a_damaged_record_is_told_by_its_name() -> None:
    ours.fetch(NAME)
    (file,) = (record.home() / "hub").glob("*.json")
    assert file.name.startswith("me-reader-GGUF-Q4_K_M.")
    for content in "", "[]", "{", '{"name": 1}', "\xff":
        file.write_bytes(content.encode("latin-1"))
        with pytest.raises(FileError, match=r"Q4_K_M\..*\.json, Diptych's record of a download, is damaged.*remove it"):
            record.listed()


def test_the_home_is_where_the_variables_say(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DIPTYCH_HOME", "~/x")
    assert record.home() == Path.home() / "x"
    monkeypatch.delenv("DIPTYCH_HOME")
    if sys.platform != "win32":
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        assert record.home() == tmp_path / "diptych"
        monkeypatch.delenv("XDG_CACHE_HOME")
        assert record.home() == Path.home() / ".cache" / "diptych"


def test_a_record_names_no_folder_but_its_own() -> None:
    ours.fetch(f"{NAME}:a-Q8_0.gguf")
    (file,) = (record.home() / "hub").iterdir()
    assert os.sep not in file.name
    assert ours.listed()[0].name == f"{NAME}:a-Q8_0.gguf"
