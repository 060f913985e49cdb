"""What clients must not do to a completion, and what becomes of those that do."""

from __future__ import annotations

import json
import math
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from completing import complete, refused
from sites import Serve, Site

HOSTILE = [
    b"", b"null", b"[]", b"{", b"\xff\xfe", b"[" * 100_000 + b"]" * 100_000,
    b'{"prompt":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    b'{"prompt":"\xff"}', b'{"prompt":"\xed\xa0\x80"}', b'{"prompt":"a","temperature":NaN}', b'{"prompt":"a","top_p":Infinity}',
    b'{"prompt":"a","seed":' + b"9" * 5000 + b"}",
    b'{"prompt":"a","json_schema":' + b'{"items":' * 900 + b"{}" + b"}" * 900 + b"}",
]  # fmt: skip
WRONG: list[dict[str, Any]] = [
    {"prompt": prompt}
    for prompt in (
        None, 1, True, 1.5, "", [], [[]], [""], [True], [1, 1.5], [-1], [10**9], [[[1]]], {}, {"prompt_string": 1}, "\ud800",
        ["a"] * 1025, "a" * (2**22 + 1), {"prompt_string": "x", "multimodal_data": "QUJD"},
    )
] + [
    {"prompt": "a", name: value}
    for name, value in (
        ("stop", [f"x{i}" for i in range(10**6)]), ("stop", "x" * 10**6), ("stop", ["\ud800"]), ("model", "\ud800"),
        ("n_predict", -2), ("n_predict", 1.5), ("n", 0), ("n", 10**30), ("top_k", "many"), ("top_k", 10**30), ("n_probs", 10**6),
        ("temperature", 1e308), ("logit_bias", {"\ud800": 1}), ("logit_bias", [[1, True]]), ("logit_bias", {"x": "y"}),
        ("logit_bias", {str(i): 1 for i in range(10**5)}), ("samplers", ["no such"]), ("dry_sequence_breakers", ["x"] * 1000),
        ("grammar", "root ::= " + "(" * 20_000 + '"a"' + ")" * 20_000), ("json_schema", {"type": "hiccup"}), ("stream", "maybe"),
        ("min_tokens", -1), ("repeat_penalty", 0), ("response_fields", 5), ("response_fields", ["x" * 10**5]), ("media", 5),
    )
]  # fmt: skip


@pytest.mark.parametrize("path", ["/completion", "/v1/completions"])
@pytest.mark.parametrize("content", HOSTILE, ids=lambda content: repr(content[:24]))
def test_bodies_that_are_none_are_refused_in_one_line(tiny_served: Site, path: str, content: bytes) -> None:
    refused(tiny_served, path, content)


@pytest.mark.parametrize("body", WRONG, ids=lambda body: repr(body)[:40].encode("ascii", "replace").decode())
def test_wrong_fields_are_refused_in_one_line(tiny_served: Site, body: dict[str, Any]) -> None:
    response_fields = body.get("response_fields") is not None  # of the native form alone
    for path in ("/completion",) if response_fields else ("/completion", "/v1/completions"):
        refused(tiny_served, path, **body)
    assert tiny_served.idle()


def test_one_bad_prompt_among_good_ones_is_refused_with_all(tiny_served: Site) -> None:
    assert "token" in refused(tiny_served, prompt=["good", [10**6]])
    assert complete(tiny_served)["tokens_predicted"] == 8


def test_a_prompt_that_fits_no_context_says_how_long_it_is(tiny_served: Site) -> None:
    for stream in (False, True):
        response = tiny_served.post("/completion", {"prompt": "ab " * 2000, "stream": stream})
        error = response.json()["error"]
        assert (response.status_code, error["type"]) == (400, "exceed_context_size_error")
        assert error["n_prompt_tokens"] > error["n_ctx"] == tiny_served.engine.about.n_ctx_slot


def test_what_is_not_a_number_never_leaves(tiny_served: Site) -> None:
    """JSON has no infinity: a forbidden token has the least probability there is."""
    found = complete(tiny_served, grammar='root ::= "a"', n_probs=50, n_predict=4)
    values = [other["logprob"] for one in found["completion_probabilities"] for other in one["top_logprobs"]]
    assert values
    assert all(math.isfinite(value) for value in values)


def test_a_client_that_hangs_up_frees_its_slot(serve: Serve) -> None:
    site = serve(n_parallel=1, n_ctx=8192)
    body = {"prompt": "the user", "n_predict": -1, "ignore_eos": True, "temperature": 0}
    with pytest.raises(httpx.ReadTimeout):
        site.post("/completion", body, timeout=0.3)
    _wait_until_idle(site)
    with site.http.stream("POST", "/completion", json={**body, "stream": True}) as response:
        lines = response.iter_lines()
        assert next(lines).startswith("data: ")
    _wait_until_idle(site)
    assert site.engine.stats().aborted == 2


def _wait_until_idle(site: Site) -> None:
    end = time.monotonic() + 10
    while not site.idle():
        assert time.monotonic() < end, "the slot is still taken"
        time.sleep(0.01)


def test_answers_side_by_side_equal_answers_alone(tiny_served: Site) -> None:
    prompts = [f"the {i} user" for i in range(6)]
    single = [complete(tiny_served, prompt)["content"] for prompt in prompts]
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(lambda prompt: complete(tiny_served, prompt)["content"], prompts)) == single


def test_what_goes_wrong_in_the_middle_of_a_stream_is_its_last_event(tiny_served: Site) -> None:
    """A second a is forbidden, and the grammar wants one."""
    impossible = {"prompt": "x", "grammar": 'root ::= "a"{9}', "no_repeat_ngram_size": 1, "temperature": 0, "stream": True}
    for path in ("/completion", "/v1/completions"):
        *parts, last = [json.loads(event) for event in tiny_served.data(path, impossible)]
        assert [part.get("content", None) or part["choices"][0]["text"] for part in parts] == ["a"]
        assert last["error"]["code"] == 400
    assert tiny_served.idle()


def test_nesting_that_is_read_and_cannot_be_worked_on_is_refused_too(tiny_served: Site) -> None:
    """Python's limit is met later at some depths than where the body is parsed."""
    for depth in range(940, 1000, 2):
        schema = b'{"a":' * depth + b"1" + b"}" * depth
        response = tiny_served.post("/completion", content=b'{"prompt":"a","n_predict":1,"json_schema":' + schema + b"}")
        assert response.status_code in (200, 400), (depth, response.text)
