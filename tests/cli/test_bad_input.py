"""What people get wrong: each is one clear line and exit code 2, and nothing half-written stays."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import pictures
import tiny
from cli.conftest import Diptych, Done
from diptych.convert import convert

Arguments = tuple[object, ...]


def refused(done: Done, *said: str) -> None:
    assert done.code == 2, (done.out, done.err)
    assert done.err.startswith("error: "), done.err
    assert done.err.count("\n") == 1, done.err
    for words in said:
        assert words in done.err


@pytest.fixture(scope="session")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose rows are wider than those of `model`."""
    folder = tmp_path_factory.mktemp("wide")
    convert(tiny.qwen2vl(folder / "checkpoint", tiny.Qwen2VL(hidden=256, n_head=8)), folder / "model", outtype="f16")
    return folder / "model"


def test_halves_of_different_width_are_refused_with_both_widths(diptych: Diptych, model: Path, wide: Path, picture: Path) -> None:
    done = diptych("run", "-m", model / "text.gguf", "--mmproj", wide / "mmproj.gguf", "-p", "x", "--image", picture)
    refused(done, "256", "128")


@pytest.mark.parametrize("which", ["-m", "--mmproj"])
@pytest.mark.parametrize("spoil", ["missing", "empty", "text", "half", "few"])
def test_a_spoilt_gguf_is_refused_by_name(diptych: Diptych, model: Path, tmp_path: Path, which: str, spoil: str) -> None:
    good = {"-m": model / "text.gguf", "--mmproj": model / "mmproj.gguf"}
    data = good[which].read_bytes()
    bad = tmp_path / "bad.gguf"
    if spoil != "missing":
        bad.write_bytes({"empty": b"", "text": b"hello " * 100, "half": data[: len(data) // 2], "few": data[:20]}[spoil])
    files = {**good, which: bad}
    refused(diptych("run", "-m", files["-m"], "--mmproj", files["--mmproj"], "-p", "x", "-n", 1), "bad.gguf")


def test_the_halves_the_wrong_way_round_are_told(diptych: Diptych, model: Path) -> None:
    refused(diptych("run", "-m", model / "mmproj.gguf", "-p", "x"), "--mmproj")
    refused(diptych("run", "-m", model / "text.gguf", "--mmproj", model / "text.gguf", "-p", "x"), "text.gguf")


def test_a_picture_without_a_media_half_is_told(diptych: Diptych, model: Path, picture: Path) -> None:
    refused(diptych("run", "-m", model / "text.gguf", "-p", "x", "--image", picture), "--mmproj")


def test_a_prompt_longer_than_the_context_is_told_with_the_numbers(diptych: Diptych, model: Path, tmp_path: Path) -> None:
    large = pictures.save(tmp_path / "large.png", pictures.gradient(560, 560))
    done = diptych("run", model, "-p", "x", "--image", large, "-c", 256, "-n", 1)
    refused(done, "256", "4")


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n", b"<html></html>"])
def test_a_broken_picture_is_refused_by_name(diptych: Diptych, model: Path, tmp_path: Path, content: bytes) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(content)
    refused(diptych("encode", "--mmproj", model / "mmproj.gguf", "--image", bad, "-o", tmp_path / "o.npz"), "bad.png")
    assert not (tmp_path / "o.npz").exists()


def test_a_missing_picture_and_a_folder_are_refused_by_name(diptych: Diptych, model: Path, tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere.png", tmp_path):
        refused(diptych("run", model, "-p", "x", "--image", path), str(path))


def test_a_picture_over_the_limit_is_refused_before_decoding(
    diptych: Diptych, model: Path, picture: Path, tmp_path: Path
) -> None:
    limit = ("--media-max-pixels", 5000)
    refused(diptych("run", model, "-p", "x", "--image", picture, *limit), "7,700", "5,000")


def commands(model: Path, picture: Path) -> dict[str, Callable[[Path], Arguments]]:
    """Each command that writes, as a function of its output."""
    mmproj = model / "mmproj.gguf"
    return {
        "encode": lambda out: ("encode", "--mmproj", mmproj, "--image", picture, "-o", out.with_suffix(".npz")),
        "inspect": lambda out: ("inspect", "--mmproj", mmproj, "--image", picture, "-o", out.with_suffix(".png")),
        "quantize": lambda out: ("quantize", model / "text.gguf", out.with_suffix(".gguf"), "q8_0"),
    }


@pytest.mark.parametrize("name", ["encode", "inspect", "quantize"])
def test_an_existing_file_is_overwritten_only_with_force(
    diptych: Diptych, model: Path, picture: Path, tmp_path: Path, name: str
) -> None:
    arguments = commands(model, picture)[name](tmp_path / "out")
    assert diptych(*arguments).code == 0
    (written,) = tmp_path.iterdir()
    before = written.read_bytes()
    written.write_bytes(b"mine")
    refused(diptych(*arguments), "--force", written.name)
    assert written.read_bytes() == b"mine"
    assert diptych(*arguments, "--force").code == 0
    assert len(written.read_bytes()) == len(before)


def test_convert_and_export_keep_what_is_there(diptych: Diptych, checkpoint: Path, model: Path, tmp_path: Path) -> None:
    for arguments in (("convert", checkpoint, "-o", tmp_path / "a"), ("export", model / "mmproj.gguf", "-o", tmp_path / "b")):
        assert diptych(*arguments).code == 0
        refused(diptych(*arguments), "--force")
        assert diptych(*arguments, "--force").code == 0


def test_an_input_is_never_overwritten(diptych: Diptych, model: Path, picture: Path, tmp_path: Path) -> None:
    copy = tmp_path / "text.gguf"
    copy.write_bytes((model / "text.gguf").read_bytes())
    refused(diptych("quantize", copy, copy, "q8_0", "--force"), "input")
    shown = tmp_path / "picture.png"
    shown.write_bytes(picture.read_bytes())
    refused(diptych("inspect", "--mmproj", model / "mmproj.gguf", "--image", shown, "-o", shown, "--force"), "input")
    assert copy.read_bytes() == (model / "text.gguf").read_bytes()


def test_an_unknown_projector_lists_the_known_ones(diptych: Diptych, model: Path, picture: Path, tmp_path: Path) -> None:
    data = (model / "mmproj.gguf").read_bytes()
    bad = tmp_path / "other.gguf"
    bad.write_bytes(data.replace(b"qwen2vl_merger", b"qwen9vl_merger"))
    refused(diptych("inspect", "--mmproj", bad, "--image", picture, "-o", tmp_path / "o.png"), "qwen9vl_merger", "qwen2vl_merger")


def test_an_unknown_type_or_outtype_lists_the_known_ones(diptych: Diptych, model: Path, tmp_path: Path) -> None:
    refused(diptych("quantize", model / "text.gguf", tmp_path / "o.gguf", "Q9_Z"), "Q9_Z", "Q4_K_M")


@pytest.mark.parametrize("size", ["225", "0", "abc", "56x", "28x30"])
def test_a_size_the_model_cannot_take_is_refused(diptych: Diptych, model: Path, tmp_path: Path, size: str) -> None:
    refused(diptych("export", model / "mmproj.gguf", "-o", tmp_path / "o", "--size", size), "size")
    assert not (tmp_path / "o").exists()


def test_a_folder_that_is_no_deployment_or_checkpoint_is_told(diptych: Diptych, tmp_path: Path) -> None:
    refused(diptych("run", tmp_path, "-p", "x"), str(tmp_path))
    refused(diptych("convert", tmp_path, "-o", tmp_path / "o"), str(tmp_path))
    refused(diptych("run", "nobody/nothing", "-p", "x"), "nobody/nothing")
    refused(diptych("run", "-p", "x"), "reader")


def test_a_grammar_that_cannot_be_used_is_refused(diptych: Diptych, model: Path) -> None:
    refused(diptych("run", "-m", model / "text.gguf", "-p", "x", "--grammar", "root ::= ("), "grammar")
    refused(diptych("run", "-m", model / "text.gguf", "-p", "x", "--json-schema", "{"), "schema")
