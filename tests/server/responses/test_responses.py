"""OpenAI's Responses through OpenAI's own client: whole and streamed, items, pictures, tools, thoughts, schemas, ends."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

import openai
import pydantic
import pytest
from openai.lib.streaming.responses._responses import ResponseStreamState
from openai.types.responses import Response, ResponseStreamEvent
from sites import Serve, Site

from diptych import reader
from diptych.server.parsers import CallArguments, CallStart, Content, Reasoning
from diptych.server.responses.body import ResponsesBody
from diptych.server.responses.events import Items
from pictures import png

PATH = "/v1/responses"
EVENT: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(ResponseStreamEvent)
THOUGHT = {"grammar": 'root ::= "<think>the user</think>the"'}
CITY = {"type": "object", "properties": {"city": {"enum": ["Rome", "Oslo"]}}, "required": ["city"], "additionalProperties": False}
TOOL: Any = {"type": "function", "name": "weather", "description": "of a city", "parameters": CITY, "strict": True}
# the tiny model likes white space, of which the grammar lets some stand between the parts of a call
TIGHT: Any = {"max_output_tokens": 200, "extra_body": {"logit_bias": [[space, False] for space in "\n\t "]}}


def picture(data: bytes) -> Any:
    return {"type": "input_image", "detail": "auto", "image_url": "data:image/png;base64," + base64.b64encode(data).decode()}


def asked(*parts: str | bytes | dict[str, Any]) -> Any:
    """One item of texts, pictures, and parts as they are."""
    said = [{"type": "input_text", "text": p} if isinstance(p, str) else p for p in parts]
    content = [picture(p) if isinstance(p, bytes) else p for p in said]
    return [{"role": "user", "content": content}]


def say(site: Site, given: Any = "what", **more: Any) -> Any:
    return site.openai().responses.create(model="any", input=given, **{"max_output_tokens": 8, "temperature": 0, **more})


def raw(site: Site, **body: Any) -> Any:
    response = site.post(PATH, {"input": "what", "max_output_tokens": 8, "temperature": 0, **body})
    assert response.status_code == 200, response.text
    return response.json()


def events(site: Site, **body: Any) -> list[dict[str, Any]]:
    body = {"input": "what", "max_output_tokens": 8, "temperature": 0, "stream": True, **body}
    return site.events(PATH, body)


def test_the_reader_reads_a_picture_and_a_stream_says_the_same(served: Site) -> None:
    given = asked(reader.examples()[0].read_bytes(), "Read the text.")
    whole = say(served, given, max_output_tokens=200)
    assert whole.output_text
    assert (whole.status, whole.incomplete_details, whole.error) == ("completed", None, None)
    assert whole.id.startswith("resp_")
    assert whole.output[0].id.startswith("msg_")
    with served.openai().responses.stream(model="any", input=given, max_output_tokens=200, temperature=0) as stream:
        told = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        final = stream.get_final_response()
    assert told == final.output_text == whole.output_text
    assert final.usage.output_tokens == whole.usage.output_tokens


def test_answers_are_what_the_client_declares_and_tell_where_the_time_went(tiny_served: Site) -> None:
    found = raw(
        tiny_served, input=asked("what", png(3)), instructions="the", tools=[TOOL], tool_choice="none", metadata={"a": "b"},
        reasoning={"effort": "low"}, store=True, user="x",
    )  # fmt: skip
    response = Response.model_validate(found)
    response.model_dump(mode="json")  # warns of what does not fit
    assert found["timings"]["media"][0]["n_tokens"] == 12
    assert found["timings"]["predicted_n"] == found["usage"]["output_tokens"] == 8
    assert found["usage"]["input_tokens"] + 8 == found["usage"]["total_tokens"]
    assert found["usage"]["input_tokens_details"]["image_tokens"] == 12
    assert (response.instructions, response.metadata, response.tool_choice) == ("the", {"a": "b"}, "none")
    assert response.reasoning is not None
    assert (response.reasoning.effort, response.max_output_tokens, response.store) == ("low", 8, False)  # type: ignore[attr-defined]


def test_streams_are_what_the_client_declares_in_its_order(tiny_served: Site) -> None:
    found = events(tiny_served, grammar=THOUGHT["grammar"], max_output_tokens=60)
    for event in found:
        EVENT.validate_python(event)
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    assert list(dict.fromkeys((event["type"], event.get("output_index")) for event in found)) == [
        ("response.created", None),
        ("response.in_progress", None),
        ("response.output_item.added", 0),
        ("response.content_part.added", 0),
        ("response.reasoning_text.delta", 0),
        ("response.reasoning_text.done", 0),
        ("response.content_part.done", 0),
        ("response.output_item.done", 0),
        ("response.output_item.added", 1),
        ("response.content_part.added", 1),
        ("response.output_text.delta", 1),
        ("response.output_text.done", 1),
        ("response.content_part.done", 1),
        ("response.output_item.done", 1),
        ("response.completed", None),
    ]
    last = found[-1]
    assert last["timings"] == last["response"]["timings"]
    assert last["timings"]["predicted_n"] == last["response"]["usage"]["output_tokens"]
    assert [item["status"] for item in last["response"]["output"]] == ["completed", "completed"]
    assert {event["response"]["id"] for event in found if "response" in event} == {last["response"]["id"]}


def test_the_real_client_puts_a_stream_together(tiny_served: Site) -> None:
    state: ResponseStreamState[Any] = ResponseStreamState(input_tools=openai.omit, text_format=openai.omit)
    for event in events(tiny_served, grammar=THOUGHT["grammar"], max_output_tokens=60):
        state.handle_event(EVENT.validate_python(event))
    final = state._completed_response
    assert final is not None
    assert [item.type for item in final.output] == ["reasoning", "message"]
    assert final.output_text == "the"


def test_thoughts_are_an_item_of_their_own(tiny_served: Site) -> None:
    found = say(tiny_served, extra_body=THOUGHT, max_output_tokens=60)
    thoughts, message = found.output
    assert (thoughts.type, thoughts.content[0].text, thoughts.summary) == ("reasoning", "the user", [])
    assert (message.type, found.output_text) == ("message", "the")
    assert 0 < found.usage.output_tokens_details.reasoning_tokens < found.usage.output_tokens


def test_it_says_when_it_was_cut_off(tiny_served: Site) -> None:
    found = say(tiny_served)
    assert (found.status, found.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert found.output[-1].status == "incomplete"
    assert found.completed_at is None
    last = events(tiny_served)[-1]
    assert (last["type"], last["response"]["status"]) == ("response.incomplete", "incomplete")
    assert last["response"]["output"][-1]["content"][0]["text"] == found.output_text


def test_a_tool_is_called_and_answers_with_a_picture(tiny_served: Site) -> None:
    called = say(tiny_served, tools=[TOOL], tool_choice={"type": "function", "name": "weather"}, **TIGHT)
    (call,) = called.output
    assert (call.type, call.name, call.status, called.status) == ("function_call", "weather", "completed", "completed")
    assert json.loads(call.arguments)["city"] in ("Rome", "Oslo")
    result = {"type": "function_call_output", "call_id": call.call_id, "output": asked("sun", png(0))[0]["content"]}
    found = say(tiny_served, [{"role": "user", "content": "what"}, call.model_dump(), result], tools=[TOOL])
    assert found.timings["media"][0]["n_tokens"] == 12
    given: Any = {"temperature": 0, "tools": [TOOL], "tool_choice": "required", **TIGHT}
    with tiny_served.openai().responses.stream(model="any", input="what", **given) as stream:
        told = [event.delta for event in stream if event.type == "response.function_call_arguments.delta"]
        final: Any = stream.get_final_response().output[0]
    assert len(told) > 1
    assert "".join(told) == final.arguments == call.arguments
    assert final.parsed_arguments == json.loads(call.arguments)


def test_only_allowed_tools_are_called(tiny_served: Site) -> None:
    other = {**TOOL, "name": "other"}
    allowed: Any = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "other"}]}
    found = say(tiny_served, tools=[TOOL, other], tool_choice=allowed, **TIGHT)
    assert [item.name for item in found.output] == ["other"]
    assert found.tool_choice.type == "allowed_tools"


def test_an_answer_keeps_to_a_schema(tiny_served: Site) -> None:
    class Place(pydantic.BaseModel):
        n: int

    found = tiny_served.openai().responses.parse(
        model="any", input="what", max_output_tokens=60, temperature=0, text_format=Place
    )
    assert isinstance(found.output_parsed, Place)
    assert found.text is not None
    assert found.text.format is not None
    assert found.text.format.type == "json_schema"
    as_object = say(tiny_served, max_output_tokens=200, text={"format": {"type": "json_object"}, "verbosity": "low"}, **{
        "extra_body": {"grammar": None, "logit_bias": [["\n", False], ["\t", False], [" ", False]]}})  # fmt: skip
    assert as_object.output_text.startswith("{")


def test_probabilities_are_told_with_the_text(tiny_served: Site) -> None:
    asks: Any = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
    found = say(tiny_served, **asks).output[0].content[0]
    assert len(found.logprobs) == 8
    assert all(len(one.top_logprobs) == 2 and one.logprob <= 0 for one in found.logprobs)
    streamed = events(tiny_served, **asks)
    told = [one for event in streamed if event["type"].endswith("text.delta") for one in event["logprobs"]]
    assert [one["token"] for one in told] == [one.token for one in found.logprobs]
    assert streamed[-1]["response"]["output"][0]["content"][0]["logprobs"] == told


def test_timings_come_with_every_piece_where_they_are_asked_for(tiny_served: Site) -> None:
    found = [e for e in events(tiny_served, timings_per_token=True) if e["type"] == "response.output_text.delta"]
    counts = [event["timings"]["predicted_n"] for event in found]
    assert counts == sorted(counts)
    assert counts[-1] <= 8


def test_the_progress_of_the_prompt_is_told_where_it_is_asked_for(serve: Serve) -> None:
    found = events(serve(n_batch=16), input="what is that " * 20, return_progress=True)
    for event in found:
        EVENT.validate_python(event)
    told = [event["prompt_progress"] for event in found if "prompt_progress" in event]
    assert len(told) > 1
    assert {event["type"] for event in found if "prompt_progress" in event} == {"response.in_progress"}
    assert [one["processed"] for one in told] == sorted(one["processed"] for one in told)
    assert told[-1]["processed"] == told[-1]["total"] == found[-1]["response"]["usage"]["input_tokens"]


def test_an_answer_of_no_words_is_one(tiny_served: Site) -> None:
    empty = {"grammar": 'root ::= ""'}
    assert (say(tiny_served, extra_body=empty).output, say(tiny_served, extra_body=empty).status) == ([], "completed")
    found = events(tiny_served, **empty)
    assert [event["type"] for event in found] == ["response.created", "response.in_progress", "response.completed"]


def test_tokens_are_counted_without_encoding_or_answering(serve: Serve) -> None:
    site = serve()
    asks: Any = {"input": asked("what", png(0)), "instructions": "the", "tools": [TOOL]}
    counted = site.openai().responses.input_tokens.count(model="any", **asks)
    assert counted.object == "response.input_tokens"
    assert site.engine.stats().encoder.runs == 0
    assert say(site, asks["input"], instructions="the", tools=[TOOL]).usage.input_tokens == counted.input_tokens
    for path in ("/responses/input_tokens", "/v1/responses/input_tokens"):
        assert site.post(path, asks).json() == {"input_tokens": counted.input_tokens, "object": "response.input_tokens"}
    assert site.post("/responses", {"input": "what", "max_output_tokens": 4}).json()["object"] == "response"


def test_what_the_kv_cache_held_is_told(serve: Serve) -> None:
    site = serve()
    first, again = (say(site, "what is that").usage for _ in range(2))
    assert first.input_tokens_details.cached_tokens == 0
    assert again.input_tokens_details.cached_tokens == again.input_tokens - 1


def turned(site: Site, given: Any, **body: Any) -> str:
    """The prompt that items become."""
    plan = asyncio.run(ResponsesBody.model_validate({"input": given, **body}).plan(site.serving, "", ""))
    return site.engine.render(plan.request, "[picture]")


def test_items_of_one_answer_are_one_turn() -> None:
    given = [
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "a"}], "status": None},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "b"}]},
        {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": [
            {"type": "output_text", "text": "c", "annotations": []}, {"type": "refusal", "refusal": "d"}]},
        {"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": "f", "arguments": '{"x": 1}'},
        {"type": "function_call", "call_id": "call_2", "name": "g", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "call_1", "output": "e"},
        {"type": "function_call_output", "call_id": "call_2", "output": [{"type": "input_text", "text": "f"}]},
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "g"}], "content": None, "encrypted_content": "x"},
        {"type": "reasoning", "summary": [], "encrypted_content": "x"},
        {"role": "assistant", "content": "h"},
    ]  # fmt: skip
    found = ResponsesBody.model_validate({"input": given, "instructions": "s"}).turns()
    assert [(m.role, m.parts, m.reasoning, m.tool_call_id) for m in found] == [
        ("system", ("s",), None, None),
        ("user", ("a",), None, None),
        ("assistant", ("c\nd",), "b", None),
        ("tool", ("e",), None, "call_1"),
        ("tool", ("f",), None, "call_2"),
        ("assistant", ("h",), "g", None),
    ]
    assert [(c.name, c.arguments, c.id) for c in found[2].tool_calls] == [("f", '{"x": 1}', "call_1"), ("g", "{}", "call_2")]


def test_what_developers_say_behind_the_instructions_belongs_to_them(tiny_served: Site) -> None:
    given = [{"role": "developer", "content": "d"}, *asked("u", png(0))]
    assert turned(tiny_served, given, instructions="s") == (
        "<|im_start|>system\ns\nd<|im_end|>\n<|im_start|>user\nu[picture]<|im_end|>\n<|im_start|>assistant\n"
    )
    assert turned(tiny_served, "u") == turned(tiny_served, [{"role": "user", "content": "u"}])


def test_how_much_to_think_is_told_to_the_template(tiny_served: Site) -> None:
    def variables(**body: Any) -> Any:
        return ResponsesBody.model_validate({"input": "a", **body}).request(tiny_served.serving, "").template

    assert variables(reasoning={"effort": "high", "summary": "auto"}) == {"reasoning_effort": "high"}
    assert variables(reasoning={"effort": "none"}) == {"reasoning_effort": "none", "enable_thinking": False}
    assert variables(reasoning={"effort": None}) == variables(reasoning=None) == {}


def test_items_follow_each_other_as_they_were_told() -> None:
    deltas = [
        Content("a"), Content("b"), CallStart(0, "call_0", "f"), CallArguments(0, "{"), CallArguments(0, "}"),
        CallStart(1, "call_1", "g"), Reasoning("c"), Content("d"),
    ]  # fmt: skip
    items = Items()
    found = [event for delta in deltas for event in items.take([delta])] + list(items.close("incomplete"))
    assert [(item["type"], item["status"]) for item in items.output] == [
        ("message", "completed"), ("function_call", "completed"), ("function_call", "completed"), ("reasoning", "completed"),
        ("message", "incomplete"),
    ]  # fmt: skip
    assert [item.get("arguments") for item in items.output] == [None, "{}", "", None, None]
    assert len({item["id"] for item in items.output}) == 5
    for i, event in enumerate(found):
        EVENT.validate_python({**event, "sequence_number": i})
    assert list(items.close()) == []


def test_probabilities_are_told_once() -> None:
    items = Items()
    one = {"token": "a", "logprob": -1.0, "top_logprobs": []}
    found = [*items.take([Content("a"), CallStart(0, "call_0", "f"), Content("b")], [one]), *items.close()]
    assert [event["logprobs"] for event in found if event["type"] == "response.output_text.delta"] == [[one], []]
    assert [event["logprobs"] for event in found if event["type"] == "response.output_text.done"] == [[one], []]


def test_an_error_in_the_middle_of_a_stream_fails_the_response(serve: Serve) -> None:
    site = serve(n_ctx=2048)
    stream = say(site, max_output_tokens=1500, stream=True, extra_body={"ignore_eos": True})
    assert next(stream).type == "response.created"
    site.engine._loop.close()
    *_, error, failed = list(stream)
    assert error.type == "error"
    assert "closed before the answer was complete" in error.message
    assert (failed.type, failed.response.status, failed.response.error.code) == ("response.failed", "failed", "server_error")
    assert failed.sequence_number == error.sequence_number + 1


def test_fields_that_do_nothing_are_named_once_and_others_never(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    site = serve()
    caplog.set_level("WARNING", "diptych.requests")
    body = {
        "store": True, "metadata": {}, "prompt_cache_key": "x", "stream_options": {"include_obfuscation": False}, "smell": 1,
        "include": ["reasoning.encrypted_content"], "tools": [{"type": "web_search"}], "truncation": "auto",
    }  # fmt: skip
    for _ in range(2):
        raw(site, **body)
    told = " ".join(record.getMessage() for record in caplog.records)
    for name in ("smell", "include: reasoning.encrypted_content", "tools of type web_search", "truncation: auto"):
        assert told.count(f"'{name}'") == 1, told
    for name in ("store", "metadata", "prompt_cache_key", "stream_options"):
        assert name not in told
