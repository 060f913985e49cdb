"""Changes to logits that llama.cpp has no sampler for, compared with transformers'."""

from __future__ import annotations

import math

import numpy as np
import pytest

from diptych.errors import InputError
from diptych.llama import adjust
from diptych.llama.adjust import Adjustments
from diptych.llama.model import TextModel
from diptych.types import Sampling


@pytest.fixture
def logits(text: TextModel) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(text.n_vocab).astype(np.float32)


def test_nothing_asked_for_costs_nothing(text: TextModel, logits: np.ndarray) -> None:
    made = Adjustments(text, Sampling())
    made.feed([1, 2])
    made.push(3)
    assert made.apply(logits) is logits


@pytest.mark.parametrize("penalty", [1.3, 0.7])
def test_the_repetition_penalty_is_that_of_transformers(text: TextModel, logits: np.ndarray, penalty: float) -> None:
    import torch
    from transformers import RepetitionPenaltyLogitsProcessor

    made, tokens = Adjustments(text, Sampling(repetition_penalty=penalty)), [3, 9, 9, 200, 41]
    made.feed(tokens[:3])
    for token in tokens[3:]:
        made.push(token)
    expected = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([tokens]), torch.from_numpy(logits)[None].clone())
    np.testing.assert_array_equal(made.apply(logits), expected[0].numpy())
    assert (made.apply(logits) != logits).sum() == len(set(tokens))


def test_biases_add_up_and_forbid_by_token_and_by_text(text: TextModel, logits: np.ndarray) -> None:
    a, b = text.tokenize("a") + text.tokenize("b")
    biases = ((5, 2.5), (5, -1.0), ("ab", 1.0), (a, -math.inf), (7, False))
    out = Adjustments(text, Sampling(logit_bias=biases)).apply(logits)
    changed = {5: logits[5] + np.float32(2.5) - np.float32(1), b: logits[b] + np.float32(1), a: -np.inf, 7: -np.inf}
    for token in range(text.n_vocab):
        assert out[token] == changed.get(token, logits[token])


def test_special_tokens_in_a_biased_text_are_plain_text(text: TextModel) -> None:
    (end,) = text.tokenize("<|im_end|>")
    assert end not in Adjustments(text, Sampling(logit_bias=(("<|im_end|>", 1.0),)))._biased


@pytest.mark.parametrize(
    ("bias", "words"),
    [
        ((-1, 1.0), "token -1; the vocabulary has 0 to"),
        ((10**6, 1.0), "token 1000000"),
        ((5, math.nan), "is nan"),
        ((5, math.inf), "is inf; it must be a finite number, or -inf"),
        ((5, 1e39), "finite"),
        ((5, True), "is True"),
        (("a" * 1001, 1.0), "1001 characters"),
    ],
)
def test_a_bias_that_makes_no_sense_is_refused(text: TextModel, bias: tuple[int, float], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Adjustments(text, Sampling(logit_bias=(bias,)))
    with pytest.raises(InputError, match="at most 10000"):
        Adjustments(text, Sampling(logit_bias=((5, 1.0),) * 10_001))
    with pytest.raises(InputError, match="100001 characters together"):
        Adjustments(text, Sampling(logit_bias=(("x" * 1000, 1.0),) * 100 + (("x", 1.0),)))


def test_an_answer_has_its_least_tokens_before_it_may_end(text: TextModel, logits: np.ndarray) -> None:
    ends = [*adjust.ends(text), 17]
    assert all(text.is_end(t) for t in ends[:-1])
    made = Adjustments(text, Sampling(min_tokens=2), stop_tokens=[17])
    for _ in range(2):
        assert set(np.flatnonzero(np.isinf(made.apply(logits)))) == set(ends)
        made.push(3)
    assert made.apply(logits) is logits


def test_an_end_that_is_ignored_never_comes(text: TextModel, logits: np.ndarray) -> None:
    out = Adjustments(text, Sampling(ignore_eos=True)).apply(logits)
    assert set(np.flatnonzero(np.isinf(out))) == set(adjust.ends(text))


def test_forbidding_every_token_is_an_error(text: TextModel, logits: np.ndarray) -> None:
    made = Adjustments(text, Sampling(logit_bias=tuple((t, -math.inf) for t in range(text.n_vocab))))
    with pytest.raises(InputError, match="leave no token to choose"):
        made.apply(logits)
