"""Rows in the files of a folder: whole or not there, private, bounded, for several processes at once."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from diptych.encoder.folder import Folder
from diptych.families.base import Rows

MIB = 1 << 20
SIZE = 8 + 4 + 32 + 4 + 4 + 4 + 32 + 2 * 4 * 4  # bytes of the file of `rows(2)`


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "home" / "media"


def files(place: Path) -> list[Path]:
    return sorted(place.iterdir()) if place.exists() else []


def rows(n: int, value: float = 1.0) -> Rows:
    return np.full((n, 4), value, np.float32)


def key(i: int) -> bytes:
    return bytes([i]) * 32


@pytest.fixture
def folder(place: Path) -> Folder:
    return Folder(place, MIB)


def test_rows_are_the_same_to_the_bit_whatever_they_are(folder: Folder) -> None:
    bits = np.random.default_rng(0).integers(0, 2**32, (64, 4), np.uint32)
    for array in (bits.view(np.float32), bits.view(np.float32)[::2], bits.T.copy().view(np.float32).T):
        folder.put(key(1), array)
        found = folder.get(key(1), array.shape)
        assert found is not None
        np.testing.assert_array_equal(found.view(np.uint32), np.ascontiguousarray(array).view(np.uint32))
    assert folder.get(key(2), (64, 4)) is None


@pytest.mark.parametrize("spoil", ["change", "cut", "grow"])
def test_a_file_that_is_not_what_was_written_is_removed_wherever_it_differs(folder: Folder, place: Path, spoil: str) -> None:
    folder.put(key(1), rows(2))
    (file,) = files(place)
    good = file.read_bytes()
    assert len(good) == SIZE
    for at in range(SIZE):
        bad = {"change": good[:at] + bytes([good[at] ^ 4]) + good[at + 1 :], "cut": good[:at], "grow": good + bytes(at + 1)}
        file.write_bytes(bad[spoil])
        assert folder.get(key(1), (2, 4)) is None, at
        assert files(place) == []
    folder.put(key(1), rows(2))
    assert folder.get(key(1), (2, 4)) is not None


def test_a_file_of_other_rows_is_removed(folder: Folder, place: Path) -> None:
    folder.put(key(1), rows(2))
    files(place)[0].rename(place / f"{key(2).hex()}.rows")
    assert folder.get(key(2), (2, 4)) is None
    assert files(place) == []
    for shape in ((1, 4), (2, 8), (4, 2)):
        folder.put(key(1), rows(2))
        assert folder.get(key(1), shape) is None
        assert files(place) == []


def test_links_and_folders_in_the_way_are_left_alone(folder: Folder, place: Path, tmp_path: Path) -> None:
    folder.put(key(1), rows(2))
    file = files(place)[0].rename(tmp_path / "elsewhere")
    (place / f"{key(1).hex()}.rows").symlink_to(file)
    (place / f"{key(2).hex()}.rows").mkdir()
    assert folder.get(key(1), (2, 4)) is None
    assert folder.get(key(2), (2, 4)) is None
    folder.put(key(1), rows(2, 5))
    assert folder.get(key(1), (2, 4)) is not None
    assert Folder(tmp_path, MIB).get(key(1), (2, 4)) is None
    with pytest.raises(OSError, match=r"directory|Directory"):
        folder.put(key(2), rows(2))
    assert not [one for one in files(place) if one.suffix == ".part"]


def test_folder_and_files_are_private(folder: Folder, place: Path) -> None:
    before = os.umask(0)
    try:
        folder.put(key(1), rows(2))
    finally:
        os.umask(before)
    assert [stat.S_IMODE(one.stat().st_mode) for one in (place, *files(place))] == [0o700, 0o600]
    place.chmod(0o755)
    assert folder.get(key(1), (2, 4)) is not None
    assert stat.S_IMODE(place.stat().st_mode) == 0o700


def test_the_folder_of_another_user_is_not_used(folder: Folder, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.put(key(1), rows(2))
    monkeypatch.setattr(os, "geteuid", lambda: place.stat().st_uid + 1)
    assert folder.get(key(1), (2, 4)) is None
    with pytest.raises(PermissionError, match="another user"):
        folder.put(key(2), rows(2))


def test_those_not_used_for_longest_make_room_whoever_used_them(place: Path) -> None:
    folder, other = Folder(place, 3 * SIZE), Folder(place, 3 * SIZE)
    for i in range(3):
        folder.put(key(i), rows(2))
        age(place, i, 100 - i)
    assert other.get(key(0), (2, 4)) is not None
    folder.put(key(3), rows(2))
    assert kept(folder) == [0, 2, 3]
    assert folder.n_bytes == 3 * SIZE
    other.put(key(4), rows(100))  # larger than all there may be
    assert kept(folder) == [0, 2, 3]
    Folder(place, SIZE).tidy()
    assert len(files(place)) == 1


def age(place: Path, i: int, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(place / f"{key(i).hex()}.rows", (then, then))


def kept(folder: Folder) -> list[int]:
    return [i for i in range(9) if folder.get(key(i), (2, 4)) is not None]


def test_what_broken_processes_left_goes_and_what_others_write_stays(folder: Folder, place: Path) -> None:
    folder.put(key(1), rows(2))
    for name, hours in (("old.part", 2), ("new.part", 0), ("notes.txt", 99)):
        (place / name).write_bytes(bytes(10))
        then = time.time() - 3600 * hours
        os.utime(place / name, (then, then))
    folder.put(key(2), rows(2))
    assert [file.name for file in files(place) if file.suffix != ".rows"] == ["new.part", "notes.txt"]


WORKER = """
import sys, numpy as np
from pathlib import Path
from diptych.encoder.folder import Folder
folder, random, hits = Folder(Path(sys.argv[1]), int(sys.argv[2])), np.random.default_rng(int(sys.argv[3])), 0
for i in random.integers(0, 30, 600):
    shape = (1 + int(i) % 3, 4096)
    found = folder.get(bytes([i]) * 32, shape)
    if found is None:
        folder.put(bytes([i]) * 32, np.full(shape, i + 1, np.float32))
    else:
        assert (found == i + 1).all()
        hits += 1
print(hits)
"""


def test_processes_write_and_read_at_once(place: Path) -> None:
    room = 20 * 2 * 4096 * 4  # of 30 entries, two thirds
    command = [sys.executable, "-c", WORKER, str(place), str(room)]
    workers = [
        subprocess.Popen([*command, str(seed)], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for seed in range(3)
    ]
    for worker in workers:
        out, err = worker.communicate(timeout=60)
        assert (worker.returncode, err) == (0, "")
        assert int(out) > 100
    assert not [file for file in files(place) if file.suffix != ".rows"]
    assert sum(file.stat().st_size for file in files(place)) <= room
