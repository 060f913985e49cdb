"""The command line as a function, and tiny models for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tiny
from diptych.cli.main import main


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str


Diptych = Callable[..., Done]


@pytest.fixture
def diptych(capfd: pytest.CaptureFixture[str]) -> Diptych:
    """Run `diptych …` in this process; its exit code and what it printed."""

    def run(*arguments: object) -> Done:
        capfd.readouterr()
        with pytest.raises(SystemExit) as exit:
            main([str(a) for a in arguments])
        out, err = capfd.readouterr()
        code = exit.value.code
        return Done(code if isinstance(code, int) else 0, out, err)

    return run


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.qwen2vl(tmp_path_factory.mktemp("tiny") / "checkpoint")


@pytest.fixture(scope="session")
def model(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the two halves of a tiny model."""
    from diptych.convert import convert

    out = tmp_path_factory.mktemp("tiny") / "model"
    convert(checkpoint, out, outtype="f32")
    return out


@pytest.fixture(scope="session")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 110, 3), np.uint8)).save(path)
    return path
