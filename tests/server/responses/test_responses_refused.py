"""OpenAI's Responses, asked for what cannot be: each body has one clear answer."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from sites import Site

PATH = "/v1/responses"
TOOL: Any = {"type": "function", "name": "weather", "parameters": {"type": "object", "properties": {}}}
CALL: Any = {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"}


def said(*parts: Any) -> Any:
    """One item of parts as they are."""
    return [{"role": "user", "content": list(parts)}]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"input": None}, "there is no input"),
        ({"input": []}, "there is no input"),
        ({"input": 5}, "input"),
        ({"input": said("x") * 10_001}, "input"),
        ({"input": {"role": "user"}}, "input"),
        ({"input": [5]}, r"input\[0\] is int"),
        ({"input": [None]}, r"input\[0\] is NoneType"),
        ({"input": [{}]}, r"input\[0\] is of type None"),
        ({"input": [{"type": ["message"]}]}, r"input\[0\] is of type"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "'item_reference'; message, function_call"),
        ({"input": [{"role": "robot", "content": "x"}]}, r"input\[0\] has role 'robot'"),
        ({"input": [{"role": {}, "content": "x"}]}, r"input\[0\] has role"),
        ({"input": [{"role": "user"}]}, r"input\[0\] has no content"),
        ({"input": [{"role": "user", "content": 5}]}, r"input\[0\]\.content is int"),
        ({"input": said(None)}, r"input\[0\]\.content\[0\] is NoneType"),
        ({"input": said({"type": "input_text"})}, r"content\[0\]\.text is None"),
        ({"input": said({"type": "smell"})}, "unsupported content"),
        ({"input": said({"type": "input_image"})}, "neither url nor data nor id"),
        ({"input": said({"type": "input_image", "image_url": 5})}, "int for its url"),
        ({"input": said({"type": "input_image", "image_url": "nothing"})}, "not base64"),
        ({"input": said({"type": "input_image", "file_id": "x"})}, "names a file by its id"),
        ({"input": said({"type": "input_image", "image_url": "data:image/png;base64,bm8="})}, "picture"),
        ({"input": said({"type": "input_file", "file_data": "x"})}, "is a file"),
        ({"input": said({"type": "input_text", "text": "\ud800"})}, "half a character"),
        ({"input": "x " * 9000}, "n_ctx"),
        ({"input": [{**CALL, "name": None}]}, r"input\[0\]\.name is None"),
        ({"input": [{**CALL, "arguments": {}}]}, r"input\[0\]\.arguments is \{\}"),
        ({"input": [CALL]}, "ends with a call of 'f'"),
        ({"input": [CALL, {"type": "function_call_output", "output": "x"}]}, r"input\[1\]\.call_id is None"),
        ({"input": [CALL, {"type": "function_call_output", "call_id": "1", "output": 5}]}, r"input\[1\]\.output is int"),
        ({"input": [{"type": "reasoning", "content": "x"}]}, r"input\[0\]\.content is str"),
        ({"input": [{"type": "reasoning", "summary": [5]}]}, r"input\[0\]\.summary\[0\] is int"),
        ({"input": [{"type": "reasoning", "summary": [{}]}]}, r"summary\[0\]\.text is None"),
        ({"instructions": 5}, "instructions"),
        ({"instructions": "\ud800"}, "half a character"),
        ({"metadata": {"a": "\ud800"}}, "metadata holds half a character"),
        ({"metadata": {"a": float("inf")}}, "metadata holds"),
        ({"metadata": 5}, "metadata"),
        ({"max_output_tokens": "many"}, "max_output_tokens"),
        ({"previous_response_id": "resp_1"}, "previous_response_id is given, and nothing is kept"),
        ({"conversation": "conv_1"}, "conversation is given, and nothing is kept"),
        ({"prompt": {"id": "x"}}, "prompt is given, and nothing is kept"),
        ({"background": True}, "background is given, and nothing is kept"),
        ({"n": 2}, "n is 2"),
        ({"truncation": "some"}, "truncation"),
        ({"reasoning": "high"}, "reasoning"),
        ({"reasoning": {"effort": 5}}, "reasoning.effort"),
        ({"text": "json"}, "text"),
        ({"text": {"format": "json"}}, "text.format"),
        ({"text": {"format": {"type": "yaml"}}}, "text.format.type"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "has no schema"),
        ({"text": {"format": {"type": "json_object"}}, "grammar": 'root ::= "x"'}, "give one"),
        ({"text": {"format": {"type": "json_object"}}, "tools": [TOOL]}, "leave one out"),
        ({"top_logprobs": -1}, "top_logprobs"),
        ({"include": "x"}, "include"),
        ({"tools": {}}, "tools"),
        ({"tools": [5]}, r"tools\.0"),
        ({"tools": [{"type": "function"}]}, "a tool has the name None"),
        ({"tools": [{**TOOL, "parameters": 5}]}, "parameters of the tool weather"),
        ({"tools": [TOOL, TOOL]}, "two tools"),
        ({"tools": [TOOL], "tool_choice": "some"}, "tool_choice is 'some'"),
        ({"tools": [TOOL], "tool_choice": 5}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "name": "other"}}, "names the function 'other'"),
        ({"tools": [TOOL], "tool_choice": {"type": "allowed_tools"}}, "has no list of tools"),
        ({"tools": [TOOL], "tool_choice": {"type": "allowed_tools", "mode": 5, "tools": [TOOL]}}, "tool_choice is 5"),
        ({"tools": [{"type": "web_search"}], "tool_choice": "required"}, "there are no tools"),
    ],
)  # fmt: skip
def test_what_cannot_be_understood_is_refused_with_words(tiny_served: Site, body: dict[str, Any], words: str) -> None:
    response = tiny_served.http.post(PATH, content=json.dumps({"max_output_tokens": 4, "input": "what", **body}))
    assert response.status_code == 400, response.text
    message = response.json()["error"]["message"]
    assert re.search(words, message), message
    assert len(message) < 500


def test_bodies_that_are_nested_are_refused(tiny_served: Site) -> None:
    deep = '{"a":' * 5000 + "1" + "}" * 5000
    for content in (
        '{"input": [DEEP]}',
        '{"input": [{"role": "user", "content": [DEEP]}]}',
        '{"input": "x", "metadata": DEEP}',
        '{"input": "x", "tools": [{"type": "function", "name": "f", "parameters": DEEP}]}',
        '{"input": "x", "text": {"format": {"type": "json_schema", "name": "x", "schema": DEEP}}}',
    ):
        response = tiny_served.http.post(PATH, content=content.replace("DEEP", deep))
        assert response.status_code == 400, response.text
        assert len(response.json()["error"]["message"]) < 500


def test_many_parts_are_joined_in_no_time(tiny_served: Site) -> None:
    parts = [{"type": "input_text", "text": ""}] * 200_000
    response = tiny_served.post(PATH, {"input": said(*parts)}, timeout=20)
    assert response.status_code == 400
    assert "n_ctx" in response.json()["error"]["message"]
