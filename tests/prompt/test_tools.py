"""Tools, calls, reasoning and open ends in prompts, as transformers writes them."""

from __future__ import annotations

import json
import re
import time
from typing import Any

import pytest

import templates
import tiny
import tiny_glm
import tiny_paddleocr
from diptych.errors import InputError
from diptych.prompt import ChatTemplate
from diptych.types import Message, Request, Source, ToolCall

TOOLS = (
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather of a <city> & 'days'.",
            "parameters": {
                "type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}, "required": ["city"],
            },
        },
    },
    {"type": "function", "function": {"name": "now", "parameters": {}}},
)  # fmt: skip
WEATHER = ToolCall("get_weather", '{"city":"Köln","days":2,"more":{"a":[1,null,true]}}', "call_of_9")
NOW = ToolCall("now", "", "call_of_8")
CONVERSATION = (
    Message("system", ("Be brief.",)),
    Message("user", ("Weather?",)),
    Message("assistant", ("I ask.",), (WEATHER, NOW), reasoning="Hm,\nI ask."),
    Message("tool", ('{"sun": true}',), tool_call_id="call_of_9", name="get_weather"),
    Message("tool", ("12:00",), tool_call_id="call_of_8"),
    Message("assistant", ("Sunny.",)),
    Message("user", ("Thanks. ",)),
)
SOURCES = {
    "hermes": templates.HERMES,
    "xml": templates.XML,
    "glm": templates.GLM,
    "mistral": templates.MISTRAL,
    "qwen2vl": tiny.CHAT_TEMPLATE,
    "glm4.1v": tiny_glm.CHAT_TEMPLATE,
    "paddleocr": tiny_paddleocr.chat_template("1.5"),
}
LISTS_ONLY = ("paddleocr",)
IMAGE = {"image": ("<|vision_start|><|image_pad|><|vision_end|>", "<|image_pad|>")}
GLM_IMAGE = {"image": ("<|begin_of_image|><|image|><|end_of_image|>", "<|image|>")}


def turn(message: Message, lists: bool = False) -> dict[str, Any]:
    """A message as transformers' users write it."""
    parts = [{"type": "text", "text": p} if isinstance(p, str) else {"type": "image"} for p in message.parts]
    calls = [
        {"id": c.id, "type": "function", "function": {"name": c.name, "arguments": json.loads(c.arguments or "{}")}}
        for c in message.tool_calls
    ]
    return {
        "role": message.role,
        "content": parts if lists or any(isinstance(p, Source) for p in message.parts) else "".join(map(str, message.parts)),
        "tool_calls": calls or None,
        "tool_call_id": message.tool_call_id,
        "name": message.name,
        "reasoning_content": message.reasoning,
    }


def theirs(tokenizer: Any, source: str, messages: tuple[Message, ...], lists: bool = False, **given: Any) -> str:
    given = {"add_generation_prompt": True, "tools": [*TOOLS], "bos_token": "<s>", **given}
    return tokenizer.apply_chat_template([turn(m, lists) for m in messages], chat_template=source, tokenize=False, **given)


def ours(source: str, messages: tuple[Message, ...], **given: Any) -> str:
    return ChatTemplate(source, "<s>", "<|im_end|>").render(Request(messages, **{"tools": TOOLS, **given}))


@pytest.mark.parity
@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("upto", range(2, len(CONVERSATION) + 1))
def test_tools_calls_and_reasoning_are_rendered_as_by_transformers(name, upto, tokenizer):
    source, messages = SOURCES[name], CONVERSATION[:upto]
    assert ours(source, messages) == theirs(tokenizer, source, messages, name in LISTS_ONLY)
    closed = ours(source, messages, add_generation_prompt=False, tools=())
    assert closed == theirs(tokenizer, source, messages, name in LISTS_ONLY, add_generation_prompt=False, tools=None)


@pytest.mark.parity
@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("thinks", [True, False])
def test_variables_of_the_request_reach_the_template(name, thinks, tokenizer):
    source, messages = SOURCES[name], CONVERSATION[:2]
    given = {"enable_thinking": thinks, "documents": [{"title": "a", "text": "b"}]}
    expected = theirs(tokenizer, source, messages, name in LISTS_ONLY, **given)
    assert ours(source, messages, template=given) == expected
    if name in ("hermes", "xml", "glm"):
        assert expected != ours(source, messages, template={**given, "enable_thinking": not thinks})


@pytest.mark.parity
@pytest.mark.parametrize("name", [n for n in SOURCES if n != "mistral"])
@pytest.mark.parametrize("begun", ["The weather", "Two words \n", "", " "])
def test_the_last_message_goes_on_where_transformers_lets_it(name, begun, tokenizer):
    said = Message("assistant", (begun,), reasoning="Because." if begun else None)
    source, messages = SOURCES[name], (*CONVERSATION[:2], said)
    expected = theirs(tokenizer, source, messages, name in LISTS_ONLY, add_generation_prompt=False, continue_final_message=True)
    assert ours(source, messages, continue_final=True) == expected
    assert expected.rstrip().endswith(begun.strip())


