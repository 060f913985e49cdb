"""Anthropic's Messages, asked for what cannot be: each body has one clear answer in Anthropic's form."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from sites import Site

PATH = "/v1/messages"
TOOL: Any = {"name": "weather", "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}}}


def said(block: Any) -> Any:
    """One turn of a text, or of a block as it is."""
    return [{"role": "user", "content": [{"type": "text", "text": block} if isinstance(block, str) else block]}]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": said("x") * 10_001}, "at most 10000 items"),
        ({"messages": [3]}, r"messages\.0"),
        ({"messages": [{"role": "user"}]}, r"messages\[0\]\.content is NoneType"),
        ({"messages": [{"role": "user", "content": 3}]}, r"messages\[0\]\.content is int"),
        ({"messages": [{"role": "tool", "content": "x"}]}, r"messages\[0\] has role 'tool'"),
        ({"messages": [{"role": ["user"], "content": "x"}]}, r"messages\[0\] has role"),
        ({"messages": said(None)}, r"messages\[0\]\.content\[0\] is NoneType"),
        ({"messages": said({})}, r"content\[0\] is of type None"),
        ({"messages": said({"type": {"a": 1}})}, r"content\[0\] is of type"),
        ({"messages": said({"type": "text"})}, r"content\[0\]\.text is None"),
        ({"messages": said({"type": "document", "source": {}})}, "'document', which has no place here"),
        ({"messages": said({"type": "tool_use", "id": "1", "name": "f"})}, "'tool_use', which has no place here"),
        ({"messages": said({"type": "thinking", "thinking": "x"})}, "'thinking', which has no place here"),
        ({"messages": said({"type": "image"})}, r"content\[0\]\.source must be"),
        ({"messages": said({"type": "image", "source": {"type": "file", "file_id": "x"}})}, r"source must be"),
        ({"messages": said({"type": "image", "source": {"type": "base64", "data": "x"}})}, "media_type is None"),
        ({"messages": said({"type": "image", "source": {"type": "url", "url": 5}})}, "url is 5"),
        ({"messages": said({"type": "image", "source": {"type": "url", "url": "nothing"}})}, "not base64"),
        ({"messages": said({"type": "image", "source": {"type": "url", "url": "file:///etc/passwd"}})}, "none may be read"),
        ({"messages": said({"type": "image", "source": {"type": "base64", "media_type": "image/x", "data": "bm8="}})}, "picture"),
        ({"messages": said({"type": "tool_result"})}, "tool_use_id is None"),
        ({"messages": said({"type": "tool_result", "tool_use_id": "1", "content": 5})}, "content is int"),
        ({"messages": [{"role": "assistant", "content": [{"type": "tool_use", "id": "1"}]}]}, "name is None"),
        ({"messages": [{"role": "assistant", "content": [{"type": "tool_use", "id": "1", "name": "f"}]}]}, "ends with a call"),
        ({"messages": said("\ud800")}, "half a character"),
        ({"messages": said("x " * 9000)}, "n_ctx"),
        ({"system": 5}, "system"),
        ({"system": [5]}, r"system\[0\] is int"),
        ({"system": [{"type": "image"}]}, r"system\[0\] is of type 'image'"),
        ({"max_tokens": "many"}, "max_tokens"),
        ({"stop_sequences": 5}, "stop_sequences"),
        ({"stop_sequences": ["x"] * 100}, "stop_sequences"),
        ({"tools": {}}, "tools"),
        ({"tools": [5]}, r"tools\.0"),
        ({"tools": [{"name": 5}]}, "name 5"),
        ({"tools": [{"name": "f", "input_schema": 5}]}, "parameters of the tool f"),
        ({"tools": [TOOL], "tool_choice": "any"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": ["any"]}}, "tool_choice is of type"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "other"}}, "names the function 'other'"),
        ({"tool_choice": {"type": "any"}}, "there are no tools"),
        ({"thinking": "yes"}, "thinking"),
        ({"thinking": {"type": "enabled", "budget_tokens": "x"}}, "budget_tokens"),
        ({"output_config": {"format": {"type": "json_schema"}}}, "schema"),
        ({"output_config": {"format": {"type": "json_schema", "schema": {"type": "string", "pattern": "(" * 9000}}}}, "pattern"),
        ({"n": 2}, "n is 2"),
    ],
)  # fmt: skip
def test_what_cannot_be_understood_is_an_invalid_request(tiny_served: Site, body: dict[str, Any], words: str) -> None:
    for path in (PATH, f"{PATH}/count_tokens"):
        if path != PATH and words in ("n_ctx", "pattern"):
            continue  # a prompt to be counted may be of any length, and its answer of any form
        response = tiny_served.http.post(path, content=json.dumps({"max_tokens": 4, "messages": said("what"), **body}))
        assert response.status_code == 400, response.text
        found = response.json()
        assert (found["type"], found["error"]["type"]) == ("error", "invalid_request_error")
        assert re.search(words, found["error"]["message"]), found
        assert len(found["error"]["message"]) < 500


def test_bodies_that_are_nested_or_no_json_are_answered_in_anthropics_form(tiny_served: Site) -> None:
    deep, any_tool = '{"a":' * 5000 + "1" + "}" * 5000, '"tool_choice": {"type": "any"}'
    use = '{"type": "tool_use", "id": "1", "name": "f", "input": DEEP}'
    for content in (
        '{"messages": [{"role": "assistant", "content": [USE]}, {"role": "user", "content": "x"}]}'.replace("USE", use),
        '{"messages": [{"role": "user", "content": DEEP}]}',
        '{"messages": [{"role": "user", "content": "x"}], "tools": [DEEP], ANY}'.replace("ANY", any_tool),
        "[1, 2",
        "5",
        '"\\ud800"',
    ):
        response = tiny_served.http.post(PATH, content=content.replace("DEEP", deep))
        assert (response.status_code, response.json()["type"]) == (400, "error"), response.text
        assert response.json()["error"]["type"] == "invalid_request_error"
