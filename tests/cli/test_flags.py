"""A setting is declared once: flag before variable before file before default."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from diptych.cli import flags
from diptych.errors import InputError
from diptych.options import Options


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("DIPTYCH_")]:
        monkeypatch.delenv(name)


def seen(arguments: dict[str, object]) -> Options:
    """The options a command gets when these flags were given."""
    got: list[Options] = []

    @flags.with_options("n_ctx", "threads", "providers", "mmap")
    def command(*, options: Options) -> None:
        got.append(options)

    command(**{"n_ctx": None, "threads": None, "providers": None, "mmap": None, **arguments})
    return got[0]


def test_a_flag_goes_before_a_variable_before_the_file_before_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert seen({}).n_ctx == Options.model_fields["n_ctx"].default
    file = tmp_path / "settings.yaml"
    file.write_text("n_ctx: 111\nthreads: 3\n")
    monkeypatch.setenv("DIPTYCH_OPTIONS", str(file))
    assert (seen({}).n_ctx, seen({}).threads) == (111, 3)
    monkeypatch.setenv("DIPTYCH_N_CTX", "222")
    assert (seen({}).n_ctx, seen({}).threads) == (222, 3)
    assert seen({"n_ctx": 333}).n_ctx == 333


def test_false_and_zero_are_values_that_were_given() -> None:
    assert seen({"mmap": False, "n_ctx": 0}).mmap is False
    assert seen({"n_ctx": 0}).n_ctx == 0


def test_a_variable_that_does_not_fit_names_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIPTYCH_N_CTX", "many")
    with pytest.raises(InputError, match=r"DIPTYCH_N_CTX.*'many'"):
        seen({})


def test_an_options_file_with_an_unknown_key_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("n_context: 111\n")
    monkeypatch.setenv("DIPTYCH_OPTIONS", str(file))
    with pytest.raises(InputError, match="n_context"):
        seen({})


def test_an_options_file_that_is_missing_or_no_yaml_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIPTYCH_OPTIONS", str(tmp_path / "nowhere.yaml"))
    with pytest.raises(InputError, match=r"nowhere\.yaml"):
        seen({})
    (tmp_path / "bad.yaml").write_text("n_ctx: [1, 2\n")
    monkeypatch.setenv("DIPTYCH_OPTIONS", str(tmp_path / "bad.yaml"))
    with pytest.raises(InputError, match=r"bad\.yaml"):
        seen({})
