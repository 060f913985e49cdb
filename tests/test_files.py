"""Output files appear whole or not at all."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from diptych.errors import OutputError
from diptych.files import check_output, whole_file, whole_folder


def test_a_file_takes_its_place_when_the_block_ends(tmp_path: Path) -> None:
    target = tmp_path / "a.bin"
    with whole_file(target) as part:
        part.write_bytes(b"x" * 10)
        assert not target.exists()
    assert target.read_bytes() == b"x" * 10
    assert list(tmp_path.iterdir()) == [target]
    assert target.stat().st_mode & 0o777 == 0o666 & ~_umask()


def test_nothing_is_left_when_the_block_fails(tmp_path: Path) -> None:
    old = tmp_path / "a.bin"
    old.write_bytes(b"old")
    with pytest.raises(ValueError), whole_file(old, force=True) as part:
        part.write_bytes(b"half")
        raise ValueError
    assert old.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [old]


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="No space left on device"), whole_file(tmp_path / "a.bin"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_a_real_full_disk_is_told(tmp_path: Path) -> None:
    """A file size limit of the process stands in for the disk: the write itself fails with EFBIG."""
    code = (
        "import resource, signal, sys; from pathlib import Path; from diptych.files import whole_file\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "from diptych.errors import OutputError\n"
        "try:\n"
        "    with whole_file(Path(sys.argv[1]) / 'a.bin') as part: part.write_bytes(bytes(5000))\n"
        "except OutputError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert "free some space" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_what_exists_needs_force(tmp_path: Path) -> None:
    target = tmp_path / "a.bin"
    target.write_bytes(b"old")
    with pytest.raises(OutputError, match="--force"):
        check_output(target)
    with whole_file(target, force=True) as part:
        part.write_bytes(b"new")
    assert target.read_bytes() == b"new"


def test_an_input_is_never_overwritten_even_through_a_link(tmp_path: Path) -> None:
    source, link = tmp_path / "in.gguf", tmp_path / "out.gguf"
    source.write_bytes(b"in")
    link.symlink_to(source)
    with pytest.raises(OutputError, match="also an input"):
        check_output(link, force=True, inputs=[source])


@pytest.mark.parametrize(("name", "message"), [("", "is a folder"), ("missing/a.bin", "there is no folder")])
def test_a_place_that_cannot_take_a_file_is_refused(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(OutputError, match=message):
        check_output(tmp_path / name)


def test_a_folder_appears_whole_and_leaves_other_files_alone(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "out"
    with whole_folder(target) as part:
        (part / "a").write_text("1")
    (target / "other").write_text("mine")
    with pytest.raises(OutputError, match="exists"), whole_folder(target) as part:
        (part / "a").write_text("2")
    with whole_folder(target, force=True) as part:
        (part / "a").write_text("3")
    assert sorted(p.name for p in target.iterdir()) == ["a", "other"]
    assert (target / "a").read_text() == "3"
    assert [p.name for p in target.parent.iterdir()] == ["out"]


def test_a_failed_folder_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError), whole_folder(tmp_path / "out") as part:
        (part / "a").write_text("1")
        raise ValueError
    assert list(tmp_path.iterdir()) == []


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_an_error_about_a_file_inside_a_folder_names_its_place(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with pytest.raises(OutputError) as error, whole_folder(target) as part, whole_file(part / "a.bin"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert f"cannot write {target / 'a.bin'}:" in str(error.value)
