"""Grammars that can be read in ever more ways are refused, and those that people write are not."""

from __future__ import annotations

import json
import time

import pytest

from diptych.errors import GrammarError
from diptych.llama import grammar, schema
from diptych.llama.grammar import check

ENDLESS = {
    "two ends": 'root ::= "(" root ")" | "(" root "]" | "x"',
    "a pair or parentheses": 'root ::= "(" root ")" | "(" root "," root ")" | "x"',
    "with an end or without": 'root ::= "a" root "b" | "a" root | "c"',
    "behind any word": 'root ::= w (root "b" | root "c") | "x"\nw ::= [a-z]+',
    "behind the same word": 'root ::= w "!" root "b" | w "!" root "c" | "."\nw ::= [a-z]',
    "over two rules": 'root ::= "xyz"{50} t\nt ::= "[" t "]" | "[" s "}" | "q"\ns ::= t "!"',
    "words that shift": 'root ::= "a" root "1" | "ab" root "2" | "ba" root "3" | "z"',
    "the dangling else": 'root ::= "if" [a-z] root | "if" [a-z] root "else" root | "s"',
    "repetitions": 'root ::= "a" (root "b")* "c" | "a" (root "b")* "d" | "x"',
    "counted repetitions": 'root ::= "a"{3,7} (root "b"){1,2} | "a"{4} root "d" | "x"',
    "forty turns": "root ::= r0\n"
    + "\n".join(f'r{i} ::= "a" r{i + 1} "x" | "a" r{i + 1} "y"' for i in range(40))
    + '\nr40 ::= "z"',
}

JSON = r"""
root ::= value
value ::= object | array | string | number | ("true" | "false" | "null")
object ::= "{" ws (string ws ":" ws value (ws "," ws string ws ":" ws value)*)? ws "}"
array ::= "[" ws (value (ws "," ws value)*)? ws "]"
string ::= "\"" ([^"\\\x00-\x1f] | "\\" (["\\/bfnrt] | "u" [0-9a-fA-F]{4}))* "\""
number ::= "-"? ("0" | [1-9] [0-9]*) ("." [0-9]+)? ([eE] [-+]? [0-9]+)?
ws ::= [ \t\n]*
"""

CODE = r"""
root ::= (declaration)*
declaration ::= type " " name "(" parameter? ")" "{" statement* "}"
type ::= "int" | "float" | "char"
name ::= [a-zA-Z_] [a-zA-Z_0-9]*
parameter ::= type " " name
statement ::= type " " name "=" expression ";" | name "=" expression ";" | name "(" list? ")" ";" | "return " expression ";"
  | "while(" expression "){" statement* "}" | "if(" expression "){" statement* "}" ("else{" statement* "}")?
expression ::= term (("+" | "-") term)*
term ::= factor (("*" | "/") factor)*
factor ::= name | number | name "(" list? ")" | "(" expression ")" | "-" factor
number ::= [0-9]+
list ::= expression ("," expression)*
""".replace("\n  |", " |")

NODE = {
    "type": "object",
    "properties": {"v": {}, "l": {"$ref": "#/$defs/n"}, "c": {"type": "array", "items": {"$ref": "#/$defs/n"}}},
}
FINE = {
    "json": JSON,
    "code": CODE,
    "a list": 'root ::= "- " [^\\n]+ "\\n" root | "- " [^\\n]+ "\\n"',
    "words": 'root ::= word (" " word)*\nword ::= [a-z]+ | [a-z]+ "-" [a-z]+',
    "any json": schema.to_gbnf("{}"),
    "a tree": schema.to_gbnf(json.dumps({"$ref": "#/$defs/n", "$defs": {"n": {"anyOf": [NODE, {"type": "null"}]}}})),
    "an enum": schema.to_gbnf(json.dumps({"enum": [f"value {i}" for i in range(3000)]})),
    "many properties": schema.to_gbnf(json.dumps({"type": "object", "properties": {f"p{i}": {} for i in range(60)}})),
}


@pytest.mark.parametrize("gbnf", ENDLESS.values(), ids=ENDLESS)
def test_a_grammar_with_ever_more_ways_to_be_read_is_refused_at_once(gbnf: str) -> None:
    started = time.thread_time()
    with pytest.raises(GrammarError, match=r"rule .* can be come to in ever more ways"):
        grammar.check(gbnf)
    assert time.thread_time() - started < 5


@pytest.mark.parametrize("gbnf", FINE.values(), ids=FINE)
def test_what_people_write_is_taken(gbnf: str) -> None:
    check.cache_clear()
    started = time.thread_time()
    grammar.check(gbnf)
    assert time.thread_time() - started < 5  # what grows faster than the grammar takes minutes


def test_the_rule_is_named() -> None:
    with pytest.raises(GrammarError, match="the grammar's rule deep can"):
        grammar.check('root ::= "x" deep\ndeep ::= "(" (deep ")" | deep "]") | "y"')


@pytest.mark.parametrize(
    ("gbnf", "words"),
    [
        ("root ::= " + " ".join(["[a-z]*"] * 1000), "ways to go on behind its first character"),
        ("root ::= " + " ".join(['"a"?'] * 1000), "ways to go on behind its first character"),
        ("root ::= r0\n" + "".join(f'r{i} ::= "a"? r{i + 1}\n' for i in range(500)) + 'r500 ::= "a"', "ways to go on"),
        ("root ::= (" + " | ".join(['"a"'] * 1000) + ")*", "ways to go on behind its first character"),
    ],
)
def test_too_many_ways_behind_one_character_are_refused(gbnf: str, words: str) -> None:
    with pytest.raises(GrammarError, match=words):
        grammar.check(gbnf)


def test_many_ways_that_part_at_once_are_taken() -> None:
    grammar.check("root ::= (" + " | ".join(f'"{i} "' for i in range(3000)) + ")*")
    grammar.check("root ::= " + " ".join(f'"{i}"?' for i in range(150)))
