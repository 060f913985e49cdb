"""Text completions in llama-server's own form."""

from __future__ import annotations

import base64

import pytest
import sending
from completing import FIELDS, SETTINGS, complete, refused, streamed
from sites import Serve, Site

from diptych import reader

RECEIPT = reader.examples()[0]


def test_an_answer_has_the_fields_of_llama_server(tiny_served: Site) -> None:
    found = complete(tiny_served, seed=5)
    assert found.keys() == FIELDS
    assert found["generation_settings"].keys() >= SETTINGS
    assert (found["index"], found["stop"], found["stop_type"], found["stopping_word"]) == (0, True, "limit", "")
    assert (found["model"], found["prompt"], found["tokens"]) == ("tiny-qwen2vl", "the user", [])
    assert (found["tokens_predicted"], found["truncated"]) == (8, False)
    n = len(tiny_served.engine.tokenize("the user"))
    assert (found["tokens_evaluated"], found["tokens_cached"]) == (n, n + 7)
    assert found["timings"]["predicted_n"] == 8
    assert found["timings"]["prompt_n"] + found["timings"]["cache_n"] == n
    assert found["has_new_line"] == ("\n" in found["content"])
    settings = found["generation_settings"]
    assert (settings["n_predict"], settings["seed"], settings["temperature"]) == (8, 5, 0)
    assert found["id_slot"] in (0, 1)


def test_both_native_paths_answer_alike(tiny_served: Site) -> None:
    a, b = complete(tiny_served), complete(tiny_served, path="/completions")
    assert a["content"] == b["content"]
    assert a.keys() == b.keys()


def test_a_stream_says_the_same_and_ends_without_done(tiny_served: Site) -> None:
    whole = complete(tiny_served, return_tokens=True)
    *parts, last = streamed(tiny_served)
    assert "".join(part["content"] for part in parts) == whole["content"]
    assert [token for part in parts for token in part["tokens"]] == whole["tokens"]
    assert [part["stop"] for part in parts] == [False] * len(parts)
    assert all(part["tokens"] for part in parts)
    assert parts[-1]["tokens_predicted"] == 8
    assert last.keys() == FIELDS
    assert (last["stop"], last["content"], last["tokens"], last["stop_type"]) == (True, "", [], "limit")
    assert last["generation_settings"]["stream"] is True


def test_tokens_are_told_when_asked_for(tiny_served: Site) -> None:
    found = complete(tiny_served, return_tokens=True)
    assert len(found["tokens"]) == 8
    assert tiny_served.engine.detokenize(found["tokens"]).decode(errors="replace") == found["content"]


def test_all_forms_of_a_prompt_mean_the_same(tiny_served: Site) -> None:
    ids = tiny_served.engine.tokenize("the user")
    forms = ["the user", ids, ["the", *tiny_served.engine.tokenize(" user")], {"prompt_string": "the user"}]
    single = complete(tiny_served)["content"]
    for form in forms:
        assert complete(tiny_served, form)["content"] == single
    several = complete(tiny_served, forms)
    assert [one["index"] for one in several] == [0, 1, 2, 3]
    assert [one["content"] for one in several] == [single] * 4
    assert [one["prompt"] for one in several] == ["the user"] * 4


def test_many_prompts_with_several_answers_each_come_in_order(tiny_served: Site) -> None:
    """More than there are slots, and than may wait."""
    prompts = [f"number {i}" for i in range(5)]
    single = [complete(tiny_served, prompt)["content"] for prompt in prompts]
    found = complete(tiny_served, prompts, n=2)
    assert [one["index"] for one in found] == list(range(10))
    assert [one["content"] for one in found] == [text for text in single for _ in range(2)]
    assert [one["prompt"] for one in found] == [prompt for prompt in prompts for _ in range(2)]


def test_more_prompts_than_may_wait_are_answered_all_the_same(serve: Serve) -> None:
    site = serve(max_queue=1)
    assert len(complete(site, ["a"] * 20, n_predict=2)) == 20


def test_a_prompt_with_a_picture_is_read(served: Site) -> None:
    body = {"messages": [{"role": "user", "content": [sending.url(), {"type": "text", "text": "Read the text."}]}]}
    text = served.post("/apply-template", body).json()["prompt"]
    data = base64.b64encode(RECEIPT.read_bytes()).decode()
    for item in (data, f"data:image/png;base64,{data}"):
        given = {"prompt_string": text, "multimodal_data": [item]}
        found = complete(served, given, n_predict=200)
        assert found["content"] == RECEIPT.with_suffix(".txt").read_text().strip()
        assert found["prompt"] == text
        assert found["stop_type"] == "eos"
        media = found["timings"]["media"]
        assert [m["kind"] for m in media] == ["image"]


def test_markers_and_media_must_be_as_many(tiny_served: Site) -> None:
    marker = tiny_served.get("/props").json()["media_marker"]
    picture = sending.picture()
    for text, data in (("x", [picture]), (f"x{marker}", []), (f"{marker}{marker}", [picture]), ("x", [""])):
        assert "media markers" in refused(tiny_served, prompt={"prompt_string": text, "multimodal_data": data})
    for item, words in (("", "no bytes"), ("malformed", "base64"), (5, "int"), ("QUJD", "picture"), ({"url": "x"}, "dict")):
        assert words in refused(tiny_served, prompt={"prompt_string": marker, "multimodal_data": [item]})


