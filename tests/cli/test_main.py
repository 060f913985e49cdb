"""The command as a whole: help, errors in one line, exit codes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import typer

from cli.conftest import Diptych
from diptych.cli.main import COMMANDS, app


def one_line(err: str) -> bool:
    return err.startswith("error: ") and err.count("\n") == 1 and "Traceback" not in err


def test_help_lists_every_command_without_loading_any() -> None:
    code = (
        "import sys\nfrom diptych.cli.main import main\n"
        "try: main(['--help'])\nexcept SystemExit as e: assert e.code == 0, e.code\n"
        "heavy = {'numpy', 'onnxruntime', 'llama_cpp', 'pydantic_settings', 'PIL', 'torch', 'onnx_ir', 'gguf'}\n"
        "heavy &= set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name, summary in COMMANDS.items():
        assert name in done.stdout
        assert summary[:30] in done.stdout


def test_the_list_of_commands_says_what_each_command_says_of_itself() -> None:
    group = typer.main.get_command(app())
    for name, summary in COMMANDS.items():
        assert (group.commands[name].help or "").strip().splitlines()[0] == summary  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_help(diptych: Diptych, name: str) -> None:
    done = diptych(name, "--help")
    assert done.code == 0
    assert COMMANDS[name].split(".")[0][:30] in done.out


def test_the_version_is_printed(diptych: Diptych) -> None:
    done = diptych("--version")
    assert (done.code, done.out.split()[0]) == (0, "diptych")


def test_an_unknown_command_and_an_unknown_flag_exit_with_2(diptych: Diptych) -> None:
    assert diptych("rum").code == 2
    assert diptych("run", "--imagine", "x").code == 2


def test_a_users_error_is_one_line_and_exit_code_2(diptych: Diptych, tmp_path: Path) -> None:
    done = diptych("run", "-m", tmp_path / "missing.gguf", "-p", "hello")
    assert done.code == 2
    assert one_line(done.err), done.err
    assert "missing.gguf" in done.err


def test_a_fault_of_ours_is_one_line_and_exit_code_1(diptych: Diptych, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diptych.cli.doctor.examine", lambda: 1 / 0)
    done = diptych("doctor")
    assert done.code == 1
    assert one_line(done.err), done.err
    assert "DIPTYCH_DEBUG" in done.err
    monkeypatch.setenv("DIPTYCH_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        app("doctor")(["doctor"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "reader", "-p", "x", "--precision", "f99"), "precision"),
        (("run", "reader", "-p", "x", "-ctk", "q9"), "cache-type-k"),
        (("run", "reader", "-p", "x", "--provider-options", "{"), "JSON"),
        (("run", "reader", "-p", "x", "--mtmd-batch-max-tokens", "0"), "--encode-max-tokens"),
        (("run", "reader", "--json"), "-p"),
    ],
)
def test_a_wrong_value_names_its_flag(diptych: Diptych, arguments: tuple[str, ...], message: str) -> None:
    done = diptych(*arguments)
    assert done.code == 2
    assert one_line(done.err), done.err
    assert message in done.err
