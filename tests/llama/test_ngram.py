"""N-grams are banned as transformers bans them."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diptych.llama import ngram
from diptych.llama.ngram import Ngrams


def slow(n: int, tokens: list[int]) -> set[int]:
    """By going over all of the answer."""
    last = tokens[len(tokens) - n + 1 :]
    starts = range(len(tokens) - n + 1) if len(tokens) >= n - 1 else ()
    return {tokens[i + n - 1] for i in starts if tokens[i : i + n - 1] == last}


@given(st.integers(1, 5), st.lists(st.integers(0, 3), max_size=40))
def test_the_banned_are_those_that_would_repeat_an_n_gram(n: int, tokens: list[int]) -> None:
    grams = Ngrams(n)
    for i, token in enumerate(tokens):
        assert set(grams.banned()) == slow(n, tokens[:i])
        grams.push(token)


@pytest.mark.parametrize("n", [1, 2, 3, 6])
def test_they_are_those_of_transformers(n: int) -> None:
    import torch
    from transformers import NoRepeatNGramLogitsProcessor

    tokens = np.random.default_rng(n).integers(0, 3, 400).tolist()
    grams, theirs = Ngrams(n), NoRepeatNGramLogitsProcessor(n)
    some = 0
    for i, token in enumerate(tokens):
        if i:  # transformers needs a token
            out = theirs(torch.tensor([tokens[:i]]), torch.zeros(1, 8))
            assert sorted(set(grams.banned())) == torch.isinf(out[0]).nonzero().flatten().tolist()
            some += len(grams.banned())
        grams.push(token)
    assert some > 0


def test_a_hash_is_not_believed_without_a_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ngram, "_MODULUS", 3)
    grams, tokens = Ngrams(3), np.random.default_rng(0).integers(0, 5, 200).tolist()
    for i, token in enumerate(tokens):
        assert set(grams.banned()) == slow(3, tokens[:i])
        grams.push(token)


@pytest.mark.parametrize("n", [2, 100, 30_000])
def test_a_long_answer_takes_no_longer_a_token(n: int) -> None:
    tokens = np.random.default_rng(0).integers(0, 50_000, 20_000).tolist()
    grams, started = Ngrams(n), time.thread_time()
    for token in tokens:
        grams.push(token)
        grams.banned()
    assert time.thread_time() - started < 5