def test_sound_is_known_by_its_bytes(tiny_served: Site) -> None:
    """A model that cannot hear says so, rather than that it is no picture."""
    marker = tiny_served.get("/props").json()["media_marker"]
    for sound in (b"RIFF\x24\0\0\0WAVEfmt ", b"ID3\x04\0\0\0\0\0\0", b"\xff\xfb\x90\x44" * 8, b"fLaC\0\0\0\x22"):
        data = base64.b64encode(sound).decode()
        response = tiny_served.post("/completion", {"prompt": {"prompt_string": marker, "multimodal_data": [data]}})
        assert 400 <= response.status_code < 500
        assert "audio" in response.json()["error"]["message"]


def test_the_marker_is_a_text_where_no_media_are_given(tiny_served: Site) -> None:
    marker = tiny_served.get("/props").json()["media_marker"]
    n = len(tiny_served.engine.tokenize(f"a {marker} b"))
    assert complete(tiny_served, f"a {marker} b")["tokens_evaluated"] == n
    assert complete(tiny_served, {"prompt_string": f"a {marker} b"})["tokens_evaluated"] == n


def test_a_marker_of_the_environment_is_taken(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_MEDIA_MARKER", "<__media__>")
    site = serve()
    given = {"prompt_string": "What is this: <__media__>\n", "multimodal_data": [sending.picture()]}
    found = complete(site, given)
    assert found["prompt"] == given["prompt_string"]
    assert found["tokens_evaluated"] > 12


def test_no_tokens_asked_for_leave_the_prompt_in_the_cache(serve: Serve) -> None:
    site = serve(n_parallel=1)
    warmed = complete(site, "the user of 12 things", n_predict=0)
    assert (warmed["content"], warmed["tokens_predicted"], warmed["stop_type"]) == ("", 0, "limit")
    assert warmed["generation_settings"]["n_predict"] == 0
    assert complete(site, "the user of 12 things")["timings"]["prompt_n"] == 1
    *parts, last = streamed(site, n_predict=0)
    assert parts == []
    assert last["tokens_predicted"] == 0


def test_why_an_answer_ended_is_told(serve: Serve, tiny_served: Site) -> None:
    text = complete(tiny_served)["content"]
    word = text[3:5]
    stopped = complete(tiny_served, stop=["not there", word])
    assert (stopped["stop_type"], stopped["stopping_word"]) == ("word", word)
    assert stopped["content"] == text[: text.index(word)]
    assert complete(tiny_served, stop=word)["content"] == stopped["content"]
    end = tiny_served.engine.end_tokens[0]
    ended = complete(tiny_served, logit_bias=[[end, 1000]])
    assert (ended["stop_type"], ended["content"], ended["tokens_predicted"]) == ("eos", "", 1)
    cut = complete(serve(n_ctx=256, n_parallel=1, kv_unified=False), "ab " * 40, n_predict=-1, ignore_eos=True)
    assert (cut["stop_type"], cut["truncated"]) == ("limit", True)


def test_probabilities_are_told_for_each_token(tiny_served: Site) -> None:
    found = complete(tiny_served, n_probs=5, return_tokens=True)
    told = found["completion_probabilities"]
    assert [one["id"] for one in told] == found["tokens"]
    for one in told:
        assert one.keys() == {"id", "token", "bytes", "logprob", "top_logprobs"}
        assert len(one["top_logprobs"]) == 5
        values = [other["logprob"] for other in one["top_logprobs"]]
        assert values == sorted(values, reverse=True)
        assert one["logprob"] == values[0] <= 0  # greedy
        assert bytes(one["bytes"]) == tiny_served.engine.piece(one["id"])
    *parts, last = streamed(tiny_served, n_probs=5)
    for again in (
        [one for part in parts for one in part["completion_probabilities"]],
        complete(tiny_served, logprobs=5)["completion_probabilities"],
    ):
        assert [one["id"] for one in again] == found["tokens"]
        # the prompt is in the KV cache by then, and its last row computed alone
        assert [one["logprob"] for one in again] == pytest.approx([one["logprob"] for one in told], abs=1e-5)
    assert "completion_probabilities" not in last


def test_probabilities_behind_the_samplers_are_told_when_asked_for(tiny_served: Site) -> None:
    body = {"temperature": 1.0, "seed": 1, "n_probs": 10, "post_sampling_probs": True, "top_k": 4, "top_p": 1.0, "min_p": 0.0}
    for one in complete(tiny_served, **body)["completion_probabilities"]:
        assert one.keys() == {"id", "token", "bytes", "prob", "top_probs"}
        assert len(one["top_probs"]) == 4
        assert sum(other["prob"] for other in one["top_probs"]) == pytest.approx(1)
        assert one["prob"] in [other["prob"] for other in one["top_probs"]]


def test_some_fields_of_an_answer_can_be_had_alone(tiny_served: Site) -> None:
    found = complete(tiny_served, response_fields=["content", "generation_settings/n_predict", "prompt", "nothing/there"])
    assert found.keys() == {"content", "generation_settings/n_predict", "prompt"}
    assert found["generation_settings/n_predict"] == 8
    *_, last = streamed(tiny_served, response_fields=["stop_type"])
    assert last == {"stop_type": "limit"}


def test_timings_come_with_every_part_when_asked_for(tiny_served: Site) -> None:
    assert all("timings" in part for part in streamed(tiny_served, timings_per_token=True))
