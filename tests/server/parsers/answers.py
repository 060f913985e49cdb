"""Answers as models write them in each format, and what they say."""

from __future__ import annotations

from dataclasses import dataclass

import templates
from diptych.types import Json

TOOLS: tuple[dict[str, Json], ...] = (
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather of a city.",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string"},
                    "days": {"type": "integer", "minimum": 1, "maximum": 14},
                    "unit": {"enum": ["C", "F"]},
                },
                "required": ["city"],
            },
        },
    },
    {
        "type": "function",
        "function": {
            "name": "edit",
            "parameters": {
                "type": "object",
                "properties": {
                    "file": {"type": "string"},
                    "lines": {"type": "array", "items": {"$ref": "#/$defs/line"}},
                    "force": {"type": "boolean"},
                    "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
                },
                "required": ["file", "lines"],
                "$defs": {"line": {"type": "object", "properties": {"n": {"type": "number"}}, "required": ["n"]}},
            },
        },
    },
    {"type": "function", "function": {"name": "now"}},
)

BARE = '{% if tools %}ipython {{ tools | tojson }} "parameters": {% endif %}{% for m in messages %}{{ m.content }}{% endfor %}'
R1 = (
    "{% if tools %}{{ tools | tojson }}<｜tool▁calls▁begin｜>```json```{% endif %}{% for m in messages %}{{ m.content }}"
    "{% endfor %}{% if add_generation_prompt %}<think>\n{% endif %}</think>"
)
V3 = R1.replace("```json```", "").replace("<think>\n", "")
NAMED = "{% if tools %}{{ tools }}[TOOL_CALLS][ARGS]{% endif %}{% for m in messages %}{{ m.content }}{% endfor %}"
PLAIN = "{% for m in messages %}{{ m.role + ': ' + m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
TEMPLATES = {
    "hermes": templates.HERMES,
    "xml": templates.XML,
    "keys": templates.GLM,
    "mistral": templates.MISTRAL,
    "named": NAMED,
    "bare": BARE,
    "r1": R1,
    "v3": V3,
    "plain": PLAIN,
}

Call = tuple[str, str]  # its name, and the text of its arguments


@dataclass(frozen=True)
class Answer:
    """A text in a format, and what it says. `thinks` is a variable of the template; `parallel` calls are several."""

    form: str
    text: str
    content: str = ""
    calls: tuple[Call, ...] = ()
    reasoning: str = ""
    thinks: bool = False