@pytest.mark.parity
@pytest.mark.parametrize("name", ["hermes", "xml", "glm"])
def test_reasoning_goes_on_where_it_is_all_there_is(name, tokenizer):
    source, messages = SOURCES[name], (*CONVERSATION[:2], Message("assistant", (), reasoning="I think\nthat"))
    expected = theirs(tokenizer, source, messages, add_generation_prompt=False, continue_final_message="reasoning_content")
    assert ours(source, messages, continue_final=True) == expected
    assert expected.endswith("I think\nthat")


@pytest.mark.parity
@pytest.mark.parametrize("name", ["hermes", "xml"])
def test_pictures_in_tool_results_reach_the_prompt(name, tokenizer):
    source, picture = SOURCES[name], Source("image", url="p")
    shown = Message("tool", ("seen: ", picture), tool_call_id="call_of_9")
    messages = (*CONVERSATION[:3], shown, Message("user", (Source("image", url="q"), "And?")))
    cut = ChatTemplate(source, "", "<|im_end|>").cut(Request(messages, tools=TOOLS), IMAGE)
    expected = theirs(tokenizer, source, messages)
    assert "".join(p if isinstance(p, str) else IMAGE["image"][0] for p in cut) == expected
    assert [p.url for p in cut if isinstance(p, Source)] == ["p", "q"]


@pytest.mark.parametrize("name", ["glm", "glm4.1v", "qwen2vl", "paddleocr"])
def test_pictures_in_tool_results_reach_the_prompt_or_are_refused(name):
    """A template that would print them as Python shows them, or drops the whole turn."""
    messages = (*CONVERSATION[:3], Message("tool", ("seen: ", Source("image", url="p"), "."), tool_call_id="call_of_9"))
    template = ChatTemplate(SOURCES[name], "", "")
    if name in ("glm4.1v", "paddleocr"):
        with pytest.raises(InputError, match="does not print each picture"):
            template.cut(Request(messages), GLM_IMAGE)
        return
    cut = template.cut(Request(messages), GLM_IMAGE | IMAGE)
    before, picture, after = (p if isinstance(p, str) else p.url for p in cut)
    assert before.endswith("seen: ")
    assert (picture, after[0]) == ("p", ".")


def test_arguments_are_text_for_templates_that_want_it():
    for source in (templates.TEXT_ARGUMENTS, templates.PYTHON_ARGUMENTS):
        text = ChatTemplate(source).render(Request(CONVERSATION[:4]))
        assert f"get_weather({WEATHER.arguments})" in text, source


def test_arguments_that_are_no_json_are_given_as_they_are():
    broken = Message("assistant", (), (ToolCall("now", '{"a": ', "call_of_9"),))
    assert '"arguments": {"a": }' in ChatTemplate(templates.HERMES).render(Request((CONVERSATION[1], broken)))
    with pytest.raises(InputError, match="arguments must be an object"):
        ChatTemplate(templates.GLM).render(Request((CONVERSATION[1], broken)))
    deep = Message("assistant", (), (ToolCall("now", "[" * 10**5, "call_of_9"),))
    assert "[[[" in ChatTemplate(templates.HERMES).render(Request((CONVERSATION[1], deep)))


def test_ids_are_cut_for_templates_that_want_short_ones():
    call = ToolCall("now", "{}", "call_abcdefghijklmnopqrstuvwx")
    messages = (CONVERSATION[1], Message("assistant", (), (call,)), Message("tool", ("1",), tool_call_id=call.id))
    text = ChatTemplate(templates.MISTRAL, "<s>", "</s>").render(Request(messages))
    assert '"id": "pqrstuvwx"}' in text
    assert '"call_id": "pqrstuvwx"' in text


def test_a_developer_is_the_system_for_templates_that_know_none():
    turns = (Message("developer", ("Be brief.",)), Message("user", ("Hi",)))
    assert ChatTemplate(templates.XML).render(Request(turns)).startswith("<|im_start|>system\nBe brief.")
    known = "{% for m in messages %}{% if m.role == 'developer' %}dev: {% endif %}{{ m.content }}{% endfor %}"
    assert ChatTemplate(known).render(Request(turns)) == "dev: Be brief.Hi"


@pytest.mark.parametrize(
    ("name", "given", "opening"),
    [
        ("hermes", {}, "<|im_start|>assistant\n"),
        ("xml", {}, "<|im_start|>assistant\n<think>\n"),
        ("xml", {"template": {"enable_thinking": False}}, "<|im_start|>assistant\n<think>\n\n</think>\n\n"),
        ("glm", {"template": {"enable_thinking": False}}, "<|assistant|>\n<think></think>"),
        ("mistral", {}, ""),
        ("xml", {"add_generation_prompt": False}, ""),
    ],
)
def test_the_opening_is_what_stands_behind_the_last_message(name, given, opening):
    asked = (Message("user", ("<think>what?",)),)
    assert ChatTemplate(SOURCES[name], "<s>").opening(Request(asked, tools=TOOLS, **given)) == opening


