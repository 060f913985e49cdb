"""Patterns are found as `re` finds them, in time that neither pattern nor text can blow up."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diptych.errors import GrammarError
from diptych.llama.trigger import Automaton, Search

PATTERNS = [
    "ab",
    "a+b",
    "(?:a|ab)c",
    "^a",
    "^(?:b|c)a",
    "[bc]{2,3}a",
    "[^a]c",
    "a.?c",
    r"\s*a\w",
    "c|ba",
    "a(?P<x>b|c)*d",
    "b{0,2}ca",
]


def first(pattern: str, text: str) -> tuple[int, int] | None:
    """Where the match that is complete first begins, and its end, by `re`: the shortest text that holds a match."""
    for end in range(len(text) + 1):
        if (match := re.search(f"(?:{pattern})", text[:end])) is not None:
            starts = [i for i in range(end + 1) if re.compile(f"(?:{pattern})").fullmatch(text[:end], i)]
            return min(starts, default=match.start()), end
    return None


@given(st.sampled_from(PATTERNS), st.text("abc d\n", max_size=14), st.lists(st.integers(1, 4)))
def test_a_match_is_found_when_it_is_complete_wherever_the_text_is_cut(pattern: str, text: str, cuts: list[int]) -> None:
    search, rest, done = Search(Automaton([pattern])), text, 0
    expected = first(pattern, text)
    for n in [*cuts, len(text)]:
        piece, rest = rest[:n], rest[n:]
        at = search.push(piece)
        done += len(piece)
        if expected is None or done < expected[1]:
            assert at is None
            continue
        assert at == expected[0]
        assert search.since(at) == text[at:done]
        return
    assert expected is None


def test_the_first_of_several_patterns_counts() -> None:
    search = Search(Automaton(["</x>", "<tool>", "b"]))
    assert search.push("some <to") is None
    assert search.push("ol>b") == 5
    assert search.since(5) == "<tool>b"


def test_a_copy_goes_on_by_itself() -> None:
    search = Search(Automaton(["abc"]))
    search.push("xab")
    other = search.copy()
    assert other.push("c") == 1
    assert search.push("d") is None
    assert search.push("abc") == 4


def test_text_that_cannot_match_any_more_is_let_go() -> None:
    search = Search(Automaton(["<a>"]))
    search.push("x" * 100_000 + "<a")
    assert search.text == "<a"


@pytest.mark.parametrize("pattern", ["(?:a|a)*b", "(?:a*)*b", "(?:a?){100}a{100}b", "(?:[^x]+)+y", "((((a+)+)+)+)+b"])
def test_what_blows_up_elsewhere_takes_its_time_by_the_character(pattern: str) -> None:
    started = time.thread_time()
    search = Search(Automaton([pattern]))
    assert search.push("a" * 2000) is None
    assert time.thread_time() - started < 10


@pytest.mark.parametrize(
    ("patterns", "words"),
    [
        (("(",), "is not a sound pattern"),
        (("a*",), "matches without any text"),
        (("",), "matches without any text"),
        (("^",), "matches without any text"),
        (("a" * 501,), "501 characters"),
        (("a",) * 33, "33 grammar_triggers"),
        (("a{1001}",), "over 1000 states"),
        (("(?:a{999}){999}",), "over 1000 states"),
        (("(?:){1000000000}a|(?:a{0,40}){0,40}",), "over 1000 states"),
        (("a{99999999999}",), "not a sound pattern"),
        ((r"(a)\1",), "groupref"),
        (("(?=a)b",), "assert"),
        (("(?>a)",), "atomic"),
        (("a$",), "at"),
        ((r"\bx",), "at"),
        (("(?i)a",), "flags"),
        (("(?i:a)",), "subpattern"),
    ],
)
def test_what_is_not_a_plain_pattern_is_refused_at_once(patterns: tuple[str, ...], words: str) -> None:
    started = time.thread_time()
    with pytest.raises(GrammarError, match=words):
        Search(Automaton(patterns))
    assert time.thread_time() - started < 5
