"""What tools, reasoning and answers held to a form ask of a request, and what is refused."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import jsonschema
import pytest
from answers import TEMPLATES, TOOLS

import templates
import text_half
import tiny
from diptych.engine import Engine
from diptych.errors import InputError
from diptych.prompt import ChatTemplate
from diptych.server.parsers import CallStart, plan, said
from diptych.types import Message, Request, Sampling, Source, ToolCall

ASKED = (Message("user", ("Hi",)),)
WEATHER = {"type": "function", "function": {"name": "get_weather"}}


def planned(form: str, choice: Any = None, messages: tuple[Message, ...] = ASKED, **given: Any) -> Request:
    return plan(ChatTemplate(TEMPLATES[form]), Request(messages, **{"tools": TOOLS, **given}), choice).request


def test_a_request_without_tools_and_reasoning_stays_as_it_is():
    request = Request(ASKED, Sampling(temperature=0.5))
    made = plan(ChatTemplate(TEMPLATES["plain"]), request).request
    assert replace(made, special_texts=()) == request


def test_tools_stay_with_templates_that_know_them_and_not_where_none_may_be_called():
    for choice in (None, "auto", "required", WEATHER):
        assert planned("hermes", choice).tools == TOOLS
    none = planned("hermes", "none")
    assert (none.tools, none.sampling.grammar) == ((), None)


def test_what_may_be_a_special_token_is_part_of_the_answer():
    assert planned("mistral").special_texts == ("[TOOL_CALLS]", "[CALL_ID]", "[ARGS]", "<think>", "</think>")
    assert planned("mistral", "none").special_texts == ("<think>", "</think>")


def test_templates_that_know_no_tools_are_told_of_them():
    picture = Source("image", url="p")
    messages = (
        Message("system", ("Be brief.",)),
        *ASKED,
        Message("assistant", ("I ask.",), (ToolCall("now", "{}", "1"), ToolCall("get_weather", '{"city": "Rome"}', "2"))),
        Message("tool", ("12:00",), tool_call_id="1"),
        Message("tool", ("see ", picture), tool_call_id="2"),
    )
    request = planned("plain", None, messages)
    assert request.tools == ()
    system, user, assistant, results = request.messages
    text = "".join(map(str, system.parts))
    assert text.startswith("Be brief.\n\n# Tools\n")
    assert all(json.dumps(tool, ensure_ascii=False) in text for tool in TOOLS)
    assert '{"name": "the name", "arguments": {"a parameter": "its value"}}' in text
    assert user == ASKED[0]
    assert "".join(map(str, assistant.parts)) == (
        'I ask.\n<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>\n'
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome"}}\n</tool_call>'
    )
    assert (results.role, assistant.tool_calls) == ("user", ())
    assert "".join(p if isinstance(p, str) else "[picture]" for p in results.parts) == (
        "<tool_response>\n12:00\n</tool_response>\n<tool_response>\nsee [picture]\n</tool_response>"
    )


def test_what_was_said_with_tools_stays_told_without_them():
    messages = (*ASKED, Message("assistant", (), (ToolCall("now", ""),)), Message("tool", ("12",)))
    told = planned("plain", None, messages, tools=()).messages
    assert [m.role for m in told] == ["user", "assistant", "user"]
    assert told[1].parts == ('<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>',)


def test_templates_without_a_system_are_told_in_the_first_message():
    source = "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no') }}{% endif %}{{ m.content }}{% endfor %}"
    made = plan(ChatTemplate(source), Request(ASKED, tools=TOOLS)).request
    assert [m.role for m in made.messages] == ["user"]
    assert str(made.messages[0].parts[0]).startswith("# Tools")
    with pytest.raises(InputError, match="refuses the conversation: no"):
        plan(ChatTemplate(source), Request((Message("system", ("x",)), *ASKED), tools=TOOLS))


def test_a_plan_serves_any_number_of_answers():
    made = plan(ChatTemplate(TEMPLATES["hermes"]), Request(ASKED, tools=TOOLS))
    text = '<tool_call>{"name": "now", "arguments": {}}</tool_call>'
    found = [made.parser().push(text)[0] for _ in range(2)]
    assert all(isinstance(start, CallStart) and start.index == 0 for start in found)
    assert found[0] != found[1]


FUNCTION = {"name": "f"}


@pytest.mark.parametrize(
    ("tools", "choice", "says"),
    [
        (TOOLS, "always", r"^tool_choice is 'always'; it must be none, auto, required or a function of the tools$"),
        (TOOLS, 7, r"^tool_choice is 7; "),
        (TOOLS, [], r"^tool_choice is \[\]; "),
        (TOOLS, {"function": {"name": "fly"}}, r"names the function 'fly', and the tools are get_weather, edit, now; name one"),
        (TOOLS, {"type": "function", "name": "fly"}, r"names the function 'fly'"),
        (TOOLS, {}, r"names the function None"),
        ((), "required", r"is required, and there are no tools"),
        ((), WEATHER, r"names the function 'get_weather', and the tools are none"),
        (({"type": "code"},), None, r'a tool is {"type": "code"}; it must be {"type": "function", "function": {"name": …}}$'),
        (({"type": "function"},), None, r"a tool is "),
        (("x",), None, r"a tool is "),
        (({"function": {}},), None, r"has the name None"),
        (({"function": {"name": "a b"}},), None, r"has the name 'a b'; it must be up to 256 letters"),
        (({"function": {"name": 'x"y'}},), None, r"has the name 'x\"y'"),
        (
            ({"function": {**FUNCTION, "parameters": "x"}},),
            None,
            r"parameters of the tool f are \"x\"; they must be a JSON schema",
        ),
        (({"function": FUNCTION}, {"function": FUNCTION}), None, r"two tools with the name f"),
    ],
)
def test_tools_and_choices_that_cannot_be_are_refused(tools, choice, says):
    with pytest.raises(InputError, match=says):
        planned("hermes", choice, tools=tools)


@pytest.mark.parametrize("form", ["json", "", "DEEPSEEK"])
def test_other_reasoning_formats_are_refused(form):
    with pytest.raises(InputError, match=rf"^reasoning_format is '{form}'; it must be one of none, auto, deepseek"):
        plan(ChatTemplate(TEMPLATES["xml"]), Request(ASKED), reasoning=form)


def test_tools_and_a_form_of_the_clients_own_exclude_each_other():
    for given in (Sampling(grammar='root ::= "x"'), Sampling(json_schema="{}")):
        with pytest.raises(InputError, match="both tools and a grammar or JSON schema"):
            planned("hermes", sampling=given)
        assert planned("plain", "none", sampling=given).sampling == given


def test_schemas_that_make_no_sense_do_no_harm():
    """Only the grammar of a call that must be looks closely."""
    odd: list[Any] = [
        {"type": 7}, {"properties": []}, {"properties": {"a": 1}}, {"properties": {"a": True, "b": {"type": ["string", 7]}}},
        {"properties": {"a": {"$ref": "#/$defs/a"}}, "$defs": {"a": {"$ref": "#/$defs/a"}}},
        {"required": "a"}, {"properties": {"a": {"enum": 7}}}, {"properties": {"a": {"anyOf": [7]}}}, {"type": "string"},
    ]  # fmt: skip
    for form in sorted(TEMPLATES):
        for parameters in odd:
            tools = ({"type": "function", "function": {"name": "f", "parameters": parameters}},)
            for choice in (None, "required"):
                try:
                    planned(form, choice, tools=tools)
                except InputError:
                    continue


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("text") / "text.gguf"
    text_half.write_text(path, shape := tiny.Qwen2VL(), text_half.random(shape))
    with Engine.load(model=path, options=tiny.EXACT.model_copy(update={"n_ctx": 4096})) as made:
        yield made


async def answer(engine: Engine, request: Request) -> str:
    return "".join([output.text async for output in engine.generate(request)])


@pytest.mark.parametrize("source", [templates.HERMES, tiny.CHAT_TEMPLATE], ids=["hermes", "qwen2vl"])
def test_a_model_that_must_call_a_function_calls_it(engine, source):
    """A tiny model of random weights has no idea, and writes a well-formed call all the same."""
    properties = {"city": {"enum": ["Rome", "Paris"]}, "days": {"type": "integer", "maximum": 9, "minimum": 1}}
    schema = {"type": "object", "properties": properties, "required": ["city", "days"]}
    tools = ({"type": "function", "function": {"name": "get_weather", "parameters": schema}}, TOOLS[2])
    for seed in range(3):
        quiet = {"enable_thinking": False}
        request = Request(ASKED, Sampling(temperature=1.0, seed=seed), 400, tools=tools, template=quiet)
        made = plan(ChatTemplate(source, "", "<|im_end|>"), request, WEATHER, parallel=False)
        parser = made.parser()
        text = asyncio.run(answer(engine, made.request))
        (call,) = said([*parser.push(text), *parser.finish()]).calls
        assert call.name == "get_weather"
        jsonschema.validate(json.loads(call.arguments), schema)
