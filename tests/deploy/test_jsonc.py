"""JSON with comments: what is read, and the line that is named when something is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diptych.deploy import jsonc
from diptych.errors import FileError

COMMENTED = """// a deployment
{
  # the half that sees
  "vision_model": { /* two
    lines */
    "model_path": "a//b#c.onnx", // not a comment inside
    "input_size": 504,
    "models": [{"width": 1},
               {"width": "two"}]
  },
  "url": "http://x/*y*/", "share": 0.5, "yes": true
}"""


@pytest.fixture
def config(tmp_path: Path) -> jsonc.Section:
    (tmp_path / "config.json").write_text(COMMENTED)
    return jsonc.read(tmp_path / "config.json")


def test_comments_are_passed_over_and_strings_are_not(config: jsonc.Section) -> None:
    vision = config.section("vision_model")
    assert vision.get("model_path", str) == "a//b#c.onnx"
    assert vision.get("input_size", int) == 504
    assert config.get("url", str) == "http://x/*y*/"
    assert config.get("share", float) == 0.5
    assert config.get("yes", bool) is True
    assert vision.get("absent", int, 7) == 7
    assert not vision.has("absent")
    assert vision.sections("models")[0].get("width", int) == 1


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda c: c.get("absent", str), r"config\.json, line 2: there is no absent, a string; add it"),
        (lambda c: c.section("vision_model").get("absent", int), "line 4: there is no vision_model.absent"),
        (lambda c: c.section("vision_model").get("input_size", str), "line 7: vision_model.input_size is 504, and a string"),
        (lambda c: c.get("yes", int), "line 11: yes is true, and a whole number is expected"),
        (lambda c: c.get("share", int), r"line 11: share is 0\.5"),
        (lambda c: c.section("url"), "line 11: url is .*an object is expected"),
        (
            lambda c: c.section("vision_model").sections("models")[1].get("width", int),
            r"line 9: vision_model\.models\[1\]\.width",
        ),
        (lambda c: c.section("vision_model").numbers("models"), "line 8: .*an array of numbers is expected"),
    ],
)
def test_what_is_missing_or_wrong_is_named_with_its_line(config: jsonc.Section, ask: Any, words: str) -> None:
    with pytest.raises(FileError, match=words) as caught:
        ask(config)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "line 1: not JSON"),
        ('{\n"a": 1,\n}', "line 3|line 2"),
        ('{"a": 1 /* open', "line 1: not JSON"),
        ('{"a": NaN}', "NaN is no number"),
        ("[" * 100_000, "not JSON"),
        ("[1]", "no JSON object"),
        ('{"a": ' + "9" * 5000 + "}", "not JSON"),
        ("\xff", "not JSON|line 1"),
    ],
)
def test_what_is_no_json_is_refused_on_one_line(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(FileError, match=words) as caught:
        jsonc.read(tmp_path / "config.json")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonc, "MAX_BYTES", 10)
    (tmp_path / "config.json").write_text('{"a": 1234567}')
    with pytest.raises(FileError, match="larger than any configuration"):
        jsonc.read(tmp_path / "config.json")


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**6), 10**6) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.text(), values, max_size=5), st.integers(0, 3))
def test_any_json_is_read_as_it_is_and_its_keys_have_lines(
    tmp_path_factory: pytest.TempPathFactory, value: dict[str, Any], indent: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.json"
    text = json.dumps(value, indent=indent or None)
    path.write_text(text)
    read = jsonc.read(path)
    assert read.values == value
    lines = text.split("\n")
    for key in value:
        assert json.dumps(key) in lines[read.lines[key,] - 1] or isinstance(value[key], dict | list)
