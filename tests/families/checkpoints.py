"""Tiny checkpoints of a family, each written once for a test file, and their media half in f32."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from diptych import convert
from diptych.weights import Weights

Checkpoint = Callable[[str], Path]


def written_once(writers: Mapping[str, Callable[[Path], Path]]) -> Any:
    """A fixture that gives the folder of a checkpoint by its name: `checkpoint = written_once(…)`."""

    @pytest.fixture(scope="module")
    def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
        made: dict[str, Path] = {}

        def folder(name: str) -> Path:
            if name not in made:
                made[name] = writers[name](tmp_path_factory.mktemp("tiny"))
            return made[name]

        return folder

    return checkpoint


def of_shapes(write: Callable[..., Path], shapes: Mapping[str, object]) -> Any:
    """The same for checkpoints that differ by their shape alone."""
    return written_once({name: partial(write, shape=shape) for name, shape in shapes.items()})


def mmproj(folder: Path) -> Weights:
    """The media half of a checkpoint, converted in f32."""
    return convert.mmproj(convert.read_checkpoint(folder), "f32")
