"""Finding a deployment: what a directory, config.json and two files mean, and what is said when they are not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from diptych import deploy, reader
from diptych.deploy import Deployment
from diptych.errors import FileError, InputError


def folder(path: Path, *names: str, config: str | None = None) -> Path:
    path.mkdir(exist_ok=True)
    for name in names:
        (path / name).touch()
    if config is not None:
        (path / "config.json").write_text(config)
    return path


def test_a_directory_holds_both_halves_or_the_text_half_alone(tmp_path: Path) -> None:
    both = folder(tmp_path / "both", "text.gguf", "mmproj.gguf")
    assert deploy.find(both) == deploy.find(str(both)) == Deployment(both / "text.gguf", both / "mmproj.gguf")
    text = folder(tmp_path / "text", "text.gguf")
    assert deploy.find(text) == Deployment(text / "text.gguf", None)


def test_config_json_names_the_files(tmp_path: Path) -> None:
    config = '{"text_model": {"model_path": "a.gguf"}, "vision_model": {"model_path": "b.gguf"}}'
    made = folder(tmp_path, "a.gguf", "b.gguf", config=config)
    assert deploy.find(made) == Deployment(made / "a.gguf", made / "b.gguf")


def test_config_json_about_other_things_changes_nothing(tmp_path: Path) -> None:
    made = folder(tmp_path, "text.gguf", "mmproj.gguf", config='{"name": "x"}')
    assert deploy.find(made) == Deployment(made / "text.gguf", made / "mmproj.gguf")


def test_reader_is_the_shipped_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "FOLDER", folder(tmp_path / "shipped", "text.gguf", "mmproj.gguf"))
    assert deploy.find("reader").text == tmp_path / "shipped" / "text.gguf"


def test_two_files_make_a_deployment(tmp_path: Path) -> None:
    made = folder(tmp_path, "t.gguf", "m.gguf")
    assert deploy.find(model=made / "t.gguf") == Deployment(made / "t.gguf")
    assert deploy.find(model=made / "t.gguf", mmproj=made / "m.gguf") == Deployment(made / "t.gguf", made / "m.gguf")


@pytest.mark.parametrize(
    "given", [{}, {"mmproj": Path("m.gguf")}, {"name": "x", "mmproj": Path("m.gguf")}, {"name": "x", "smt": Path("s")}]
)
def test_a_deployment_is_named_in_one_way(given: dict[str, str | Path]) -> None:
    with pytest.raises(InputError, match="name"):
        deploy.find(**given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("names", "config", "words"),
    [
        (("model.safetensors", "tokenizer.json"), None, "text.gguf, the text half; it holds model.safetensors, tokenizer.json"),
        ((), None, "holds nothing"),
        (("a-Q4_K_M.gguf", "mmproj-b.gguf"), None, "a-Q4_K_M.gguf, mmproj-b.gguf and no config.json that says which"),
        (("text.gguf",), "{", r"config.json, line 1: not JSON"),
        (("text.gguf",), "[]", "no JSON object"),
        (("text.gguf",), '{"text_model": "text.gguf"}', 'line 1: text_model is "text.gguf", and an object is expected'),
        (("text.gguf",), '{"vision_model": {"model_path": "v.gguf"}}', "there is no file .*v.gguf"),
        (("text.gguf",), '{"text_model": {"model_path": "other.gguf"}}', "there is no file .*other.gguf"),
        (
            ("t.gguf",),
            '{"text_model": {"model_path": "../t.gguf"}}',
            "text_model.model_path is .*a file of this folder is expected",
        ),
        (("t.gguf",), '{"text_model": {"model_path": "/etc/passwd"}}', "--allow-absolute-paths"),
        (("t.gguf",), '{"text_model": {"model_path": "x/../../t.gguf"}}', "a file of this folder is expected"),
    ],
)
def test_what_is_wrong_with_a_directory_is_said(tmp_path: Path, names: tuple[str, ...], config: str | None, words: str) -> None:
    with pytest.raises(FileError, match=words):
        deploy.find(folder(tmp_path, *names, config=config))


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    made = folder(tmp_path, "t.gguf")
    with pytest.raises(FileError, match=r"there is no deployment .*nowhere"):
        deploy.find(tmp_path / "nowhere")
    with pytest.raises(FileError, match="is a file"):
        deploy.find(made / "t.gguf")
    with pytest.raises(FileError, match=r"there is no file .*m\.gguf"):
        deploy.find(model=made / "t.gguf", mmproj=made / "m.gguf")


def test_another_text_half_takes_the_place_of_the_directorys(tmp_path: Path) -> None:
    made = folder(tmp_path, "text.gguf", "mmproj.gguf", "other.gguf")
    assert deploy.find(made, model=made / "other.gguf") == Deployment(made / "other.gguf", made / "mmproj.gguf")


def test_a_media_half_alone_is_found_and_has_no_text_half(tmp_path: Path) -> None:
    found = deploy.find(folder(tmp_path, "mmproj.gguf"))
    assert found == Deployment(None, tmp_path / "mmproj.gguf")
    with pytest.raises(FileError, match=r"has no text half.*-m"):
        _ = found.text_half


def test_a_file_elsewhere_is_taken_where_that_is_allowed(tmp_path: Path) -> None:
    elsewhere = folder(tmp_path, "t.gguf") / "t.gguf"
    made = folder(tmp_path / "made", config=f'{{"text_model": {{"model_path": "{elsewhere}"}}}}')
    assert deploy.find(made, absolute=True).text == elsewhere
