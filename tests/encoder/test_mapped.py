"""Giving back the memory of mapped files and of what was freed, measured by the kernel's own count of resident pages."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import time
from pathlib import Path

import pytest

from diptych.encoder.mapped import release, released, trim

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing is given back")
SIZE = 8 * 2**20


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "weights of a model.bin"  # maps are told with the spaces of their names
    path.write_bytes(os.urandom(SIZE))
    return path.resolve()


def resident(path: Path) -> int:
    """Bytes of a file's mapped pages that are in this process's memory."""
    total, ours = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(" ", 1)[0]:
            ours = str(path) in line
        elif ours and line.startswith("Rss:"):
            total += int(line.split()[1]) * 1024
    return total


def mapping(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def test_pages_leave_the_memory_and_come_back_as_they_were(file: Path) -> None:
    whole = file.read_bytes()
    with mapping(file) as mapped:
        assert mapped[:] == whole
        assert resident(file) == SIZE
        assert release(file) == SIZE
        assert resident(file) == 0
        assert mapped[:] == whole


def test_a_file_that_was_removed_meanwhile_is_given_back_as_well(file: Path) -> None:
    with mapping(file) as mapped:
        assert len(mapped[:]) == SIZE
        file.unlink()
        assert release(file) == SIZE
        assert resident(file) == 0


def test_a_mapping_that_is_written_to_is_left_alone(file: Path) -> None:
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
        mapped[:4] = b"mine"
        assert release(file) == 0
        assert mapped[:4] == b"mine"


def test_other_files_are_left_alone(file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.bin"
    other.write_bytes(os.urandom(SIZE))
    with mapping(other) as mapped:
        assert len(mapped[:]) == SIZE
        assert release(file) == 0
        assert resident(other.resolve()) == SIZE


def test_pages_are_given_back_again_and_again_while_the_block_runs_and_at_its_end(file: Path) -> None:
    with mapping(file) as mapped:
        with released(file):
            assert len(mapped[:]) == SIZE
            deadline = time.monotonic() + 20
            while resident(file) and time.monotonic() < deadline:
                time.sleep(0.01)
            assert resident(file) == 0
            assert len(mapped[:]) == SIZE
        assert resident(file) == 0


def test_an_error_inside_the_block_goes_through(file: Path) -> None:
    with mapping(file) as mapped, pytest.raises(KeyError), released(file):
        assert len(mapped[:]) == SIZE
        raise KeyError


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="the C library cannot be told"
)
def test_what_was_freed_goes_back_to_the_system() -> None:
    def anonymous() -> int:
        line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
        return int(line.split()[1]) * 1024

    blocks = [os.urandom(100_000) for _ in range(400)]
    some = blocks[::20]  # between which the library keeps what is free
    del blocks
    before = anonymous()
    trim()
    assert before - anonymous() > 20 * 2**20
    assert len(some) == 20
