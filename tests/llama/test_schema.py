"""JSON schemas become grammars that llama.cpp takes, and whose every text satisfies the schema."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import jsonschema
import numpy as np
import pytest

from diptych.errors import GrammarError
from diptych.llama import grammar, schema
from diptych.llama.candidates import Candidates
from diptych.llama.constraint import Constraint
from diptych.llama.model import TextModel
from diptych.types import Sampling

TREE = {
    "$ref": "#/$defs/node",
    "$defs": {
        "node": {
            "type": "object",
            "properties": {"name": {"$ref": "#/$defs/a~1b"}, "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}},
            "required": ["name"],
        },
        "a/b": {"enum": ["x", "y"]},
    },
}
# schema, texts it allows, texts it does not
CASES: list[tuple[Any, list[str], list[str]]] = [
    ({"type": "boolean"}, ["true", "false"], ["True", "0", "null", "true false"]),
    ({"type": "null"}, ["null"], ["nul", "0"]),
    ({"type": "integer"}, ["0", "-7", "123456"], ["1.0", "01", "", "-", "1e3"]),
    ({"type": "number"}, ["0", "-7.25", "1e5", "0.001"], [".5", "01", "1.", "NaN", "1e999"]),
    ({"type": "string"}, ['""', '"é🙂"', r'"\n\u00e9\\\""'], ['"\n"', '"a', r'"\x"', r'"\ud800"', '"\t"']),
    (
        {},
        ["1", '"a"', "[]", '{"a": [1, {"b": null}]}', "true"],
        ["", "{a: 1}", "[1,]", '{"a" 1}'],
    ),
    (True, ["1", "{}"], [""]),
    ({"type": "object"}, ["{}", '{"a": 1, "b": {}}'], ["[]", '{"a"}']),
    ({"type": "array"}, ["[]", "[1, [2]]"], ["{}", "[1 2]"]),
    ({"const": 'a"b\\c\n é'}, [json.dumps('a"b\\c\n é', ensure_ascii=False)], ['"a"']),
    (
        {"enum": ["red", 'q"\\', 3, None, {"a": [1]}]},
        ['"red"', r'"q\"\\"', "3", "null", '{"a": [1]}'],
        ["red", "4", '"q"'],
    ),
    ({"type": "string", "enum": ["a", 1]}, ['"a"'], ["1"]),
    ({"type": ["string", "null"], "maxLength": 2}, ['"ab"', "null"], ['"abc"', "1"]),
    ({"type": "string", "minLength": 2, "maxLength": 3}, ['"ab"', '"abc"', r'"\n\""'], ['"a"', '"abcd"', '""']),
    ({"maxLength": 0}, ['""'], ['"a"']),
    ({"type": "string", "minLength": 3}, ['"abc"', '"abcdefgh"'], ['"ab"']),
    ({"type": "integer", "minimum": 0, "maximum": 150}, ["0", "9", "10", "99", "100", "150"], ["-1", "151", "1000", "00"]),
    ({"type": "integer", "minimum": -12, "maximum": -3}, ["-12", "-10", "-9", "-3"], ["-13", "-2", "0", "3", "-03"]),
    ({"type": "integer", "exclusiveMinimum": -2, "exclusiveMaximum": 2}, ["-1", "0", "1"], ["-2", "2"]),
    ({"type": "integer", "minimum": 1.5, "maximum": 3.5}, ["2", "3"], ["1", "4"]),
    ({"type": "integer", "minimum": 37}, ["37", "40", "99", "100", "123456789"], ["36", "9", "0", "-40"]),
    ({"type": "integer", "maximum": -5}, ["-5", "-123"], ["-4", "0", "5"]),
    ({"type": "number", "minimum": 0, "maximum": 1}, ["0", "0.25", "1", "1.00"], ["-0.5", "1.01", "2", "1e9"]),
    ({"type": "number", "minimum": -1, "maximum": 1}, ["-1", "-0.5", "0", "1", "-1.0"], ["-1.1", "1.1"]),
    ({"type": "number", "exclusiveMinimum": 0}, ["0.5", "1", "1.5", "12"], ["0", "0.0", "-1"]),
    ({"type": "number", "exclusiveMaximum": 10}, ["9.99", "-100", "0"], ["10", "10.0", "11"]),
    (
        {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "boolean"}, "c": {}}, "required": ["b"]},
        ['{"b": true}', '{"a": 1, "b": true}', '{"a":1,"b":false,"c":"x"}', '{"b": true, "c": []}', '{\n  "b": true\n}'],
        ["{}", '{"a": 1}', '{"b": true, "a": 1}', '{"b": 1}', '{"b": true,}', '{"b": true, "d": 1}', '{"a": 1 "b": true}'],
    ),
    (
        {"properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}},
        ["{}", '{"a": 1}', '{"b": 1}', '{"a": 1, "b": 2}'],
        ['{,"a": 1}', '{"a": 1,}', '{"a": 1, "a": 2}'],
    ),
    (
        {
            "properties": {"ab": {"type": "integer"}, "ac": {}, "": {"type": "null"}},
            "additionalProperties": {"type": "boolean"},
        },
        ["{}", '{"ab": 1}', '{"x": true}', '{"ab": 1, "a": true, "abc": false}', '{"b": true}'],
        ['{"ab": true}', '{"x": 1}', '{"": true}', r'{"\u0061b": true}', '{"x": true, "ab": 1}'],
    ),
    ({"type": "object", "additionalProperties": False}, ["{}"], ['{"a": 1}']),
    ({"type": "object", "additionalProperties": {"type": "null"}}, ["{}", '{"a": null, "b": null}'], ['{"a": 1}']),
    ({"required": ["a", "b"]}, ['{"a": 1, "b": 2}'], ["{}", '{"a": 1}']),
    ({"type": "array", "items": {"type": "integer"}}, ["[]", "[1]", "[1, 2,3]"], ["[true]", "[1,]"]),
    (
        {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 3},
        ["[1,2]", "[1, 2, 3]"],
        ["[]", "[1]", "[1,2,3,4]"],
    ),
    ({"items": {"type": "integer"}, "maxItems": 1}, ["[]", "[1]"], ["[1,2]"]),
    ({"type": "array", "maxItems": 0}, ["[]", "[ ]"], ["[1]"]),
    (
        {"prefixItems": [{"type": "integer"}, {"type": "boolean"}], "items": False},
        ["[1, true]"],
        ["[1]", "[1, true, 2]", "[true, 1]"],
    ),
    (
        {"prefixItems": [{"const": 1}], "items": {"const": 2}, "minItems": 2, "maxItems": 3},
        ["[1, 2]", "[1,2,2]"],
        ["[1]", "[2,2]"],
    ),
    ({"anyOf": [{"type": "integer"}, {"type": "array", "items": {"type": "null"}}]}, ["1", "[null]"], ["true", "[1]"]),
    (
        {"properties": {"k": {"const": 1}}, "anyOf": [{"required": ["k"]}, {"properties": {"m": {"const": 2}}}]},
        ['{"k": 1}', '{"m": 2}', "{}"],
        ['{"k": 2}', '{"m": 3}'],
    ),
    (
        {
            "allOf": [
                {"properties": {"a": {"minimum": 0}}, "required": ["a"]},
                {"properties": {"a": {"type": "integer", "maximum": 5}}},
            ]
        },
        ['{"a": 0}', '{"a": 5}'],
        ['{"a": 6}', '{"a": -1}', "{}"],
    ),
    ({"allOf": [{"$ref": "#/$defs/s"}], "title": "T", "default": "x", "$defs": {"s": {"enum": ["x", "y"]}}}, ['"x"'], ['"z"']),
    (TREE, ['{"name": "x"}', '{"name": "y", "next": {"name": "x", "next": null}}'], ['{"name": "z"}', '{"next": null}']),
    (
        {
            "properties": {"p": {"$ref": "#/$defs/a/properties/x"}, "q": {"$ref": "#/$defs/b/properties/x"}},
            "required": ["p", "q"],
            "$defs": {"a": {"properties": {"x": {"const": 1}}}, "b": {"properties": {"x": {"const": 2}}}},
        },
        ['{"p": 1, "q": 2}'],
        ['{"p": 1, "q": 1}'],
    ),
    ({"type": "string", "pattern": "^[a-z]{2,4}-\\d+$"}, ['"ab-1"', '"abcd-123"'], ['"a-1"', '"abcde-1"', '"ab-"', '"1ab-1"']),
    ({"pattern": "^(?:a|b\\.c)?[^x-z]$"}, ['"aq"', '"b.c1"', '"q"', r'"a\n"'], ['"bxc1"', '"ax"', '""']),
    ({"pattern": "b+"}, ['"b"', '"abbc"'], ['""', '"ac"']),
    ({"pattern": "^a$|^b$"}, ['"a"', '"b"'], ['"ab"', '""']),
    ({"pattern": '^["\\\\/]\\w\\s$'}, [r'"\"a "', r'"\\_\t"', '"/1 "'], [r'"\"a"', '"aa "']),
    ({"type": "string", "format": "date"}, ['"2024-02-29"', '"2024-12-31"'], ['"2024-13-01"', '"2024-04-31"', '"24-01-01"']),
    ({"type": "string", "format": "time"}, ['"23:59:00Z"', '"00:00:00.123+02:00"'], ['"24:00:00Z"', '"12:00"']),
    ({"format": "date-time"}, ['"2024-01-31T12:00:00Z"'], ['"2024-01-31"']),
    ({"type": "string", "format": "uuid"}, ['"01234567-89ab-cdef-0123-456789abcdef"'], ['"01234567"']),
    ({"type": "string", "format": "email"}, ['"a@b.c"'], ["1"]),
]  # fmt: skip
REFUSED = {
    "not json": "is not JSON",
    "[" * 100_000: "is not JSON",
    "3": "is 3, which nothing satisfies",
    "false": "nothing satisfies",
    '{"type": "integer", "multipleOf": 3}': "at # uses multipleOf",
    '{"properties": {"a": {"uniqueItems": true}}}': "at #/properties/a uses uniqueItems",
    '{"type": "thing"}': 'the type "thing"',
    '{"type": {"a": 1}}': "the type",
    '{"properties": 3}': "is not sound",
    '{"enum": []}': "lists no value",
    '{"anyOf": []}': "lists no alternative",
    '{"$ref": "https://example.com/s.json"}': "only references within the schema",
    '{"$ref": "#/$defs/none"}': "which is not there",
    '{"$ref": "#"}': "left recursion",
    '{"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}': "left recursion",
    '{"allOf": [{"$ref": "#/$defs/a"}], "$defs": {"a": {"$ref": "#/$defs/a"}}}': "refers to itself",
    '{"allOf": [{"$ref": "#"}]}': "nested over 100 deep",
    '{"minimum": 5, "maximum": 4}': "bounds that no number meets",
    '{"type": "integer", "minimum": 1, "exclusiveMaximum": 1}': "bounds that no number meets",
    '{"type": "number", "minimum": 0.5}': "only whole bounds",
    '{"type": "integer", "minimum": "a"}': "has the bound 'a'",
    '{"minLength": 3, "maxLength": 2}': "cannot be",
    '{"maxLength": 99999999}': "at most 1000000",
    '{"minItems": 2, "maxItems": 1}': "cannot be",
    '{"pattern": "("}': "is not sound",
    '{"pattern": "^(?=a)b$"}': "a pattern with assert",
    '{"pattern": "a\\\\bc"}': "a pattern with at",
    '{"pattern": "a", "maxLength": 2}': "a pattern and a length",
    '{"pattern": "^a{5000}$"}': "repeated over 2000",
    '{"allOf": [{"type": "string"}, {"type": "integer"}]}': "nothing in common",
    '{"allOf": [{"additionalProperties": false}, {"properties": {"a": {}}}]}': "closes an object",
    '{"items": ' * 150 + "{}" + "}" * 150: "nested over 100 deep",
}


@pytest.fixture(scope="module")
def allows(text: TextModel) -> Callable[[str, str], bool]:
    """Whether llama.cpp's grammar, fed a text byte by byte, takes it and lets the answer end behind it."""
    end = text.tokenize("<|im_end|>")[0]
    byte = {text.piece(t): t for t in range(256)}

    def run(gbnf: str, string: str) -> bool:
        grammar.check(gbnf)
        constraint = Constraint(text, gbnf)
        for b in string.encode():
            if not constraint.allows(token := byte[bytes([b])]):
                return False
            constraint.take(token)
        return constraint.allows(end)

    return run


