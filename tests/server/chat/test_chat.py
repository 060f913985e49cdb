"""Chat through the real OpenAI client: whole and streamed, pictures, choices, schemas, tools, probabilities, limits."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import openai
import pytest
from sites import Serve, Site

from diptych import reader
from pictures import png

RECEIPT = reader.examples()[0]


def client(site: Site) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{site.url}/v1", api_key="none", max_retries=0, timeout=60)


def url(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


def asked(*parts: str | bytes | dict[str, Any]) -> Any:
    """One turn of texts, pictures and parts as they are."""
    content: list[Any] = []
    for part in parts:
        if isinstance(part, str):
            content.append({"type": "text", "text": part})
        elif isinstance(part, bytes):
            content.append({"type": "image_url", "image_url": {"url": url(part)}})
        else:
            content.append(part)
    return [{"role": "user", "content": content}]


def say(site: Site, messages: Any, **more: Any) -> Any:
    return client(site).chat.completions.create(model="any", messages=messages, **{"max_tokens": 8, "temperature": 0, **more})


def test_the_reader_reads_a_picture_and_a_stream_says_the_same(served: Site) -> None:
    messages = asked(RECEIPT.read_bytes(), "Read the text.")
    whole = say(served, messages, max_tokens=200)
    text = whole.choices[0].message.content
    assert text
    assert whole.choices[0].finish_reason == "stop"
    chunks = list(say(served, messages, max_tokens=200, stream=True, stream_options={"include_usage": True}))
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == text
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage.prompt_tokens == whole.usage.prompt_tokens
    assert [c.usage for c in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert len({c.id for c in chunks}) == 1


def test_timings_and_usage_say_where_rows_came_from(serve: Serve) -> None:
    site = serve()
    first = say(site, asked(png(0), "what"))
    again = say(site, asked("the", png(0), "what"))
    assert [m["origin"] for r in (first, again) for m in r.timings["media"]] == ["encoder", "cache"]
    assert first.timings["encode_ms"] > 0 == again.timings["encode_ms"]
    assert again.timings["encode_cached"]
    assert first.timings["media"][0]["size"] == [112, 84]
    assert first.usage.prompt_tokens_details.image_tokens == 12
    third = say(site, asked("the", png(0), "what"))
    assert third.usage.prompt_tokens_details.cached_tokens == third.usage.prompt_tokens - 1
    assert third.timings["prompt_n"] == 1


def test_several_choices_share_one_prompt_and_differ_by_seed(serve: Serve) -> None:
    site = serve(n_parallel=4)
    hot = {"temperature": 3.0, "extra_body": {"top_k": 0, "min_p": 0, "ignore_eos": True}, "top_p": 1, "seed": 5}
    found = say(site, asked(png(0), "what"), n=3, **hot)
    texts = [choice.message.content for choice in found.choices]
    assert len(set(texts)) == 3
    assert found.usage.completion_tokens == 3 * 8
    stats = site.serving.engine.stats()
    assert stats.media_rows == 12  # decoded once, and copied
    assert say(site, asked(png(0), "what"), n=3, **hot).choices[1].message.content == texts[1]
    with pytest.raises(openai.BadRequestError, match="there are 4 slots"):
        say(site, asked("what"), n=5)


def test_a_schema_is_kept_to_and_contradictions_are_refused(tiny_served: Site) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer", "maximum": 99, "minimum": 0}}, "required": ["a"]}
    for form in (
        {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
        {"type": "json_object", "schema": schema},
    ):
        found = say(tiny_served, asked("what"), response_format=form, max_tokens=60)
        assert isinstance(json.loads(found.choices[0].message.content)["a"], int)
    with pytest.raises(openai.BadRequestError, match="give one"):
        say(tiny_served, asked("what"), response_format={"type": "json_object"}, extra_body={"grammar": 'root ::= "a"'})
    with pytest.raises(openai.BadRequestError, match=r"json_schema\.schema"):
        say(tiny_served, asked("what"), response_format={"type": "json_schema", "json_schema": {"name": "x"}})


def test_a_required_tool_is_called_with_arguments_that_fit(tiny_served: Site) -> None:
    tool = {
        "type": "function",
        "function": {
            "name": "weather",
            "parameters": {
                "type": "object",
                "properties": {"city": {"enum": ["Rome", "Oslo"]}},
                "required": ["city"],
                "additionalProperties": False,
            },
        },
    }
    # the tiny model likes white space, of which the grammar lets some stand between the parts of a call
    tight: Any = {"max_tokens": 200, "extra_body": {"logit_bias": [[space, False] for space in "\n\t "]}}
    found = say(tiny_served, asked("what"), tools=[tool], tool_choice="required", **tight)
    choice = found.choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.tool_calls[0].function.name == "weather"
    assert json.loads(choice.message.tool_calls[0].function.arguments)["city"] in ("Rome", "Oslo")
    chunks = list(say(tiny_served, asked("what"), tools=[tool], tool_choice="required", **tight, stream=True))
    parts = [part for c in chunks for part in c.choices[0].delta.tool_calls or ()]
    assert "".join(part.function.arguments or "" for part in parts) == choice.message.tool_calls[0].function.arguments
    assert chunks[-1].choices[0].finish_reason == "tool_calls"
    with pytest.raises(openai.BadRequestError, match="nothing"):
        say(tiny_served, asked("what"), tools=[tool], tool_choice={"type": "function", "function": {"name": "nothing"}})


def test_a_picture_in_the_result_of_a_tool_is_seen(tiny_served: Site) -> None:
    messages = [
        {"role": "user", "content": "look"},
        {"role": "assistant", "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
        {"role": "tool", "tool_call_id": "1", "content": asked(png(0), "there")[0]["content"]},
    ]
    found = say(tiny_served, messages)
    assert found.usage.prompt_tokens_details.image_tokens == 12


def test_probabilities_are_told_and_are_of_the_chosen_tokens(tiny_served: Site) -> None:
    found = say(tiny_served, asked("what"), logprobs=True, top_logprobs=3)
    content = found.choices[0].logprobs.content
    assert len(content) == found.usage.completion_tokens == 8
    for one in content:
        assert len(one.top_logprobs) == 3
        assert one.logprob == one.top_logprobs[0].logprob <= 0  # greedy
        assert bytes(one.bytes).decode(errors="replace") == one.token
    chunks = list(say(tiny_served, asked("what"), logprobs=True, top_logprobs=3, stream=True))
    streamed = [one for c in chunks if c.choices[0].logprobs for one in c.choices[0].logprobs.content]
    assert [one.token for one in streamed] == [one.token for one in content]
    with pytest.raises(openai.BadRequestError, match="needs logprobs"):
        say(tiny_served, asked("what"), top_logprobs=3)


def test_pictures_of_earlier_turns_are_left_out_where_that_is_asked_for(tiny_served: Site) -> None:
    turns = [*asked(png(0), "a"), {"role": "assistant", "content": "b"}, *asked(png(1, 56, 56), "c")]
    for history, n in (("all", 16), ("last", 4)):
        found = say(tiny_served, turns, extra_body={"vision_history": history})
        assert found.usage.prompt_tokens_details.image_tokens == n
    with pytest.raises(openai.BadRequestError, match="vision_history"):
        say(tiny_served, turns, extra_body={"vision_history": "first"})


def test_limits_of_one_request_change_what_the_model_sees(tiny_served: Site) -> None:
    large = say(tiny_served, asked(png(0, 280, 280), "a"))
    small = say(tiny_served, asked(png(0, 280, 280), "a"), extra_body={"media": {"max_tokens": 16}})
    assert (large.timings["media"][0]["n_tokens"], small.timings["media"][0]["n_tokens"]) == (100, 16)


def test_an_id_alone_is_enough_the_second_time_and_not_with_another_key(serve: Serve) -> None:
    site = serve(api_key=("one", "two"))

    def with_id(key: str, data: bytes | None) -> Any:
        part = {"type": "image_url", "image_url": {"id": "a", **({"url": url(data)} if data else {})}}
        talk = openai.OpenAI(base_url=f"{site.url}/v1", api_key=key, max_retries=0)
        messages: Any = asked(part, "what")
        return talk.chat.completions.create(model="any", messages=messages, max_tokens=4)

    assert with_id("one", png(0)).timings["media"][0]["origin"] == "encoder"
    assert with_id("one", None).choices[0].message.content is not None
    with pytest.raises(openai.NotFoundError, match="send the item again"):
        with_id("two", None)
    with pytest.raises(openai.ConflictError, match="other content"):
        with_id("one", png(1))


def test_the_last_message_of_the_assistant_is_gone_on_with(tiny_served: Site) -> None:
    begun = [*asked("what"), {"role": "assistant", "content": "the user"}]
    found = say(tiny_served, begun)
    from_scratch = say(tiny_served, asked("what"))
    assert found.usage.prompt_tokens > from_scratch.usage.prompt_tokens
    with pytest.raises(openai.BadRequestError, match="both the assistant's"):
        say(tiny_served, [*begun, begun[-1]])


@pytest.mark.parametrize(
    ("messages", "error", "words"),
    [
        ([], openai.BadRequestError, "messages"),
        ([{"role": "user"}], openai.BadRequestError, r"messages\[0\] has no content"),
        ([{"role": "user", "content": 3}], openai.BadRequestError, "content is int"),
        (asked({"type": "smell"}), openai.BadRequestError, "unsupported content"),
        (asked({"type": "image_url", "image_url": {"url": "malformed"}}), openai.BadRequestError, "not base64"),
        (asked({"type": "image_url", "image_url": {"url": "data:text/html;base64,PGI+"}}), openai.APIStatusError, "text/html"),
        (asked(b"no picture"), openai.BadRequestError, "picture"),
        (asked({"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}), openai.BadRequestError, "none may be read"),
        (asked({"type": "image_url", "image_url": {"url": "http://127.0.0.1/a.png"}}), openai.APIStatusError, "private"),
        (asked("x" * 9000), openai.BadRequestError, "n_ctx"),
    ],
)
def test_what_cannot_be_served_has_a_status_and_words(
    tiny_served: Site, messages: Any, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        say(tiny_served, messages)
    assert say(tiny_served, asked("what")).choices


def test_media_below_the_media_path_are_read_and_nothing_else(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(png(0))
    (tmp_path / "b.png").write_bytes(png(0))
    site = serve(media_path=tmp_path / "in")
    part = {"type": "image_url", "image_url": {"url": "file://a.png"}}
    assert say(site, asked(part, "what")).timings["media"][0]["n_tokens"] == 12
    for outside in ("file://../b.png", f"file://{tmp_path}/b.png", "file://missing.png"):
        with pytest.raises(openai.BadRequestError):
            say(site, asked({"type": "image_url", "image_url": {"url": outside}}, "what"))
