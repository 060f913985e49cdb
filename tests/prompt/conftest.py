"""A tokenizer and a media half for prompts: the real family over metadata alone, since prompts need no weights."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

import tiny
from diptych.families.qwen2vl import Qwen2VL
from diptych.weights import Weights


class Ours(Qwen2VL):
    """A family in the place of a media half."""

    backend = "onnx"


@cache
def family(**settings: int) -> Qwen2VL:
    """Qwen2-VL without its tensors, which prompts do not need."""
    config = tiny.config(tiny.Qwen2VL())
    return Ours(Weights(Qwen2VL.metadata(config, {"min_pixels": 56 * 56, "max_pixels": 112 * 112, **settings}), {}))


@pytest.fixture(scope="session")
def half() -> Qwen2VL:
    return family()


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """transformers' own, over the tiny vocabulary."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=tiny.tokenizer(), eos_token="<|im_end|>", pad_token="<|endoftext|>")
