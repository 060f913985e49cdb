"""What is served in tests: the shipped reader, and a tiny random Qwen2-VL."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from sites import EXACT, Serve, Site, site

import tiny
from diptych import convert, reader


@pytest.fixture(scope="session")
def served() -> Iterator[Site]:
    """The shipped reader, served."""
    with site(reader.FOLDER) as found:
        yield found


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    convert.convert(tiny.qwen2vl(folder / "checkpoint"), folder / "tiny-qwen2vl", outtype="f32")
    return folder / "tiny-qwen2vl"


@pytest.fixture(scope="session")
def tiny_served(tiny_folder: Path) -> Iterator[Site]:
    """A tiny random Qwen2-VL, served, with arithmetic that does not depend on what else is in a batch."""
    with site(tiny_folder, **EXACT) as found:
        yield found


@pytest.fixture
def serve(tiny_folder: Path) -> Iterator[Serve]:
    """A function from options to a server of its own for a test: of the tiny model, or of `folder`."""
    with ExitStack() as sites:

        def start(folder: Path = tiny_folder, **options: Any) -> Site:
            return sites.enter_context(site(folder, **{**EXACT, **options}))

        yield start
