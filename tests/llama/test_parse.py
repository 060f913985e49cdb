"""A grammar takes a bounded time of the engine's, whatever it is; and says of a text what llama.cpp says."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diptych.errors import GrammarError
from diptych.llama import grammar, parse
from diptych.llama.candidates import Candidates
from diptych.llama.model import TextModel
from diptych.llama.native import Native
from diptych.llama.parse import Parse

WORDS = 'root ::= ("ab" | [a-c]{2,3} "," | "é" root)* "."'


def everything(text: TextModel) -> Candidates:
    return Candidates(np.arange(text.n_vocab, dtype=np.int32), np.zeros(text.n_vocab, np.float32))


def left(candidates: Candidates) -> set[int]:
    return set(candidates.rows["id"][np.isfinite(candidates.rows["logit"])].tolist())


def by_llama_cpp(native: Native, text: TextModel) -> set[int]:
    """The tokens that llama.cpp lets pass when it tries them whole."""
    candidates = everything(text)
    candidates.apply(native)
    return left(candidates)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 10**6), max_size=12))
def test_bytes_and_whole_tokens_are_the_same_to_a_grammar(text: TextModel, choices: list[int]) -> None:
    made, whole = Parse(text, WORDS), parse.load(text, WORDS)
    import llama_cpp.llama_cpp as lib

    for choice in choices:
        allowed = by_llama_cpp(whole, text)
        ours = everything(text)
        made.restrict(ours)
        assert left(ours) == allowed
        for token in range(0, text.n_vocab, 7):
            piece = text.piece(token, special=True)
            assert (made.may_end(token) if text.is_end(token) else bool(piece) and made.allows(piece)) == (token in allowed)
        plain = sorted(t for t in allowed if not text.is_end(t))
        if not plain:
            break
        token = plain[choice % len(plain)]
        assert made.allows(text.piece(token))
        made.take()
        lib.llama_sampler_accept(whole.pointer, token)


def test_what_is_refused_leaves_no_trace(text: TextModel, monkeypatch: pytest.MonkeyPatch) -> None:
    for replayed in (2000, 0):  # fed again, or copied
        monkeypatch.setattr(parse, "_REPLAYED", replayed)
        made = Parse(text, 'root ::= "ab" ("cd" | "ce")')
        for good, bad in ((b"a", b"b"), (b"b", b"c"), (b"cd", b"cx")):
            assert not made.allows(bad)
            assert made.allows(good)
            assert made.allows(good), "asking twice is asking once"
            made.take()
        (end,) = text.tokenize("<|im_end|>")
        assert made.may_end(end)


@pytest.mark.parametrize(
    "gbnf",
    ['root ::= ("a"+)* "x"', 'root ::= ("a" | "aa" | "aaa")* "x"', "root ::= " + " ".join(["[a-z]*"] * 20) + ' "!"'],
)
def test_a_long_token_that_could_be_read_in_many_ways_takes_no_time(text: TextModel, gbnf: str) -> None:
    """llama.cpp would try each of 2^100 ways to read a hundred letters, were they one token."""
    grammar.check(gbnf)
    made, started = Parse(text, gbnf), time.thread_time()
    assert not made.allows(b"a" * 100 + b"?")
    assert made.allows(b"a" * 100)
    assert time.thread_time() - started < 3


@pytest.mark.parametrize("gbnf", ['root ::= w root "b" | "."\nw ::= [a-z]+', "root ::= " + " ".join(["[a-z]{0,2000}"] * 20)])
def test_there_is_a_limit_to_the_time_that_all_ways_take(text: TextModel, monkeypatch: pytest.MonkeyPatch, gbnf: str) -> None:
    """Here the ways grow by one a letter, or by twenty."""
    monkeypatch.setattr(parse, "_SECONDS", 0.2)
    monkeypatch.setattr(parse, "_SECONDS_A_TOKEN", 0.005)
    grammar.check(gbnf)
    made, started = Parse(text, gbnf), time.thread_time()
    with pytest.raises(GrammarError, match="too many ways"):
        for _ in range(100_000):
            assert made.allows(b"a" * 20)
            made.take()
    assert time.thread_time() - started < 10


def test_a_plain_grammar_has_all_the_time_it_needs(text: TextModel) -> None:
    made = Parse(text, 'root ::= ("[" [0-9]+ "]")*')
    for i in range(2000):
        assert made.allows(f"[{i}]".encode())
        made.take()
        if i % 100 == 0:
            assert not made.allows(b"x")
    assert made._left > 1


def test_tokens_that_there_is_no_time_for_are_refused_short_ones_first(text: TextModel, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = {len(text.piece(t, special=True)) for t in range(text.n_vocab)}
    monkeypatch.setattr(parse, "_SECONDS_FOR_ALL", 0)
    ours = everything(text)
    Parse(text, "root ::= .*").restrict(ours)
    assert not left(ours)
    monkeypatch.setattr(parse, "_SECONDS_FOR_ALL", 10)
    ours = everything(text)
    Parse(text, "root ::= .*").restrict(ours)
    assert {len(text.piece(t)) for t in left(ours)} >= {n for n in lengths if 0 < n < 4}
