"""Every text half that converts against transformers: logits over text, pictures and what follows, and greedy tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import tiny
from diptych import positions
from diptych.llama.context import Context
from diptych.types import Segment
from text_half import Part, decode
from text_pair import TinyMaker, TinyPair

pytestmark = pytest.mark.parity
TOLERANCE = 2e-5  # on logits, absolute; they spread over about ±2

SHAPES: list[tuple[str, dict[str, Any]]] = [
    ("Qwen2_5_VLForConditionalGeneration", {}),
    ("Qwen2_5_VLForConditionalGeneration", {"seed": 1, "n_head_kv": 4, "sections": (8, 4, 4), "tied": True}),
    ("Qwen2_5OmniThinkerForConditionalGeneration", {"n_layer": 3, "n_ff": 320}),
    ("Qwen2_5OmniModel", {"seed": 1, "rope_theta": 1e6}),
    ("Qwen3VLForConditionalGeneration", {}),
    ("Qwen3VLForConditionalGeneration", {"seed": 1, "n_deepstack": 3, "n_layer": 4, "head_dim": 16, "sections": (3, 3, 2)}),
    ("Qwen3VLForConditionalGeneration", {"seed": 2, "n_deepstack": 1, "eps": 1e-2, "tied": True}),
    ("Qwen3VLMoeForConditionalGeneration", {}),
    ("Qwen3VLMoeForConditionalGeneration", {"seed": 1, "n_expert": 9, "n_expert_used": 3, "n_ff_expert": 32}),
    ("PaddleOCRVLForConditionalGeneration", {}),
    (
        "PaddleOCRVLForConditionalGeneration",
        {"seed": 1, "n_layer": 3, "n_head_kv": 1, "sections": (4, 6, 6), "eps": 1e-3, "tied": True},
    ),
    ("DotsOCRForCausalLM", {}),
    ("DotsOCRForCausalLM", {"seed": 1, "n_layer": 3, "eps": 1e-3, "n_ff": 320}),
    ("Glm4vForConditionalGeneration", {}),
    ("Glm4vForConditionalGeneration", {"seed": 1, "n_layer": 3, "n_head_kv": 1, "sections": (4, 2, 2), "eps": 1e-3}),
    ("Glm46VForConditionalGeneration", {"seed": 2}),
    ("Glm46VForConditionalGeneration", {"seed": 3, "mixture": True}),
    ("GlmOcrForConditionalGeneration", {}),
    ("GlmOcrForConditionalGeneration", {"seed": 1, "mtp": False, "n_layer": 3, "tied": True}),
    ("Glm4vMoeForConditionalGeneration", {}),
    ("Glm4vMoeForConditionalGeneration", {"seed": 1, "mtp": False, "n_expert": 9, "n_expert_used": 3, "n_ff_expert": 32}),
    ("Qwen3_5ForConditionalGeneration", {}),
    ("Qwen3_5ForConditionalGeneration", {"seed": 1, "n_key": 4, "n_value": 4, "interval": 2, "mtp": False, "tied": True}),
    (
        "Qwen3_5ForConditionalGeneration",
        {"seed": 2, "n_key": 1, "n_value": 3, "interval": 3, "n_layer": 3, "head_dim": 32, "sections": (2, 1, 1)},
    ),
    ("Qwen3_5MoeForConditionalGeneration", {}),
    (
        "Qwen3_5MoeForConditionalGeneration",
        {"seed": 1, "n_key": 3, "n_value": 3, "interval": 2, "n_expert": 9, "n_expert_used": 3},
    ),
    ("Qwen2ForCausalLM", {}),
    ("Qwen3ForCausalLM", {}),
    ("Qwen3MoeForCausalLM", {}),
]
by_shape = pytest.mark.parametrize(
    ("architecture", "fields"), SHAPES, ids=lambda v: str(v).replace("ForConditionalGeneration", "")
)


@pytest.fixture(scope="module")
def tiny_pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., TinyPair]]:
    maker = TinyMaker(tmp_path_factory)
    yield maker.make
    maker.close()


@by_shape
def test_logits_of_every_row_equal_transformers(
    tiny_pair: Callable[..., TinyPair], architecture: str, fields: dict[str, Any]
) -> None:
    both = tiny_pair(architecture, **fields)
    a, b, t = both.shown(3, 5, seed=1), both.shown(6, 2, seed=2), both.tokens(12)
    prompts: dict[str, list[Part]] = {
        "text only": [both.tokens(90, seed=5)],
        "picture inside": [t[:5], *a, t[5:]],
        "picture first": [*a, t],
        "two pictures": [t[:3], *a, t[3:6], *b, t[6:]],
    }
    for name, parts in prompts.items():
        with Context(both.text, tiny.EXACT, n_outputs=128) as context:
            ours = decode(context, both.segments(parts))
        np.testing.assert_allclose(ours, both.reference(parts), rtol=0, atol=TOLERANCE, err_msg=name)


@by_shape
def test_32_greedy_tokens_equal_transformers_where_it_is_sure(
    tiny_pair: Callable[..., TinyPair], architecture: str, fields: dict[str, Any]
) -> None:
    both = tiny_pair(architecture, **fields)
    parts: list[Part] = [both.tokens(5), *both.shown(4, 5), both.tokens(5, seed=2)]
    expected, margins = both.greedy(parts, 32)
    with Context(both.text, tiny.EXACT, n_outputs=64) as context:
        segments = both.segments(parts)
        logits, start = decode(context, segments)[-1], int(segments[-1].positions.max()) + 1
        for i, (token, margin) in enumerate(zip(expected, margins, strict=True)):
            assert logits.argmax() == token or margin <= 1e-3, f"token {i}"
            planes, _ = positions.text(1, start + i, both.text.n_pos)
            step = Segment(0, planes, tokens=np.array([token], np.int32), wants_logits=True)
            (logits,) = decode(context, [step])
