"""Grammars hold a model to calls that are read again, of tools that are there, with arguments that fit."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import jsonschema
import llama_cpp.llama_cpp as lib
import numpy as np
import pytest
from answers import GOOD, PARIS, TEMPLATES, TOOLS

import text_half
import tiny
from diptych.errors import GrammarError
from diptych.llama import grammar
from diptych.llama.candidates import Candidates
from diptych.llama.constraint import Constraint
from diptych.llama.model import TextModel
from diptych.llama.native import Native
from diptych.prompt import ChatTemplate
from diptych.server.parsers import Plan, plan, said
from diptych.server.parsers.grammar import Rules
from diptych.types import Message, Request, Sampling

SCHEMAS = {t["function"]["name"]: {"type": "object", **t["function"].get("parameters", {})} for t in TOOLS}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TextModel]:
    """A vocabulary with a token for each byte."""
    path = tmp_path_factory.mktemp("text") / "text.gguf"
    with TextModel.load(text_half.write_text(path, shape := tiny.Qwen2VL(), text_half.random(shape))) as made:
        yield made


Follows = Callable[[Sampling, str], bool]


@pytest.fixture(scope="module")
def follows(text: TextModel) -> Follows:
    """Whether an answer follows the grammar of a sampling, a byte a token."""
    end = text.tokenize("<|im_end|>")[0]
    byte = {text.piece(t): t for t in range(256)}

    def run(sampling: Sampling, string: str) -> bool:
        gbnf = sampling.grammar
        assert gbnf is not None
        grammar.check(gbnf)
        constraint = Constraint(text, gbnf, sampling.grammar_triggers)
        for b in string.encode():
            if not constraint.allows(token := byte[bytes([b])]):
                return False
            constraint.take(token)
        return constraint.allows(end)

    return run


def planned(form: str, choice: Any = None, parallel: bool = True, thinks: bool = False, **given: Any) -> Plan:
    request = Request((Message("user", ("Hi",)),), **{"tools": TOOLS, "template": {"enable_thinking": thinks}, **given})
    return plan(ChatTemplate(TEMPLATES[form], "", ""), request, choice, parallel)


@pytest.mark.parametrize("answer", GOOD, ids=lambda a: f"{a.form}: {a.text[:40]!r}")
def test_what_models_write_follows_the_grammar(answer, follows):
    assert follows(planned(answer.form, thinks=answer.thinks).request.sampling, answer.text)


@pytest.mark.parametrize("answer", [a for a in GOOD if a.calls and not a.content], ids=lambda a: f"{a.form}: {a.text[:40]!r}")
def test_calls_that_must_be_follow_the_grammar(answer, follows):
    assert follows(planned(answer.form, "required", thinks=answer.thinks).request.sampling, answer.text)


WEATHER = {"type": "function", "function": {"name": "get_weather"}}


@pytest.mark.parametrize("form", sorted(TEMPLATES))
def test_an_answer_without_a_call_does_not_do_where_one_must_be(form, follows):
    for choice in ("required", WEATHER):
        for words in ("Hello!", "", "<think>\nHm.\n</think>\n\nHello!"):
            assert not follows(planned(form, choice).request.sampling, words)


@pytest.mark.parametrize("answer", [a for a in GOOD if len(a.calls) > 1], ids=lambda a: f"{a.form}: {a.text[:40]!r}")
def test_there_is_one_call_where_several_are_not_wanted(answer, follows):
    assert not follows(planned(answer.form, parallel=False, thinks=answer.thinks).request.sampling, answer.text)


def hermes(name: str, arguments: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


@pytest.mark.parametrize(
    ("form", "wrong"),
    [
        ("hermes", hermes("fly", "{}")),
        ("hermes", hermes("get_weather", "{}")),
        ("hermes", hermes("get_weather", '{"city": "Paris", "days": 15}')),
        ("hermes", hermes("get_weather", '{"city": "Paris", "days": "2"}')),
        ("hermes", hermes("edit", '{"file": "a", "lines": [{"n": "x"}]}')),
        ("hermes", "Sure. <tool_call>\nno"),
        ("xml", "<tool_call>\n<function=fly>\n</function>\n</tool_call>"),
        ("xml", "<tool_call>\n<function=get_weather>\n</function>\n</tool_call>"),
        (
            "xml",
            "<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n<parameter=days>\n15\n</parameter>\n"
            "</function>\n</tool_call>",
        ),
        ("keys", "<tool_call>get_weather\n</tool_call>"),
        (
            "keys",
            "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n<arg_key>unit</arg_key>\n"
            "<arg_value>K</arg_value>\n</tool_call>",
        ),
        ("mistral", "[TOOL_CALLS]none"),
        ("named", "[TOOL_CALLS]fly[ARGS]{}"),
        ("bare", '{"name": "now", "parameters": {"a": 1}}x'),
        ("v3", "<｜tool▁calls▁begin｜>none"),
        ("plain", hermes("fly", "{}")),
    ],
)  # fmt: skip
def test_calls_of_other_functions_or_with_other_arguments_cannot_be(form, wrong, follows):
    for choice in (None, "required"):
        assert not follows(planned(form, choice).request.sampling, wrong), choice


def test_only_the_named_function_can_be_called(follows):
    sampling = planned("hermes", WEATHER).request.sampling
    assert follows(sampling, hermes(*PARIS))
    assert not follows(sampling, hermes("now", "{}"))


@pytest.mark.parametrize("form", ["hermes", "xml", "keys"])
def test_reasoning_is_free_before_a_call_that_must_be(form, follows):
    call = next(a for a in GOOD if a.form == form and a.calls and not a.content and not a.thinks).text
    opened = "" if form == "xml" else "<think>"
    sampling = planned(form, "required", thinks=True).request.sampling
    assert follows(sampling, f"{opened}\nI </thin <tool_call> x.\n</think>\n\n{call}")
    assert not follows(sampling, f"{opened}\nI think.\n</think>\n\nHello {call}")
    assert not follows(sampling, f"{opened}\nI think and never stop")
    assert follows(sampling, call) == (form != "xml")


def test_reasoning_is_free_before_an_answer_that_a_schema_holds(follows):
    for given in (
        {"json_schema": '{"type": "object", "properties": {"a": {"type": "integer"}}}'},
        {"grammar": 'root ::= "{}" # "\n'},
    ):
        wanted = {"tools": (), "sampling": Sampling(**given)}
        thinking = planned("xml", thinks=True, **wanted).request.sampling
        assert thinking.json_schema is None
        assert follows(thinking, "I think {x}.\n</think>\n\n{}")
        assert not follows(thinking, "I think.\n</think>\n\nYes: {}")
        may = planned("hermes", thinks=True, **wanted).request.sampling
        assert follows(may, "{}")
        assert follows(may, "<think>so</think>{}")
        assert not follows(may, "so</think>{}")
        assert planned("xml", **wanted).request.sampling == Sampling(**given), "the prompt has closed the reasoning"


@pytest.mark.parametrize("form", sorted(TEMPLATES))
@pytest.mark.parametrize("seed", range(4))
def test_whatever_the_grammar_allows_is_read_as_calls_that_fit(form, seed, text):
    made = planned(form, "required")
    found = said(
        [*(parser := made.parser()).push(random_text(text, made.request.sampling.grammar or "", seed)), *parser.finish()]
    )
    assert found.calls
    assert found.content.strip() == ""
    for call in found.calls:
        jsonschema.validate(json.loads(call.arguments), SCHEMAS[call.name])


ENDS = (b'"', b"}", b"]", b"\n</parameter>\n", b"</arg_value>", b"</think>")  # what most often leads to the end


def random_text(text: TextModel, gbnf: str, seed: int) -> str:
    """A text that a grammar allows: random characters, and words that lead to the end."""
    grammar.check(gbnf)
    rng, out = np.random.default_rng(seed), b""
    (end,) = text.tokenize("<|im_end|>")
    byte = {text.piece(t): t for t in range(256)}
    plain = {byte[bytes([b])] for b in (10, *range(32, 127))}
    native = Native("grammar", lib.llama_sampler_init_grammar(text.vocab, gbnf.encode(), b"root"), lib.llama_sampler_free, text)

    def allowed() -> list[int]:
        candidates = Candidates(np.arange(text.n_vocab, dtype=np.int32), np.zeros(text.n_vocab, np.float32))
        candidates.apply(native)
        return candidates.rows["id"][np.isfinite(candidates.rows["logit"])].tolist()

    while end not in (left := allowed()):
        some = text.piece(int(rng.choice([t for t in left if t in plain] or left)))
        for b in ENDS[rng.integers(len(ENDS))] if rng.random() < 0.3 else some:
            if (token := byte[bytes([b])]) not in allowed():
                break
            lib.llama_sampler_accept(native.pointer, token)
            out += bytes([b])
    return out.decode()


def test_a_schema_that_no_grammar_can_keep_is_loosened_where_a_call_may_be_and_refused_where_it_must(follows):
    odd = {"type": "object", "properties": {"a": {"type": "string"}}, "patternProperties": {"^x": {}}}
    tools = ({"type": "function", "function": {"name": "odd", "parameters": odd}},)
    assert follows(planned("hermes", tools=tools).request.sampling, hermes("odd", '{"b": [1]}'))
    with pytest.raises(GrammarError, match=r"arguments of odd, tool odd: the JSON schema at # uses patternProperties"):
        planned("hermes", "required", tools=tools)


@pytest.mark.parametrize("form", sorted(TEMPLATES))
def test_many_tools_make_a_grammar_that_is_taken(form, follows):
    base = TOOLS[0]["function"]
    tools = tuple({"type": "function", "function": {**base, "name": f"tool_number_{i}"}} for i in range(100))
    for choice in (None, "required"):
        sampling = planned(form, choice, tools=tools).request.sampling
        grammar.check(sampling.grammar or "")
        for answer in GOOD:
            if answer.form == form and [name for name, _ in answer.calls] == ["get_weather"] and not answer.content:
                assert follows(sampling, answer.text.replace("get_weather", "tool_number_99"))


@pytest.mark.parametrize(
    ("words", "good", "bad"),
    [
        (["</a>"], ["", "x", "<", "</", "</a", "<<</b</", "</</a<", "é\n"], ["</a>", "x</a>", "<</a>", "</</a>x"]),
        (["aab", "b"], ["", "a", "aaa", "c"], ["b", "aab", "aaab"]),
        (["[X]", "^-\\"], ["[", "[X", "]", "^-", "\\"], ["[X]", "x^-\\"]),
    ],
)
def test_text_without_words_is_any_other_text(words, good, bad, follows):
    rules = Rules(strict=True)
    sampling = Sampling(grammar=rules.text(rules.without(words)))
    assert all(follows(sampling, string) for string in good)
    assert not any(follows(sampling, string) for string in bad)


def test_another_grammar_is_taken_with_all_it_says(follows):
    rules = Rules(strict=True)
    root = rules.whole(
        'root ::= # a "comment\n  thing ("root" | [root"]) \\\n'.replace(" \\", "") + 'thing ::= "a-thing" | "\\"x"\n'
    )
    sampling = Sampling(grammar=rules.text(f'"> " {root}'))
    assert follows(sampling, "> a-thingroot")
    assert follows(sampling, '> "x"')
    assert not follows(sampling, "> root")


def test_answers_that_only_look_like_calls_are_free(follows):
    for form, words in (("bare", '{"name": "Bob"}'), ("hermes", "a <tool> b"), ("xml", "<function=x>")):
        assert follows(planned(form).request.sampling, words)
    many = tuple({"type": "function", "function": {"name": f"f{i}"}} for i in range(20))
    assert not follows(planned("bare", tools=many).request.sampling, '{"name": "Bob"}'), "too many names for triggers"