PARIS = ("get_weather", '{"city": "Paris"}')
FULL = ("get_weather", '{"city": "São Paulo \\"SP\\"", "days": 2, "unit": "C"}')
NOW = ("now", "{}")
EDIT = ("edit", '{"file": "a <b>\\n", "lines": [{"n": 1.5}], "force": true, "note": null}')
# what a model may write and a grammar allows too
GOOD = [
    Answer("hermes", "Hello!\n", "Hello!\n"),
    Answer("hermes", f'<tool_call>\n{{"name": "get_weather", "arguments": {PARIS[1]}}}\n</tool_call>', calls=(PARIS,)),
    Answer("hermes", f'So:\n\n<tool_call>{{"name": "get_weather", "arguments": {FULL[1]}}}</tool_call>', "So:", (FULL,)),
    Answer(
        "hermes",
        '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>\n<tool_call>\n'
        f'{{"name": "edit", "arguments": {EDIT[1]}}}\n</tool_call>',
        calls=(NOW, EDIT),
    ),
    Answer("hermes", "<think>\nHm,\n<b>.\n</think>\n\nHi <tool> </tool_call", "Hi <tool> </tool_call", (), "Hm,\n<b>.", True),
    Answer(
        "hermes",
        '<think>\nI write <tool_call> here.\n</think>\n\nSo:\n<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>',
        "So:", (NOW,), "I write <tool_call> here.", True,
    ),
    Answer("xml", "Hi.", "Hi."),
    Answer(
        "xml",
        "<tool_call>\n<function=get_weather>\n<parameter=city>\nSão Paulo \"SP\"\n</parameter>\n"
        "<parameter=days>\n2\n</parameter>\n<parameter=unit>\nC\n</parameter>\n</function>\n</tool_call>",
        calls=(FULL,),
    ),
    Answer(
        "xml",
        "I think.\n</think>\n\nLook:\n\n<tool_call>\n<function=edit>\n<parameter=file>\na <b>\n\n</parameter>\n"
        '<parameter=lines>\n[{"n": 1.5}]\n</parameter>\n<parameter=force>\ntrue\n</parameter>\n'
        "<parameter=note>\nnull\n</parameter>\n"
        "</function>\n</tool_call>\n<tool_call>\n<function=now>\n</function>\n</tool_call>",
        "Look:", (EDIT, NOW), "I think.", True,
    ),
    Answer(
        "xml",
        "<tool_call>\n<function=get_weather>\n<parameter=city>\na</parameter> b\n</parameter>\n</function>\n</tool_call>",
        calls=(("get_weather", '{"city": "a</parameter> b"}'),),
    ),
    Answer("keys", "<tool_call>now\n</tool_call>", calls=(NOW,)),
    Answer("keys", "<tool_call>now</tool_call>", calls=(NOW,)),
    Answer(
        "keys",
        "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>São Paulo \"SP\"</arg_value>\n"
        "<arg_key>days</arg_key>\n<arg_value>2</arg_value>\n<arg_key>unit</arg_key>\n<arg_value>C</arg_value>\n</tool_call>",
        calls=(FULL,),
    ),
    Answer(
        "keys",
        "\n<think>Well</think>\nOne moment.\n<tool_call>edit<arg_key>file</arg_key><arg_value>a <b>\n</arg_value>"
        '<arg_key>lines</arg_key><arg_value>[{"n": 1.5}]</arg_value><arg_key>force</arg_key><arg_value>true</arg_value>'
        "<arg_key>note</arg_key><arg_value>null</arg_value></tool_call>\n<tool_call>now\n</tool_call>",
        "One moment.", (EDIT, NOW), "Well", True,
    ),
    Answer("mistral", f'[TOOL_CALLS][{{"name": "get_weather", "arguments": {FULL[1]}, "id": "123456789"}}]', calls=(FULL,)),
    Answer(
        "mistral",
        f'Well.[TOOL_CALLS] [{{"name": "edit", "arguments": {EDIT[1]}}}, {{"name": "now", "arguments": {{}}}}]',
        "Well.", (EDIT, NOW),
    ),
    Answer("named", f"[TOOL_CALLS]edit[ARGS]{EDIT[1]}[TOOL_CALLS]now[ARGS]{{}}", calls=(EDIT, NOW)),
    Answer("bare", f'{{"name": "get_weather", "parameters": {FULL[1]}}}', calls=(FULL,)),
    Answer("bare", '<|python_tag|>{"name": "now", "parameters": {}}; {"name": "now", "parameters": {}}', calls=(NOW, NOW)),
    Answer("bare", '{"name": "Bob", "age": 7}', '{"name": "Bob", "age": 7}'),
    Answer("bare", '{"a": {"name": "now", "parameters": {}}}', '{"a": {"name": "now", "parameters": {}}}'),
    Answer(
        "r1",
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n" + FULL[1]
        + "\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>now\n```json\n{}\n```<｜tool▁call▁end｜>"
        "<｜tool▁calls▁end｜>",
        calls=(FULL, NOW),
    ),
    Answer(
        "v3",
        f"I ask.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>edit<｜tool▁sep｜>{EDIT[1]}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        "I ask.", (EDIT,),
    ),
    Answer("plain", 'Yes.\n<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>', "Yes.", (NOW,)),
    Answer("plain", "x < y\n\n", "x < y\n\n"),
]  # fmt: skip
FLY = '<tool_call>\n{"name": "fly", "arguments": {}}\n</tool_call>'
BROKEN = '<tool_call>{"name": "now", "arguments": [1}</tool_call>'
# what a model may write without a grammar
WILD = [
    Answer("hermes", FLY, FLY),
    Answer("hermes", "a <tool_call> b\n<tool_call>", "a <tool_call> b\n<tool_call>"),
    Answer("hermes", '<tool_call>\n{"name": "get_wea', '<tool_call>\n{"name": "get_wea'),
    Answer("hermes", '<tool_call>\n{"name": "now", "arguments": {"a": "b', calls=(("now", '{"a": "b'),)),
    Answer("hermes", '<tool_call>{"arguments": {"city": "Paris"}, "name": "get_weather"}</tool_call>', calls=(PARIS,)),
    Answer("hermes", '<tool_call>{"type": "function", "function": {"name": "now", "parameters": {}}}</tool_call>', calls=(NOW,)),
    Answer("hermes", '<tool_call>{"name": "get_weather", "arguments": "{\\"city\\": \\"Paris\\"}"}</tool_call>', calls=(PARIS,)),
    Answer("hermes", '<tool_call>{"name": "now", "arguments": {}}\n{"name": "now"}</tool_call> Done.', "Done.", (NOW, NOW)),
    Answer("hermes", f'<tool_call>{{"name": "get_weather", "arguments": {PARIS[1]}</tool_call>', calls=(PARIS,)),
    Answer("hermes", '<tool_call>{"name": "now", "arguments": {}} and more', "and more", (NOW,)),
    Answer("hermes", BROKEN, BROKEN),
    Answer("hermes", "<think>still thinking", "", (), "still thinking", True),
    Answer("hermes", "<thin", "<thin"),
    Answer("hermes", "  <think></think> x", "x", thinks=True),
    Answer("hermes", " no <think>x</think>", " no <think>x</think>"),
    Answer("xml", "<function=now>\n</function>", calls=(NOW,)),
    Answer("xml", "#include <functional>\n<function=fly>\n</function>", "#include <functional>\n<function=fly>\n</function>"),
    Answer("xml", "Hm.\n<tool_call>\n<function=now>\n</function>\n</tool_call>", "", (NOW,), "Hm.", True),
    Answer("xml", "I could <tool_call> it.</think>No.", "No.", (), "I could <tool_call> it.", True),
    Answer(
        "xml",
        "<tool_call><function=edit><parameter=file>x</parameter><parameter=lines>oops</parameter>"
        "<parameter=force>False</parameter><parameter=note>None</parameter><parameter=more>[1]</parameter></function></tool_call>",
        calls=(("edit", '{"file": "x", "lines": "oops", "force": false, "note": null, "more": [1]}'),),
    ),
    Answer("xml", "<tool_call>\n<function=get_weather>\n<parameter=city>\nPar", calls=(("get_weather", '{"city": "Par'),)),
    Answer("xml", "<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n", calls=(PARIS,)),
    Answer("keys", "<tool_call>fly\n</tool_call>", "<tool_call>fly\n</tool_call>"),
    Answer("keys", "<tool_call>get_weather\n<arg_key>days", calls=(("get_weather", "{"),)),
    Answer("mistral", "[TOOL_CALLS] none", "[TOOL_CALLS] none"),
    Answer("named", "[TOOL_CALLS]now[CALL_ID]abc[ARGS]{} [TOOL_CALLS]now{}", calls=(NOW, NOW)),
    Answer("bare", '{"type": "function", "name": "now", "parameters": null}', calls=(NOW,)),
    Answer("bare", '{"name": "now", "parameters": {}}\nThat is all.', "That is all.", (NOW,)),
    Answer("v3", "<｜tool▁call▁begin｜>now<｜tool▁sep｜>{}<｜tool▁call▁end｜>", calls=(NOW,)),
    Answer("r1", "<｜tool▁calls▁begin｜>none", "<｜tool▁calls▁begin｜>none"),
]  # fmt: skip