def test_the_opening_of_an_answer_that_goes_on_is_what_it_has():
    asked = Message("user", ("<think>what?",))
    said = Message("assistant", ("So",), reasoning="Hm.")
    template = ChatTemplate(templates.XML)
    assert template.opening(Request((asked, said), continue_final=True)) == "<|im_start|>assistant\n<think>\nHm.\n</think>\n\nSo"
    thought = Message("assistant", (), reasoning="Hm")
    assert template.opening(Request((asked, thought), continue_final=True)) == "<|im_start|>assistant\n<think>\nHm"
    assert template.opening(Request((said,), continue_final=True)).endswith("So")


@pytest.mark.parametrize(
    "last",
    [
        Message("user", ("x",)),
        Message("assistant", ("x",), (NOW,)),
        Message("assistant", ("x", Source("image", url="p"))),
    ],
)  # fmt: skip
def test_a_message_that_cannot_go_on_is_refused(last):
    with pytest.raises(InputError, match=r"^the last message cannot be continued: "):
        ChatTemplate(templates.HERMES).cut(Request((CONVERSATION[1], last), continue_final=True), IMAGE)


def test_a_template_that_does_not_print_the_last_message_is_told():
    with pytest.raises(InputError, match=r"does not print the last message, so it cannot be continued"):
        ChatTemplate("{{ messages[0].content }}").render(Request((CONVERSATION[1], CONVERSATION[5]), continue_final=True))


def test_an_answer_goes_on_behind_a_picture():
    messages = (Message("user", (Source("image", url="p"), "What?")), Message("assistant", ("A ca",)))
    cut = ChatTemplate(templates.HERMES).cut(Request(messages, continue_final=True), IMAGE)
    assert [p if isinstance(p, str) else p.url for p in cut] == [
        "<|im_start|>user\n",
        "p",
        "What?<|im_end|>\n<|im_start|>assistant\nA ca",
    ]


@pytest.mark.parametrize(
    "name",
    [
        "messages", "tools", "bos_token", "eos_token", "cls_token", "add_generation_prompt", "raise_exception", "namespace",
        "a b", "", "work of this rendering",
    ],
)  # fmt: skip
def test_variables_that_are_not_the_clients_to_set_are_refused(name):
    with pytest.raises(InputError, match=rf"^chat_template_kwargs sets {re.escape(repr(name))}, which is not"):
        ChatTemplate(templates.HERMES).render(Request(CONVERSATION[:2], template={name: 1}))


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = {"a": [value]}
    return value


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"template": {"x": nested(60)}}, r"^chat_template_kwargs is nested over 100 deep"),
        ({"template": {"x": nested(10**5)}}, r"^chat_template_kwargs is nested over 100 deep"),
        ({"tools": (nested(60),)}, r"^tools is nested over 100 deep"),
        ({"template": {"x": "y" * 2**22}}, r"^chat_template_kwargs has over 4,194,304 characters"),
        ({"tools": ({"x": [0] * 2**22},)}, r"^tools has over 4,194,304 characters"),
        ({"template": {"x": {1: 2}}}, r"has 1 for a key"),
        ({"template": {"x": object()}}, r"holds a value of the type object"),
    ],
)
def test_hostile_variables_are_refused_in_time(given, says):
    start = time.perf_counter()
    with pytest.raises(InputError, match=says):
        ChatTemplate("{{ x }}").render(Request(CONVERSATION[:2], **given))
    assert time.perf_counter() - start < 5


def test_variables_are_paid_for_where_they_are_printed():
    template = ChatTemplate("{% for i in range(99999) %}{{ x | tojson }}{% endfor %}")
    with pytest.raises(InputError, match="makes over"):
        template.render(Request(CONVERSATION[:2], template={"x": ["y" * 1000] * 1000}))


def test_a_template_cannot_change_what_it_was_given():
    request = Request(CONVERSATION[:2], tools=TOOLS)
    before = json.dumps(TOOLS)
    with pytest.raises(InputError, match="unsafe"):
        ChatTemplate("{% set x = tools.append(1) %}").render(request)
    assert json.dumps(TOOLS) == before


def test_a_template_that_takes_no_pictures_is_rendered_without_them():
    joining = "{% for m in messages %}{{ m.role + ': ' + m.content }}\n{% endfor %}{% if add_generation_prompt %}a: {% endif %}"
    request = Request((Message("user", ("see ", Source("image", url="p"), "?")),))
    assert ChatTemplate(joining).render(request) == "user: see ?\na: "
    assert ChatTemplate(joining).opening(request) == "a: "
