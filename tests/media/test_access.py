"""What a media part may name: files below a directory, and what options make of a server and of the command line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from diptych.errors import MediaError
from diptych.media.access import Access, shown
from diptych.options import Options, ServerOptions


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in" / "sub").mkdir(parents=True)
    for name in ("out.png", "in/a.png", "in/sub/b c.png", "in/sub/ü.png"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "in" / "link.png").symlink_to("a.png")
    (tmp_path / "in" / "leaves.png").symlink_to(tmp_path / "out.png")
    (tmp_path / "in" / "up").symlink_to(tmp_path)
    (tmp_path / "in" / "round").symlink_to("round")
    os.mkfifo(tmp_path / "in" / "pipe")
    return tmp_path / "in"


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("a.png", "a.png"),
        ("/a.png", "a.png"),
        ("//sub//b c.png", "sub/b c.png"),
        ("sub/ü.png", "sub/ü.png"),
        ("./a.png", "a.png"),
        ("link.png", "a.png"),
    ],
)
def test_files_below_the_directory_are_found(folder: Path, name: str, found: str) -> None:
    assert Access(files=folder).find(name) == (folder / found).resolve()


@pytest.mark.parametrize(
    "name",
    ["../out.png", "sub/../../out.png", "/../out.png", "a..png", "", " a.png", "a.png ", "a.png.", "a\0.png", "a\n.png",
     "C:a.png", "a*.png", "a?.png", 'a".png', "<a.png", "a>.png", "a|.png", "sub\\b.png", "\uff0e\uff0e/out.png",
     "a\u2215b.png", "\ud800.png", "\x85.png", "x" * 256],
)  # fmt: skip
def test_names_that_could_lead_elsewhere_are_refused(folder: Path, name: str) -> None:
    with pytest.raises(MediaError, match=r"cannot be read; give the path of a file below --media-path") as caught:
        Access(files=folder).find(name)
    assert caught.value.status == 400
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["leaves.png", "up/out.png", "sub", "/", "pipe"])
def test_links_that_leave_and_what_is_no_file_are_refused(folder: Path, name: str) -> None:
    with pytest.raises(MediaError, match="is no file below --media-path"):
        Access(files=folder).find(name)


@pytest.mark.parametrize("name", ["none.png", "a.png/b.png", "round", "x" * 255])
def test_files_that_are_not_there_are_told_without_the_directory(folder: Path, name: str) -> None:
    with pytest.raises(MediaError, match=r"^there is no file file://.*; check the name$") as caught:
        Access(files=folder).find(name)
    assert str(folder) not in str(caught.value)


def test_a_directory_may_itself_be_a_link(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "there").symlink_to(folder)
    assert Access(files=tmp_path / "there").find("a.png") == (folder / "a.png").resolve()


def test_a_server_allows_nothing_of_its_machine_by_itself() -> None:
    access = Access.server(ServerOptions())
    assert (access.files, access.allow_private, access.proxies, access.allowed_hosts) == ("none", False, False, ())
    assert access == Access()
    asked = ServerOptions(media_path=Path("/m"), remote_media=False, allowed_media_hosts=("a",), allow_private_media=True,
                          media_max_bytes=1, media_max_pixels=2, media_max_seconds=3)  # fmt: skip
    assert Access.server(asked) == Access(Path("/m"), False, ("a",), True, False, 1, 10.0, 2, 3.0)


def test_the_command_line_may_name_whatever_its_user_can_read() -> None:
    access = Access.local(Options(media_max_bytes=1, media_max_pixels=2, media_max_seconds=3))
    assert access == Access("any", True, (), True, True, 1, 60.0, 2, 3.0)


def test_text_of_others_is_shown_in_one_short_line() -> None:
    assert shown("a\nb\x1b[0m\ud800") == "a?b?[0m?"
    assert shown("x" * 100) == "x" * 100
    assert shown("x" * 10**7) == "x" * 97 + "..."
