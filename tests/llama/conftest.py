"""Tiny Qwen2-VL text halves, made once a session."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

import text_half
import tiny
from diptych.llama.context import Context
from diptych.llama.model import TextModel


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., text_half.Pair]]:
    """A function from the fields of `tiny.Qwen2VL` to a model in both its forms."""
    maker = text_half.Maker(tmp_path_factory)
    yield maker.make
    maker.close()


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TextModel]:
    """A text half of random weights; PyTorch has no part in it."""
    path = tmp_path_factory.mktemp("text") / "text.gguf"
    with TextModel.load(text_half.write_text(path, shape := tiny.Qwen2VL(), text_half.random(shape)), tiny.EXACT) as made:
        yield made


@pytest.fixture
def context(text: TextModel) -> Iterator[Context]:
    """A fresh context of it, exact, for two sequences."""
    with Context(text, tiny.EXACT.model_copy(update={"n_parallel": 2}), n_outputs=64) as made:
        yield made
