"""Importing the package is cheap: it loads nothing but itself until a name is asked for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import diptych

HEAVY = ("numpy", "pydantic", "onnxruntime", "llama_cpp", "onnx_ir", "gguf", "PIL", "jinja2", "typer", "torch", "asyncio")


def loaded(code: str) -> list[str]:
    """The modules of HEAVY and of our own that a fresh Python has loaded after running `code`."""
    wanted = f"[m for m in sys.modules if m in {HEAVY} or m.startswith('diptych')]"
    run = subprocess.run(
        [sys.executable, "-c", f"{code}; import sys; print(*{wanted})"], capture_output=True, text=True, check=True
    )
    return run.stdout.split()


def test_importing_the_package_loads_nothing_else() -> None:
    assert loaded("import diptych") == ["diptych"]


def test_a_request_can_be_written_without_loading_a_runtime() -> None:
    found = loaded("from diptych import Request, Message, Sampling, InputError")
    assert set(found) == {"numpy", "diptych", "diptych.types", "diptych.errors"}


@pytest.mark.parametrize("name", diptych.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(diptych, name).__name__ == name
    assert name in dir(diptych)


def test_the_names_that_type_checkers_see_are_those_that_are_there() -> None:
    source = Path(diptych.__file__).read_text(encoding="utf-8")
    assert sorted(line.split(" as ")[1] for line in source.splitlines() if line.startswith("    from ")) == diptych.__all__


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="Engin"):
        diptych.Engin  # noqa: B018
