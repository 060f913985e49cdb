"""Answers come apart the same way, wherever they are cut."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from functools import cache

import pytest
from answers import GOOD, NOW, TEMPLATES, TOOLS, WILD, Answer
from hypothesis import given
from hypothesis import strategies as st

import tiny_glm
from diptych.prompt import ChatTemplate
from diptych.server.parsers import CallArguments, CallStart, Content, Delta, Parser, Plan, Reasoning, joined, plan, said
from diptych.types import Message, Request

ALL = [*GOOD, *WILD]
IDS = [f"{a.form}: {a.text[:40]!r}" for a in ALL]


@cache
def planned(form: str, thinks: bool, reasoning: str) -> Plan:
    request = Request((Message("user", ("Hi",)),), tools=TOOLS, template={"enable_thinking": thinks})
    return plan(ChatTemplate(TEMPLATES[form], "", ""), request, reasoning=reasoning)


def parser(answer: Answer, reasoning: str = "auto") -> Parser:
    return planned(answer.form, answer.thinks, reasoning).parser()


def deltas(made: Parser, pieces: Iterable[str]) -> list[Delta]:
    return joined([*(delta for piece in pieces for delta in made.push(piece)), *made.finish()])


def nameless(found: Iterable[Delta]) -> list[Delta]:
    """Deltas without their random ids."""
    return [CallStart(d.index, "", d.name) if isinstance(d, CallStart) else d for d in found]


@pytest.mark.parametrize("answer", ALL, ids=IDS)
def test_an_answer_says_what_it_says(answer):
    found = said(deltas(parser(answer), [answer.text]))
    assert (found.reasoning, found.content) == (answer.reasoning, answer.content)
    assert tuple((call.name, call.arguments) for call in found.calls) == answer.calls


@pytest.mark.parametrize("answer", ALL, ids=IDS)
def test_an_answer_says_the_same_character_by_character(answer):
    assert nameless(deltas(parser(answer), answer.text)) == nameless(deltas(parser(answer), [answer.text]))


WORDS = st.sampled_from(
    [
        "<tool_call>", "</tool_call>", "<think>", "</think>", "\n", " ", "{", "}", '{"name": "now", "arguments": {}}', '"', "now",
        '{"name": "get_weather", "arguments": {"city": "x"', "<function=now>", "<function=get_weather>", "</function>",
        "<parameter=city>", "<parameter=days>", "</parameter>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>", "city",
        "2", "[TOOL_CALLS]", "[ARGS]", "[", "]", ", ", ";", "<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>",
        "```json", "<｜tool▁call▁end｜>", "<|python_tag|>", "x", "<", "\\", '"parameters": ', "é🙂",
    ]
)  # fmt: skip


@given(
    form=st.sampled_from(sorted(TEMPLATES)),
    thinks=st.booleans(),
    reasoning=st.sampled_from(["none", "auto", "deepseek-legacy"]),
    words=st.lists(WORDS, max_size=14),
    data=st.data(),
)
def test_whatever_is_said_is_the_same_wherever_it_is_cut(form, thinks, reasoning, words, data):
    text = "".join(words)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    answer = Answer(form, text, thinks=thinks)
    cut, whole = (nameless(deltas(parser(answer, reasoning), p)) for p in (pieces, [text]))
    assert said(cut) == said(whole)
    assert cut == whole or reasoning == "deepseek-legacy", "which tells some of it twice, in turns"


@given(form=st.sampled_from(sorted(TEMPLATES)), words=st.lists(WORDS, max_size=14))
def test_what_is_no_call_is_not_lost(form, words):
    """Without calls and reasoning the content is the text, but for white space at what was taken out."""
    text = "".join(words)
    found = said(deltas(parser(Answer(form, text), "none"), text))
    if not found.calls:
        assert found.content == text
    told = re.sub(r"\s", "", found.content)
    rest = iter(re.sub(r"\s", "", text))
    assert all(c in rest for c in told), "content is in the order of the text"


def test_arguments_come_as_they_are_written():
    made, found = parser(GOOD[1]), []
    for c in '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Pa':
        found += made.push(c)
    assert nameless(found[:1]) == [CallStart(0, "", "get_weather")]
    assert joined(found[1:]) == [CallArguments(0, '{"city": "Pa')]
    assert re.fullmatch(r"call_[a-zA-Z0-9]{24}", found[0].id)


WEATHER = CallStart(0, "", "get_weather")


@pytest.mark.parametrize(
    ("form", "text", "told"),
    [
        ("hermes", "Hello wor", [Content("Hello wor")]),
        ("hermes", "Hello \n", [Content("Hello")]),
        ("hermes", "a <tool_ca", [Content("a")]),
        ("hermes", "a <tool_cat", [Content("a <tool_cat")]),
        ("hermes", "<think>\nso </thin", [Reasoning("so")]),
        ("xml", "<function=get_weather><parameter=city>\nPar", [WEATHER, CallArguments(0, '{"city": "Par')]),
        ("xml", "<function=get_weather><parameter=days>\n12", [WEATHER, CallArguments(0, '{"days": ')]),
        ("bare", '{"a": "not held', [Content('{"a": "not held')]),
    ],
)  # fmt: skip
def test_no_more_is_held_back_than_is_in_doubt(form, text, told):
    assert nameless(joined(parser(Answer(form, "")).push(text))) == told


def test_calls_are_numbered_and_each_has_an_id():
    starts = [d for d in deltas(parser(GOOD[3]), [GOOD[3].text]) if isinstance(d, CallStart)]
    assert [d.index for d in starts] == [0, 1]
    assert len({d.id for d in starts}) == 2


def thoughts(reasoning: str, text: str, opening: str = "") -> tuple[str, str]:
    template = ChatTemplate("</think>{% if add_generation_prompt %}" + opening + "{% endif %}")
    made = plan(template, Request((Message("user", ("Hi",)),)), reasoning=reasoning).parser()
    found = said(deltas(made, text))
    return found.reasoning, found.content


def test_reasoning_is_told_in_the_format_that_is_asked_for():
    text = "<think>\nHm.\n</think>\n\nYes."
    for name in ("auto", "deepseek"):
        assert thoughts(name, text) == ("Hm.", "Yes.")
        assert thoughts(name, text[8:], "<think>\n") == ("Hm.", "Yes.")
        assert thoughts(name, "Yes.", "<think>\n\n</think>\n\n") == ("", "Yes.")
    assert thoughts("none", text) == ("", text)
    assert thoughts("none", text[8:], "<think>\n") == ("", text), "with what the prompt ended with, as llama-server"
    assert thoughts("deepseek-legacy", text) == ("Hm.", text)
    assert thoughts("deepseek-legacy", text[8:], "<think>\n") == ("Hm.", text)


def test_an_answer_that_goes_on_in_its_reasoning_begins_inside():
    template = ChatTemplate(TEMPLATES["xml"])
    asked = Message("user", ("Hi",))
    for last, expected in (
        (Message("assistant", (), reasoning="So"), ("far.", "Yes.")),
        (Message("assistant", ("So",), reasoning="Hm."), ("", "far.\n</think>\nYes.")),
    ):
        made = plan(template, Request((asked, last), continue_final=True)).parser()
        found = said(deltas(made, " far.\n</think>\nYes."))
        assert (found.reasoning, found.content.strip()) == expected


def test_glms_answers_come_out_of_their_markup():
    made = plan(ChatTemplate(tiny_glm.CHAT_TEMPLATE), Request((Message("user", ("Hi",)),))).parser()
    text = "<think>I see\n</think>\n<answer>\nIt is <|begin_of_box|>42<|end_of_box|> .\n</answer>\n"
    found = said(deltas(made, text))
    assert (found.reasoning, found.content) == ("I see", "It is 42 .")


def test_calls_are_text_where_there_are_no_tools():
    template, text = ChatTemplate(TEMPLATES["hermes"]), GOOD[1].text
    for request, choice in (
        (Request((Message("user", ("Hi",)),)), None),
        (Request((Message("user", ("Hi",)),), tools=TOOLS), "none"),
    ):
        found = said(deltas(plan(template, request, choice).parser(), text))
        assert (found.content, found.calls) == (text, ())


def test_only_the_tool_that_must_be_called_is_known():
    request = Request((Message("user", ("Hi",)),), tools=TOOLS)
    choice = {"type": "function", "function": {"name": "get_weather"}}
    made = plan(ChatTemplate(TEMPLATES["hermes"]), request, choice).parser()
    assert said(deltas(made, f'<tool_call>{{"name": "{NOW[0]}", "arguments": {{}}}}</tool_call>')).calls == ()


def test_a_long_answer_costs_time_in_its_length():
    text = "<tool_call>\n<function=edit>\n<parameter=file>\n" + "word </parameter> <b>\n" * 20000
    made, start = parser(GOOD[7]), time.perf_counter()
    for i in range(0, len(text), 4):
        made.push(text[i : i + 4])
    made.finish()
    assert time.perf_counter() - start < 10
