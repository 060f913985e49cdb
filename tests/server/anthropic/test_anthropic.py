"""Anthropic's Messages through Anthropic's own client: whole and streamed, pictures, tools, thoughts, counts, errors."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterator
from typing import Any

import anthropic
import pydantic
import pytest
from anthropic.types import Message, RawMessageStreamEvent
from sites import Serve, Site

from diptych import reader
from diptych.server.anthropic.body import MessagesBody
from diptych.server.anthropic.events import Blocks
from diptych.server.parsers import CallArguments, CallStart, Content, Reasoning
from pictures import png

PATH = "/v1/messages"
EVENT: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(RawMessageStreamEvent)
THOUGHT = {"grammar": 'root ::= "<think>the user</think>the"'}
CITY = {"type": "object", "properties": {"city": {"enum": ["Rome", "Oslo"]}}, "required": ["city"]}
TOOL: Any = {"name": "weather", "description": "of a city", "input_schema": {**CITY, "additionalProperties": False}}
# the tiny model likes white space, of which the grammar lets some stand between the parts of a call
TIGHT: Any = {"max_tokens": 200, "extra_body": {"logit_bias": [[space, False] for space in "\n\t "]}}


@pytest.fixture
def claude(tiny_served: Site) -> Iterator[anthropic.Anthropic]:
    with client(tiny_served) as found:
        yield found


def client(site: Site, key: str = "none") -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=site.url, api_key=key, max_retries=0, timeout=60)


def image(data: bytes) -> Any:
    source = {"type": "base64", "media_type": "image/png", "data": base64.b64encode(data).decode()}
    return {"type": "image", "source": source}


def asked(*parts: str | bytes | dict[str, Any]) -> Any:
    """One turn of texts, pictures, and blocks as they are."""
    blocks = [image(p) if isinstance(p, bytes) else {"type": "text", "text": p} if isinstance(p, str) else p for p in parts]
    return [{"role": "user", "content": blocks}]


def say(claude: anthropic.Anthropic, messages: Any, **more: Any) -> Any:
    extra = {"temperature": 0, **more.pop("extra_body", {})}
    return claude.messages.create(model="any", messages=messages, extra_body=extra, **{"max_tokens": 8, **more})


def raw(site: Site, **body: Any) -> Any:
    return site.post(PATH, {"max_tokens": 8, "temperature": 0, "messages": asked("what"), **body})


def events(site: Site, **body: Any) -> list[dict[str, Any]]:
    body = {"max_tokens": 8, "temperature": 0, "messages": asked("what"), "stream": True, **body}
    return site.events(PATH, body)


def test_the_reader_reads_a_picture_and_a_stream_says_the_same(served: Site) -> None:
    messages = asked(reader.examples()[0].read_bytes(), "Read the text.")
    with client(served) as claude:
        whole = say(claude, messages, max_tokens=200)
        assert whole.content[0].text
        assert (whole.stop_reason, whole.stop_sequence, whole.role) == ("end_turn", None, "assistant")
        with claude.messages.stream(model="any", max_tokens=200, messages=messages, extra_body={"temperature": 0}) as stream:
            assert "".join(stream.text_stream) == whole.content[0].text
            final = stream.get_final_message()
    assert [block.type for block in final.content] == ["text"]
    assert final.stop_reason == "end_turn"
    assert final.usage.output_tokens == whole.usage.output_tokens


def test_answers_are_what_the_client_declares_and_tell_where_the_time_went(tiny_served: Site) -> None:
    found = raw(tiny_served, messages=asked(png(3), "what")).json()
    message = Message.model_validate(found)
    assert message.id.startswith("msg_")
    usage = message.usage
    assert usage.input_tokens + (usage.cache_read_input_tokens or 0) > 12
    assert found["usage"]["timings"]["media"][0]["n_tokens"] == 12
    assert found["usage"]["timings"]["predicted_n"] == usage.output_tokens == 8
    message.model_dump(mode="json")  # warns of what does not fit


def test_streams_are_what_the_client_declares_and_begin_with_the_usage_of_the_prompt(tiny_served: Site) -> None:
    found = events(tiny_served, grammar=THOUGHT["grammar"], max_tokens=60)
    for event in found:
        EVENT.validate_python(event)
    kinds = [(event["type"], event.get("delta", {}).get("type")) for event in found]
    assert list(dict.fromkeys(kinds)) == [
        ("message_start", None),
        ("content_block_start", None),
        ("content_block_delta", "thinking_delta"),
        ("content_block_delta", "signature_delta"),
        ("content_block_stop", None),
        ("content_block_delta", "text_delta"),
        ("message_delta", None),
        ("message_stop", None),
    ]
    assert [event["index"] for event in found if event["type"] == "content_block_start"] == [0, 1]
    begun, ended = found[0]["message"]["usage"], found[-2]["usage"]
    prompt = begun["input_tokens"] + begun["cache_read_input_tokens"]
    assert prompt > 0
    assert prompt == ended["input_tokens"] + ended["cache_read_input_tokens"]
    assert "timings" not in begun
    assert ended["timings"]["prompt_n"] == ended["input_tokens"]
    assert ended["timings"]["predicted_n"] == ended["output_tokens"]


def test_thoughts_are_a_block_of_their_own_and_may_be_left_out(claude: anthropic.Anthropic) -> None:
    thoughts, text = say(claude, asked("what"), max_tokens=60, extra_body=THOUGHT).content
    assert (thoughts.type, thoughts.thinking, thoughts.signature) == ("thinking", "the user", "")
    assert (text.type, text.text) == ("text", "the")
    omitted: Any = {"thinking": {"type": "adaptive", "display": "omitted"}, "max_tokens": 60}
    thoughts, text = say(claude, asked("what"), extra_body=THOUGHT, **omitted).content
    assert (thoughts.type, thoughts.thinking, text.text) == ("thinking", "", "the")
    with claude.messages.stream(model="any", messages=asked("what"), extra_body=THOUGHT, max_tokens=60) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_message()
    assert "thinking" in kinds
    assert [block.type for block in final.content] == ["thinking", "text"]
    assert 0 < final.usage.output_tokens_details.thinking_tokens < final.usage.output_tokens


@pytest.mark.parametrize("stream", [False, True])
def test_it_says_why_it_ended(claude: anthropic.Anthropic, stream: bool) -> None:
    def ended(**more: Any) -> Any:
        if not stream:
            return say(claude, asked("what"), **more)
        extra = {"temperature": 0, **more.pop("extra_body", {})}
        with claude.messages.stream(model="any", messages=asked("what"), extra_body=extra, **{"max_tokens": 8, **more}) as found:
            return found.get_final_message()

    assert ended().stop_reason == "max_tokens"
    assert ended(max_tokens=60, extra_body={"grammar": 'root ::= "the"'}).stop_reason == "end_turn"
    stopped = ended(stop_sequences=["zzz", "us"], max_tokens=60, extra_body={"grammar": 'root ::= "the user the user"'})
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", "us")
    assert stopped.content[0].text == "the "
    assert ended(tools=[TOOL], tool_choice={"type": "any"}, **TIGHT).stop_reason == "tool_use"


def test_an_answer_of_no_words_is_one(claude: anthropic.Anthropic, tiny_served: Site) -> None:
    empty = {"grammar": 'root ::= ""'}
    found = say(claude, asked("what"), extra_body=empty)
    assert (found.content, found.stop_reason) == ([], "end_turn")
    streamed = [event["type"] for event in events(tiny_served, **empty, return_progress=True)]
    assert streamed == ["message_start", "message_delta", "message_stop"]


@pytest.mark.parametrize(
    ("choice", "parallel"), [(None, True), ({"type": "auto"}, True), ({"type": "any", "disable_parallel_tool_use": True}, False)]
)
def test_several_calls_in_one_answer_may_be_refused(choice: Any, parallel: bool) -> None:
    assert MessagesBody.model_validate({"messages": asked("a"), "tool_choice": choice}).parallel() == parallel


def test_a_full_context_is_another_reason_than_max_tokens(serve: Serve) -> None:
    with client(serve(n_ctx=256, n_parallel=1)) as claude:
        found = say(claude, asked("what"), max_tokens=4000, extra_body={"ignore_eos": True})
    assert found.stop_reason == "model_context_window_exceeded"


def test_what_the_kv_cache_held_counts_apart(serve: Serve) -> None:
    with client(serve()) as claude:
        first, again = (say(claude, asked("what is that", png(0))).usage for _ in range(2))
    assert (first.cache_read_input_tokens, first.cache_creation_input_tokens) == (0, 0)
    assert again.input_tokens == 1
    assert again.cache_read_input_tokens == first.input_tokens - 1


def test_tokens_are_counted_without_encoding_or_answering(serve: Serve) -> None:
    site = serve()
    with client(site) as claude:
        ask: Any = {"model": "any", "messages": asked("what", png(0)), "system": "the", "tools": [TOOL]}
        counted = claude.messages.count_tokens(**ask)
        assert site.engine.stats().encoder.runs == 0
        used = say(claude, ask["messages"], system="the", tools=[TOOL]).usage
    assert counted.input_tokens == used.input_tokens
    assert site.post(f"{PATH}/count_tokens", {"messages": asked("what")}).json().keys() == {"input_tokens"}


def test_a_tool_is_called_and_answers_with_a_picture(claude: anthropic.Anthropic) -> None:
    more: Any = {"tools": [TOOL], **TIGHT}
    named: Any = {"type": "tool", "name": "weather", "disable_parallel_tool_use": True}
    called = say(claude, asked("what"), tool_choice=named, **more)
    (use,) = called.content
    assert (use.type, use.name) == ("tool_use", "weather")
    assert use.input["city"] in ("Rome", "Oslo")
    result: Any = {"type": "tool_result", "tool_use_id": use.id, "content": [image(png(0)), {"type": "text", "text": "sun"}]}
    talk = [*asked("what"), {"role": "assistant", "content": called.content}, *asked(result, "and")]
    found = say(claude, talk, tools=[TOOL])
    assert found.usage.timings["media"][0]["n_tokens"] == 12
    with claude.messages.stream(
        model="any", messages=asked("what"), tools=[TOOL], tool_choice=named, max_tokens=200,
        extra_body={"temperature": 0, **TIGHT["extra_body"]},
    ) as stream:  # fmt: skip
        parts = [event.partial_json for event in stream if event.type == "input_json"]
        streamed = stream.get_final_message().content[0]
    assert (streamed.type, streamed.input) == ("tool_use", use.input)
    assert len(parts) > 1
    assert json.loads("".join(parts)) == use.input
    assert say(claude, asked("what"), tools=[TOOL], tool_choice={"type": "none"}).stop_reason == "max_tokens"


def test_an_answer_keeps_to_a_schema(claude: anthropic.Anthropic) -> None:
    class Place(pydantic.BaseModel):
        n: int

    found = claude.messages.parse(
        model="any", messages=asked("what"), max_tokens=60, output_format=Place, extra_body={"temperature": 0}
    )
    assert isinstance(found.parsed_output, Place)


def turned(site: Site, **body: Any) -> str:
    """The prompt that messages become."""
    plan = asyncio.run(MessagesBody.model_validate({"messages": asked("what"), **body}).plan(site.serving, "", ""))
    return site.engine.render(plan.request, "[picture]")


def test_what_one_role_says_in_a_row_is_one_turn(tiny_served: Site) -> None:
    messages = [*asked("a", "b"), {"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}, *asked("e", png(0))]
    assert turned(tiny_served, messages=messages, system=[{"type": "text", "text": "s"}, {"type": "text", "text": "t"}]) == (
        "<|im_start|>system\ns\nt<|im_end|>\n<|im_start|>user\na\nb\nc<|im_end|>\n<|im_start|>assistant\nd<|im_end|>\n"
        "<|im_start|>user\ne[picture]<|im_end|>\n<|im_start|>assistant\n"
    )


def test_results_of_tools_stand_where_they_were_said(tiny_served: Site) -> None:
    use = {"type": "tool_use", "id": "1", "name": "f", "input": {"x": "ü"}}
    result: Any = {"type": "tool_result", "tool_use_id": "1", "content": "sun", "is_error": False}
    talk = [*asked("a"), {"role": "assistant", "content": [{"type": "text", "text": "b"}, use]}, *asked("c", result, "d")]
    text = turned(tiny_served, messages=talk)
    at = [text.index(part) for part in ("a<", "b", '"ü"', "c<", "sun", "d<")]
    assert at == sorted(at)
    empty: Any = {"type": "tool_result", "tool_use_id": "1"}
    assert "sun" not in turned(tiny_served, messages=[*talk[:2], *asked(empty)])


def test_thoughts_and_the_last_words_of_the_assistant_are_gone_on_with(tiny_served: Site) -> None:
    thought = {"type": "thinking", "thinking": "hm", "signature": "x"}
    hidden = {"type": "redacted_thinking", "data": "secret"}
    talk = [*asked("a"), {"role": "assistant", "content": [thought, hidden, {"type": "text", "text": "so"}]}]
    (_, answer) = MessagesBody.model_validate({"messages": talk}).turns()
    assert (answer.reasoning, answer.parts) == ("hm", ("so",))
    text = turned(tiny_served, messages=talk)
    assert text.endswith("so")
    assert "secret" not in text


def test_thinking_is_told_to_the_template(tiny_served: Site) -> None:
    def variables(**body: Any) -> Any:
        return MessagesBody.model_validate({"messages": asked("a"), **body}).request(tiny_served.serving, "").template

    assert variables(thinking={"type": "enabled", "budget_tokens": 2000}) == {"enable_thinking": True}
    assert variables(thinking={"type": "disabled"}) == {"enable_thinking": False}
    assert variables(thinking={"type": "adaptive"}, output_config={"effort": "low", "format": None}) == {
        "reasoning_effort": "low"
    }
    assert variables() == variables(thinking=None) == {}


def test_the_stamp_of_a_client_does_not_hide_a_known_prefix(tiny_served: Site) -> None:
    stamps = [
        f"x-anthropic-billing-header: cc_version=2.1; cc_entrypoint=cli; cch={stamp};\nYou are" for stamp in ("a5145", "0b1c2")
    ]
    one, other = (turned(tiny_served, system=[{"type": "text", "text": stamp}]) for stamp in stamps)
    assert one == other
    assert "cch=fffff;" in one
    assert "cch=a5145;" in turned(tiny_served, system="say cch=a5145;")


def test_errors_are_those_of_the_client(serve: Serve) -> None:
    site = serve(api_key=("secret",), max_body_mib=1)
    messages = asked("what")
    with client(site, "wrong") as claude, pytest.raises(anthropic.AuthenticationError) as caught:
        say(claude, messages)
    assert caught.value.body["error"]["type"] == "authentication_error"  # type: ignore[index, call-overload]
    with client(site, "secret") as claude:
        assert say(claude, messages).content
        with pytest.raises(anthropic.RequestTooLargeError) as large:
            say(claude, asked("x" * 2**20))
        assert large.value.body["error"]["type"] == "request_too_large"  # type: ignore[index, call-overload]
        with pytest.raises(anthropic.NotFoundError) as missing:
            claude.messages.batches.retrieve("x")
        assert missing.value.body["error"]["type"] == "not_found_error"  # type: ignore[index, call-overload]
        with pytest.raises(anthropic.APIStatusError, match="text/html"):
            html = {"type": "base64", "media_type": "text/html", "data": "PGI+"}
            say(claude, asked({"type": "image", "source": html}))
    with client(site, "secret") as claude, pytest.raises(anthropic.InternalServerError) as draining:
        site.serving.draining = True
        say(claude, messages)
    assert draining.value.body["error"]["type"] == "overloaded_error"  # type: ignore[index, call-overload]


def test_an_error_in_the_middle_of_a_stream_is_an_event(serve: Serve) -> None:
    site = serve(n_ctx=2048)
    with client(site) as claude:
        stream = say(claude, asked("what"), max_tokens=1500, stream=True, extra_body={"ignore_eos": True})
        assert next(stream).type == "message_start"
        site.engine._loop.close()
        with pytest.raises(anthropic.APIStatusError, match="closed before the answer was complete") as caught:
            list(stream)
    assert caught.value.body["error"]["type"] == "overloaded_error"  # type: ignore[index, call-overload]


def test_fields_that_do_nothing_are_named_once_and_others_never(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    site = serve()
    caplog.set_level("WARNING", "diptych.requests")
    body = {
        "metadata": {"user_id": "x"}, "cache_control": {"type": "ephemeral"}, "service_tier": "auto", "smell": 1,
        "thinking": {"type": "enabled", "budget_tokens": 2000}, "tools": [{"type": "web_search_20250305", "name": "web_search"}],
    }  # fmt: skip
    for _ in range(2):
        assert raw(site, **body).status_code == 200
    told = " ".join(record.getMessage() for record in caplog.records)
    for name in ("smell", "thinking.budget_tokens", "tools of type web_search_20250305"):
        assert told.count(f"'{name}'") == 1, told
    for name in ("metadata", "cache_control", "service_tier"):
        assert name not in told


def test_blocks_follow_each_other_as_they_were_told() -> None:
    deltas = [
        Reasoning("a"), Reasoning("b"), Content("c"), CallStart(0, "id0", "f"), CallArguments(0, '{"x"'), CallArguments(0, ":1}"),
        CallStart(1, "id1", "g"), Content("d"), Reasoning("e"),
    ]  # fmt: skip
    blocks = Blocks()
    found = [event for delta in deltas for event in blocks.take([delta])] + list(blocks.close())
    assert blocks.content == [
        {"type": "thinking", "thinking": "ab", "signature": ""},
        {"type": "text", "text": "c"},
        {"type": "tool_use", "id": "id0", "name": "f", "input": {"x": 1}},
        {"type": "tool_use", "id": "id1", "name": "g", "input": {}},
        {"type": "text", "text": "d"},
        {"type": "thinking", "thinking": "e", "signature": ""},
    ]
    starts = [event["index"] for event in found if event["type"] == "content_block_start"]
    stops = [event["index"] for event in found if event["type"] == "content_block_stop"]
    assert starts == stops == list(range(6))
    for event in found:
        EVENT.validate_python(event)
    assert list(blocks.close()) == []


@pytest.mark.parametrize("text", ['{"x": 1', "[1]", "5", "", "[" * 5000])
def test_arguments_that_were_cut_off_are_none(text: str) -> None:
    blocks = Blocks()
    list(blocks.take([CallStart(0, "id", "f"), CallArguments(0, text)]))
    list(blocks.close())
    assert blocks.content == [{"type": "tool_use", "id": "id", "name": "f", "input": {}}]