@pytest.mark.parametrize(("wanted", "good", "bad"), CASES, ids=[json.dumps(c[0])[:60] for c in CASES])
def test_a_schema_allows_what_it_should_and_nothing_else(
    allows: Callable[[str, str], bool], wanted: Any, good: list[str], bad: list[str]
) -> None:
    gbnf = schema.to_gbnf(json.dumps(wanted))
    for string in good:
        jsonschema.validate(json.loads(string), wanted)
        assert allows(gbnf, string), string
    for string in bad:
        assert not allows(gbnf, string), string


@pytest.mark.parametrize(("string", "words"), REFUSED.items(), ids=[k[:60] for k in REFUSED])
def test_a_schema_that_cannot_be_kept_is_refused(string: str, words: str) -> None:
    with pytest.raises(GrammarError) as caught:
        grammar.of(Sampling(json_schema=string))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("low", "high"), [(0, 999), (0, 1000), (0, 1001), (0, 2500), (1500, 2500), (2000, 2000), (1700, None)])
def test_lengths_beyond_what_llama_cpp_counts_are_exact(allows: Callable[[str, str], bool], low: int, high: int | None) -> None:
    gbnf = schema.to_gbnf(json.dumps({"type": "string", "minLength": low} | ({} if high is None else {"maxLength": high})))
    for n in {0, 1, 998, 1000, 1001, 1999, 2001, 3000, low, low + 1, max(0, low - 1), high or 0, (high or 0) + 1}:
        assert allows(gbnf, json.dumps("a" * n)) == (low <= n and (high is None or n <= high)), n


