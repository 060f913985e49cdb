"""Lines that break, damage on the way, and disks that fill: what goes on, and what is thrown away."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import constants, try_to_load_from_cache

from diptych.errors import FileError, OutputError
from diptych.hub import arrival, record
from diptych.hub import download as ours
from hub.repository import MMPROJ, NAME, TEXT, cache, contents, half_written, left, refused
from hub.stand_in import Hub, Repo


def test_a_line_that_breaks_is_taken_up_where_it_broke(hub: Hub, repo: Repo, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.faults.cut_after = 100_000
    assert contents(ours.fetch(NAME)) == (TEXT, MMPROJ)
    ranges = [r for method, path, r in hub.asked if path.startswith("/cdn/")]
    assert ranges == [None, *(f"bytes={i}00000-" for i in (1, 2, 3, 4, 5)), None, "bytes=100000-", "bytes=200000-"]
    assert hub.sent == len(TEXT) + len(MMPROJ)


def test_an_interrupted_download_goes_on_in_the_next_process(hub: Hub, repo: Repo) -> None:
    hub.faults.slow = 0.05
    code = f"from diptych.hub import download as hub; hub.fetch({NAME!r})"
    process = subprocess.Popen([sys.executable, "-c", code], env=os.environ.copy())
    wait_for(lambda: hub.sent > 200_000)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (part,) = half_written()
    arrived = part.stat().st_size
    assert 0 < arrived < len(TEXT)
    (found,) = ours.listed()
    assert (found.complete, found.whole, found.here) == (False, False, arrived)
    assert not try_to_load_from_cache(NAME, "reader-Q4_K_M.gguf", cache_dir=cache()), "nobody takes it for whole"
    with pytest.raises(FileError, match="is not here whole, and this is offline"):
        ours.fetch(NAME, offline=True)
    hub.faults.slow = 0.0
    hub.asked.clear()
    repo.commit({"reader-Q4_K_M.gguf": b"other" * 1000})  # and meanwhile the branch went on
    assert contents(ours.fetch(NAME)) == (TEXT, MMPROJ)
    assert [r for _, path, r in hub.asked if path.startswith("/cdn/")] == [f"bytes={arrived}-", None]
    assert not half_written()
    assert ours.listed()[0].whole


def test_two_processes_fetch_a_file_once(hub: Hub, repo: Repo) -> None:
    hub.faults.slow = 0.02
    command = [sys.executable, "-c", f"from diptych.hub import download as hub; hub.fetch({NAME!r})"]
    both = [subprocess.Popen(command, env=os.environ.copy()) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    assert hub.sent == len(TEXT) + len(MMPROJ)
    assert contents(ours.fetch(NAME, offline=True)) == (TEXT, MMPROJ)


def wait_for(there: Callable[[], bool]) -> None:
    for _ in range(1000):
        if there():
            return
        time.sleep(0.02)
    raise AssertionError("it did not happen within 20 seconds")


def test_a_server_without_ranges_begins_again(hub: Hub, repo: Repo) -> None:
    hub.faults.cut_after, hub.faults.cuts, hub.faults.no_range = 100_000, 1, True
    assert contents(ours.fetch(NAME)) == (TEXT, MMPROJ)


def test_a_line_that_brings_nothing_more_is_given_up_and_what_came_is_kept(
    hub: Hub, repo: Repo, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.faults.cut_after, hub.faults.no_range = 50_000, True
    with pytest.raises(FileError, match=r"cannot get me/reader-GGUF from http://127.*run it again, and it goes on$"):
        ours.fetch(NAME)
    assert len([path for _, path, _ in hub.asked if path.startswith("/cdn/")]) == 1 + arrival.ATTEMPTS
    assert half_written()[0].stat().st_size == 50_000
    hub.faults.cut_after = None
    assert contents(ours.fetch(NAME)) == (TEXT, MMPROJ)


def test_damage_on_the_way_is_noticed_and_thrown_away(hub: Hub, repo: Repo) -> None:
    hub.faults.damage = True
    with pytest.raises(FileError, match="did not arrive as the hub announced it, and was thrown away; run it again"):
        ours.fetch(NAME)
    assert left() == [], "neither a file, nor a link, nor a record of it"
    hub.faults.damage = False
    assert contents(ours.fetch(NAME)) == (TEXT, MMPROJ)


def test_a_part_that_belongs_to_nothing_is_noticed(repo: Repo) -> None:
    blobs = cache() / "models--me--reader-GGUF" / "blobs"
    blobs.mkdir(parents=True)
    part = record.partial(blobs, hashlib.sha256(TEXT).hexdigest())
    part.write_bytes(b"x" * 1000)
    with pytest.raises(FileError, match="thrown away"):
        ours.fetch(NAME)
    assert not part.exists()
    blobs.mkdir(parents=True)
    part.write_bytes(b"x" * (len(TEXT) + 1))
    with pytest.raises(FileError, match="thrown away"):
        ours.fetch(NAME)
    assert contents(ours.fetch(NAME)) == (TEXT, MMPROJ)


def test_small_files_are_checked_too(hub: Hub) -> None:
    hub.repo(NAME, {"a-Q4_K_M.gguf": b"small", "mmproj.gguf": b"too"})
    assert contents(ours.fetch(NAME)) == (b"small", b"too")
    blob = ours.fetch(NAME).text.resolve()
    assert blob.name == hashlib.sha1(b"blob 5\0small").hexdigest()


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_server_is_asked_again(hub: Hub, repo: Repo, status: int) -> None:
    hub.faults.body_status, hub.faults.statuses = status, arrival.ATTEMPTS - 1
    assert contents(ours.fetch(NAME)) == (TEXT, MMPROJ)


def test_a_disk_that_is_too_small_is_told_before_anything_is_written(repo: Repo, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type(shutil.disk_usage("/"))(1000, 0, 1000)
    monkeypatch.setattr(ours.shutil, "disk_usage", lambda path: usage)
    refused(r"me/reader-GGUF:Q4_K_M needs 0.8 MB more in .*, and 0.0 MB are free; free some space", error=OutputError)


def test_a_disk_that_fills_on_the_way_is_told_and_what_came_is_kept(hub: Hub, repo: Repo) -> None:
    code = f"""
