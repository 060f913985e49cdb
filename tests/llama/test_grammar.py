"""Grammars are read as llama.cpp reads them, and what would crash or hang it is refused before."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from diptych.errors import GrammarError
from diptych.llama import grammar
from diptych.llama.model import TextModel
from diptych.llama.sampler import Sampler
from diptych.types import Sampling

GOOD = [
    'root ::= "a"',
    'root ::= [a-z]+ "!"? # a comment\nother ::= root',
    'root ::= (\n  "a" |\n  b\n)* "\\n\\t\\"\\\\\\x41\\u00e9\\U0001F642"\nb ::= [^"\\]\\x00-\\x1F-]{2,3} .{4} | [-a] | "é🙂"',
    "# nothing yet\n\nroot  ::=   x-1 |\n  x-1 x-1\r\nx-1 ::= [0-9]{1,}",
    'root ::= | "a" root | "(" root ")"',
    'root ::= "x"{0} "y"{2000} z{1,2} "w"{0,2}\nz ::= ("a" | "b" "c")',
    'root ::= expr\nexpr ::= term (("+" | "-") term)*\nterm ::= [0-9]+ | "(" expr ")"',
    'root ::= "<|im_end|>" [^<]',
    "root ::= " + "(" * 50 + '"a"' + ")" * 50,
    'root ::= ("a"{50}){50} ("b"{1,30}){50}',
    "root ::= r0\n" + "\n".join(f"r{i} ::= r{i + 1}" for i in range(900)) + '\nr900 ::= "a"',
    "root ::= " + " | ".join(f'"{i}"' for i in range(5000)),
]

BAD = {
    "": "is empty",
    "root": "line 1, column 5: expected ::=",
    "root ::= (": "column 10: a ( without its )",
    'root ::= "a': "column 10: text in quotes without an end",
    "root ::= [a": "characters in brackets without an end",
    "root ::= []": "without a character",
    'root ::= "\\q"': "column 11: expected a character, or an escape",
    'root ::= "a"\n| "b"': "line 2, column 1: expected the name of a rule",
    'root ::= "a" )': "column 14: expected the end of the line",
    'root ::= a_b "x"': "expected",
    "root ::= nothing": "column 10: there is no rule nothing",
    'start ::= "a"': "no rule root",
    'x ::= "a" root': "no rule root",
    'root ::= "a"\nroot ::= "b"': "line 2, column 1: the rule root is defined twice",
    "root ::= *": "nothing stands before",
    'root ::= ""?': "nothing stands before",
    'root ::= "a"{1,100000}': "repeated over 2000 times",
    'root ::= "a"{99999999999999999999}': "repeated over 2000 times",
    'root ::= ("a"{0,50}){50}': "nested repetitions multiply",
    'root ::= "a"{3,2}': "at least 3 and at most 2",
    'root ::= "a"{x}': "expected {n}",
    'root ::= root "a" | "b"': "rule root begins with itself",
    'root ::= a root "z" | "x"\na ::= b b\nb ::= | "y"': "begins with itself",
    'root ::= ws* "a"\nws ::= " "?': "what is repeated may be empty",
    "root ::= " + "(" * 101 + '"a"' + ")" * 101: "nested over 100 deep",
    'root ::= "' + "a" * 1000 + '"{2000}': "over 500000 elements",
    "root ::= r0\n" + "\n".join(f"r{i} ::= r{i + 1}" for i in range(1200)) + '\nr1200 ::= "a"': "at most 10000 and 1000",
    "root ::= r0\n" + "\n".join(f'r{i} ::= r{i + 1} "x" | r{i + 1} "y"' for i in range(40)) + '\nr40 ::= "a"': "ways to begin",
    'root ::= "a" #' + "x" * 200_000: "bytes; at most",
    'root ::= "\ud800"': "which is not text",
    'root ::= "\0"': "which is not text",
    "root ::= <|im_end|>": "column 10: single tokens are not taken",
    'root ::= "a" !<[6]>': "column 14: single tokens are not taken",
}


@pytest.mark.parametrize("gbnf", GOOD, ids=range(len(GOOD)))
def test_what_is_allowed_loads_in_llama_cpp(text: TextModel, gbnf: str, capfd: pytest.CaptureFixture[str]) -> None:
    Sampler(text, Sampling(grammar=gbnf)).close()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("gbnf", "words"), BAD.items(), ids=[k[:40] for k in BAD])
def test_what_is_not_is_refused_with_place_and_reason(
    text: TextModel, gbnf: str, words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    started = time.perf_counter()
    with pytest.raises(GrammarError) as caught:
        Sampler(text, Sampling(grammar=gbnf))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert time.perf_counter() - started < 2
    assert capfd.readouterr() == ("", ""), "llama.cpp prints what it cannot parse; it must not have been asked"


@pytest.mark.parametrize("gbnf", GOOD, ids=range(len(GOOD)))
def test_a_cut_grammar_never_reaches_llama_cpp_unsound(text: TextModel, gbnf: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Every beginning of a good grammar is either refused here or taken there."""
    for end in range(0, min(len(gbnf), 300), 3):
        try:
            grammar.check(gbnf[:end])
        except GrammarError:
            continue
        Sampler(text, Sampling(grammar=gbnf[:end])).close()
    assert capfd.readouterr().err == ""


def test_without_the_bound_the_process_dies(text: TextModel) -> None:
    """Why the depth is bounded. The other limits stand well below what was measured to break as well."""
    code = f"""
from pathlib import Path
from diptych.llama.model import *; from diptych.llama.parse import load
load(TextModel.load(Path({str(text.path)!r})), "root ::= " + "(" * 100000 + '"a"' + ")" * 100000)
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60).returncode < 0


def test_what_llama_cpp_alone_refuses_is_passed_on(text: TextModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammar, "check", lambda *_: None)
    with pytest.raises(GrammarError, match=r"llama\.cpp cannot use the grammar: unsupported grammar, left recursion"):
        Sampler(text, Sampling(grammar='root ::= root "a" | "b"'))


def test_a_grammar_and_a_schema_at_once_are_one_too_many() -> None:
    with pytest.raises(GrammarError, match="give one"):
        grammar.of(Sampling(grammar='root ::= "a"', json_schema="{}"))