@pytest.mark.parametrize("seed", range(3))
def test_whatever_a_grammar_lets_through_satisfies_its_schema(text: TextModel, seed: int) -> None:
    """Random texts: at every step any token that the grammar allows, an end as soon as it may."""
    short = {"type": "string", "maxLength": 4}
    wanted = {
        "type": "object",
        "properties": {
            "name": short,
            "kind": {"enum": ["a\\b", 'c"d', 7, None]},
            "tags": {"type": "array", "items": short, "minItems": 1, "maxItems": 3},
            "age": {"type": "integer", "minimum": -20, "maximum": 150},
            "share": {"type": "number", "minimum": 0, "exclusiveMaximum": 3},
            "tree": {"$ref": "#/$defs/tree"},
            "code": {"type": "string", "pattern": "^[A-Z\"]{1,3}(-\\d\\d)?$"},
            "when": {"type": "string", "format": "date-time"},
        },
        "required": ["name", "tags", "share", "code"],
        "additionalProperties": {"type": "boolean"},
        "$defs": {
            "tree": {"properties": {"l": {"anyOf": [{"$ref": "#/$defs/tree"}, {"type": "null"}]}, "v": {"type": "boolean"}}}
        },
    }  # fmt: skip
    rng = np.random.default_rng(seed)
    for _ in range(6):
        jsonschema.validate(json.loads(random_text(text, schema.to_gbnf(json.dumps(wanted)), rng)), wanted)


def random_text(text: TextModel, gbnf: str, rng: np.random.Generator) -> str:
    grammar.check(gbnf)
    constraint, out = Constraint(text, gbnf), b""
    while True:
        candidates = Candidates(np.arange(text.n_vocab, dtype=np.int32), np.zeros(text.n_vocab, np.float32))
        constraint.restrict(candidates)
        # llama.cpp lets overlong UTF-8 pass behind these two bytes; no text has it, but a random choice of bytes does
        left = candidates.rows["id"][np.isfinite(candidates.rows["logit"])]
        allowed = [t for t in left.tolist() if text.piece(t) not in (b"\xe0", b"\xf0")]
        plain = [t for t in allowed if text.piece(t) in b'"}],:0123456789truefalsn{[ abl\\-'] or allowed
        if any(map(text.is_end, allowed)):
            return out.decode()
        token = int(rng.choice(plain if rng.random() < 0.9 else allowed))
        assert constraint.allows(token)
        constraint.take(token)
        out += text.piece(token)