import resource, signal
from diptych.hub import download as hub
from diptych.errors import OutputError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
try:
    hub.fetch({NAME!r})
except OutputError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("cannot write me/reader-GGUF to "), done.stdout + done.stderr
    assert "File too large; what arrived is kept, free some space" in done.stdout
    arrived = half_written()[0].stat().st_size
    assert 0 < arrived <= 200_000
    assert contents(ours.fetch(NAME)) == (TEXT, MMPROJ)
    assert f"bytes={arrived}-" in [r for _, _, r in hub.asked]


def test_a_cache_that_cannot_be_written_is_told(repo: Repo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "file" / "hub"))
    with pytest.raises(OutputError, match=r"cannot write .*; set HF_HOME and DIPTYCH_HOME to where you may"):
        ours.fetch(NAME)


def test_a_system_without_links_gets_the_files_themselves(repo: Repo, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(self: Path, target: object) -> None:
        raise OSError("a required privilege is not held by the client")

    monkeypatch.setattr(Path, "symlink_to", no_links)
    found = ours.fetch(NAME)
    assert contents(found) == (TEXT, MMPROJ)
    assert not found.text.is_symlink()
    assert not list((found.text.parent.parent.parent / "blobs").iterdir())
    assert ours.remove(ours.listed()[0]).size == len(TEXT) + len(MMPROJ)
    assert left() == []


def test_a_file_too_large_for_plain_http_is_left_to_the_library(repo: Repo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ours, "_HTTP_LIMIT", len(MMPROJ))
    found = ours.fetch(NAME)
    assert contents(found) == (TEXT, MMPROJ)
    assert found.text.is_symlink()
    assert ours.listed()[0].whole
