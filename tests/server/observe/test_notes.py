"""The log: a line a request, readable or as JSON, and nobody's words in it."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from typing import Any

import pytest
from processes import Process, started
from sending import picture, url
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException

from diptych.errors import ContextOverflow, EngineError, MediaError, TimedOut
from diptych.server.http.exchange import Exchange
from diptych.server.observe.notes import JsonLines, Lines, Notes, reason
from diptych.types import MediaUse, Output, Timings, Usage

SECRET = "sesame"
TIMINGS = Timings(1, 20, 300, 60, 40, 500, 390, 8.0)
OUTPUT = Output(
    "", finish_reason="stop", usage=Usage(70, 50, 5, 9), timings=TIMINGS,
    media=(MediaUse("image", (300, 200), (280, 196), 50, "encoder"),),
)  # fmt: skip


def exchange(**fields: Any) -> Exchange:
    out = Exchange("POST", "/v1/chat/completions", Headers(), "/v1/chat/completions", "abc")
    for name, value in {"sent": 200, "whole": True, "seconds": 0.9, **fields}.items():
        setattr(out, name, value)
    return out


def lines(caplog: pytest.LogCaptureFixture, form: logging.Formatter) -> list[str]:
    return [form.format(record) for record in caplog.records if record.name == "diptych.requests"]


def test_a_line_says_where_the_time_went(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    Notes().over(exchange(answers=[(OUTPUT,)]))
    (line,) = lines(caplog, Lines())
    assert re.sub(r"^\S+ ", "", line) == (
        "INFO POST /v1/chat/completions abc: 200 | stop | queue 1 ms | image 300×200→280×196 50 tokens from encoder | "
        "encode 300 ms | media prefill 40 ms | preprocess 20 ms | prompt 70 tokens (9 cached), text prefill 20 ms | "
        "first token 390 ms | decode 5 tokens 500 ms (8.0/s) | total 900 ms"
    )
    found = json.loads(lines(caplog, JsonLines())[0])
    assert found["id"] == "abc"
    assert (found["status"], found["level"], found["logger"]) == (200, "info", "diptych.requests")
    assert found["usage"]["prompt_tokens"] == 70
    assert found["timings"]["encode_ms"] == 300
    assert found["finish_reasons"] == ["stop"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d", found["time"])


def test_choices_and_prompts_of_one_request_share_its_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    Notes().over(exchange(answers=[(OUTPUT, OUTPUT), (OUTPUT,)]))
    (line,) = lines(caplog, Lines())
    assert "stop, stop | " in line
    assert "decode 10 tokens" in line
    answers = json.loads(lines(caplog, JsonLines())[0])["answers"]
    assert [answer["usage"]["completion_tokens"] for answer in answers] == [10, 5]


@pytest.mark.parametrize(
    ("fields", "said", "level"),
    [
        ({"error": MediaError(f"cannot fetch {SECRET}")}, "400 | MediaError", "INFO"),
        ({"error": ContextOverflow(SECRET, 9000, 4096)}, "400 | ContextOverflow: 9000 tokens for a context of 4096", "INFO"),
        ({"error": TimedOut("no token came within 3 s")}, "504 | no token came within 3 s", "WARNING"),
        ({"error": HTTPException(401, "Invalid API Key")}, "401 | Invalid API Key", "INFO"),
        ({"error": EngineError("the media\nhalf failed")}, "500 | the media half failed", "WARNING"),
        ({"error": KeyError(SECRET)}, "500 | a fault in diptych: KeyError", "WARNING"),
        ({"whole": False, "answers": [(OUTPUT,)]}, "499 | the client hung up | stop | queue 1 ms", "INFO"),
    ],
)
def test_what_was_not_answered_is_told_too(
    fields: dict[str, Any], said: str, level: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    Notes().over(exchange(**fields))
    (line,) = lines(caplog, Lines())
    assert f"abc: {said} | " in line
    assert f" {level} " in line
    assert SECRET not in line
    assert json.loads(lines(caplog, JsonLines())[0])["status"] == int(said[:3])


def test_who_only_looks_is_told_of_where_somebody_wants_to_know(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    for status in (200, 304, 503):
        Notes().over(exchange(method="GET", path="/health", sent=status))
    assert not lines(caplog, Lines())
    Notes().over(exchange(method="GET", path="/nothing", error=HTTPException(404)))
    assert len(lines(caplog, Lines())) == 1


def test_a_path_cannot_begin_a_line_of_its_own_nor_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    Notes().over(exchange(path="/a\nINFO POST /b\x1b[31m" + "x" * 500, error=HTTPException(404)))
    (line,) = lines(caplog, Lines())
    assert "/a?INFO?POST?/b?[31m" in line
    assert len(line) < 250
    assert "\n" not in line


def test_fields_that_are_not_known_are_named_once_and_not_for_ever(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    notes = Notes()
    for _ in range(3):
        notes.unknown("/completion", ["bla", "x" * 500])
    notes.unknown("/tokenize", ["bla"])
    assert [len(line) < 160 for line in lines(caplog, Lines())] == [True] * 3
    assert json.loads(lines(caplog, JsonLines())[0])["field"] == "bla"
    notes.unknown("/completion", [f"field {i}" for i in range(5000)])
    assert len(lines(caplog, Lines())) == 1000


def test_other_lines_are_objects_too() -> None:
    record = logging.LogRecord("diptych.engine", logging.WARNING, "", 0, "a %s", ("b",), None)
    assert json.loads(JsonLines().format(record))["message"] == "a b"
    try:
        raise ValueError("x")
    except ValueError as error:
        record.exc_info = (ValueError, error, error.__traceback__)
    assert "Traceback" in json.loads(JsonLines().format(record))["message"]


def test_every_kind_of_error_has_a_reason() -> None:
    assert reason(HTTPException(503, "no slot is free")) == "no slot is free"


# from here on with a real server, as it is started


@pytest.fixture(scope="module")
def loud() -> Iterator[Process]:
    """A server that logs all it has to say, as JSON, and was asked all kinds of things."""
    with started("--log-json", "--log-level", "debug", "--api-key", f"key-{SECRET}") as process:
        client = process.ready()
        client.headers["Authorization"] = f"Bearer key-{SECRET}"
        words = {"role": "user", "content": f"{SECRET} is the word"}
        for body in (
            {"messages": [words], "max_tokens": 2, "stop": [SECRET], "user": SECRET, "unknown": SECRET},
            {"messages": [words], "max_tokens": 2, "stream": True},
            {"messages": [words], "tools": [{"type": "function", "function": {"name": SECRET}}], "max_tokens": 2},
            {"messages": f"{SECRET}"},
            {"messages": [{"role": SECRET, "content": {SECRET: SECRET}}]},
            {"messages": [words], "temperature": SECRET},
            {"messages": [words], "logit_bias": {SECRET: SECRET}},
            {"messages": [words], "grammar": f"root ::= {SECRET}"},
            {"messages": [words], "response_format": {"type": "json_schema", "json_schema": {"schema": {"type": SECRET}}}},
            {"messages": [words], "chat_template_kwargs": {SECRET: SECRET}, "max_tokens": 1},
            {"messages": [{"role": "user", "content": f"{SECRET} " * 9000}]},
            *(
                {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": link}}]}]}
                for link in (
                    f"http://10.0.0.1/{SECRET}?token={SECRET}", f"http://127.0.0.1:1/?token={SECRET}", f"file://{SECRET}",
                    f"data:image/png;base64,{SECRET}", f"https://{SECRET}.invalid/", SECRET,
                )
            ),
            {"messages": [{"role": "user", "content": [{"type": SECRET}, {"type": "image_url", "image_url": {"id": SECRET}}]}]},
            {"messages": [{"role": "user", "content": [url(0), {"type": "text", "text": SECRET}]}], "max_tokens": 2},
        ):  # fmt: skip
            client.post("/v1/chat/completions", json=body)
        client.post("/v1/chat/completions", content=f'{{"messages": [{SECRET}')
        client.post("/completion", json={"prompt": {"prompt_string": SECRET, "multimodal_data": [SECRET, picture()]}})
        client.post("/tokenize", json={"content": SECRET})
        client.get(f"/v1/models?key={SECRET}")
        client.get("/v1/models", headers={"Authorization": f"Bearer {SECRET}", "X-Api-Key": SECRET})
        client.close()
        process.signal(15)
        assert process.ends() == 0
        yield process


def test_nobodys_words_stand_in_the_log(loud: Process) -> None:
    assert len(loud.lines) > 25
    assert SECRET not in loud.text
    assert picture()[:40] not in loud.text


def test_all_that_is_said_is_json(loud: Process) -> None:
    found = [json.loads(line) for line in loud.lines]
    assert {"time", "level", "logger"} <= set.intersection(*map(set, found))
    requests = [line for line in found if "status" in line]
    assert len({line["id"] for line in requests}) == len(requests) == 24
    statuses = [line["status"] for line in requests]
    assert {200, 400, 401} <= set(statuses)
    assert max(statuses) < 500
    assert [line["field"] for line in found if "field" in line] == ["unknown"]
