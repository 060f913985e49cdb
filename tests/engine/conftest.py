"""A tiny Qwen2-VL, converted once a session, and engines on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import tiny
from diptych import convert
from diptych.engine import Engine


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.qwen2vl(tmp_path_factory.mktemp("tiny") / "checkpoint")


@pytest.fixture(scope="session")
def deployment(checkpoint: Path) -> Path:
    convert.convert(checkpoint, checkpoint.parent / "out", outtype="f32")
    return checkpoint.parent / "out"


@pytest.fixture
def load(deployment: Path) -> Iterator[Callable[..., Engine]]:
    """A function from options to an engine on the tiny model, closed at the end."""
    made: list[Engine] = []

    def load(**options: object) -> Engine:
        made.append(Engine.load(deployment, options=tiny.EXACT.model_copy(update=options)))
        return made[-1]

    yield load
    for engine in made:
        engine.close()


@pytest.fixture
def engine(load: Callable[..., Engine]) -> Engine:
    return load()
