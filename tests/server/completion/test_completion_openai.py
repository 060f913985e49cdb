"""Text completions through the real client of OpenAI."""

from __future__ import annotations

from typing import Any

import openai
import pytest
import sending
from completing import FIELDS, complete
from sites import Serve, Site


def asked(site: Site, prompt: Any = "the user", **body: Any) -> Any:
    return site.openai().completions.create(model="any", prompt=prompt, **{"max_tokens": 8, "temperature": 0, **body})


def test_the_client_of_openai_completes(tiny_served: Site) -> None:
    found = asked(tiny_served)
    assert (found.object, found.model) == ("text_completion", "any")
    assert found.id.startswith("cmpl-")
    assert str(found.system_fingerprint).startswith("b")
    assert found.choices[0].text == complete(tiny_served)["content"]
    assert found.choices[0].finish_reason == "length"
    n = len(tiny_served.engine.tokenize("the user"))
    assert (found.usage.prompt_tokens, found.usage.completion_tokens, found.usage.total_tokens) == (n, 8, n + 8)
    assert found.timings["predicted_n"] == 8


def test_the_client_of_openai_streams(tiny_served: Site) -> None:
    whole = asked(tiny_served).choices[0].text
    chunks = list(asked(tiny_served, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == whole
    assert [c.choices[0].finish_reason for c in chunks if c.choices] == [None] * (len(chunks) - 2) + ["length"]
    assert chunks[-1].usage.completion_tokens == 8
    assert len({chunk.id for chunk in chunks}) == 1
    assert all(chunk.usage is None for chunk in asked(tiny_served, stream=True))
    assert tiny_served.data("/v1/completions", {"prompt": "x", "stream": True, "max_tokens": 2})[-1] == "[DONE]"


def test_choices_of_several_prompts_stand_in_order(tiny_served: Site) -> None:
    prompts = ["the user", "12 as"]
    single = [asked(tiny_served, prompt).choices[0].text for prompt in prompts]
    found = asked(tiny_served, prompts, n=2, best_of=2)
    assert [choice.index for choice in found.choices] == [0, 1, 2, 3]
    assert [choice.text for choice in found.choices] == [text for text in single for _ in range(2)]
    n = sum(len(tiny_served.engine.tokenize(prompt)) for prompt in prompts)
    assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (n, 32)
    texts = ["", "", "", ""]
    for chunk in asked(tiny_served, prompts, n=2, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == [choice.text for choice in found.choices]
    ids = [tiny_served.engine.tokenize(prompt) for prompt in prompts]
    assert [choice.text for choice in asked(tiny_served, ids).choices] == single


def test_log_probabilities_are_told_as_of_old(tiny_served: Site) -> None:
    found = asked(tiny_served, logprobs=3).choices[0]
    told = found.logprobs
    assert len(told.tokens) == len(told.token_logprobs) == len(told.top_logprobs) == len(told.text_offset) == 8
    assert told.text_offset[0] == 0
    for value, top in zip(told.token_logprobs, told.top_logprobs, strict=True):
        assert value == pytest.approx(max(top.values()))
        assert 1 <= len(top) <= 3  # two tokens may have the same text
    parts = [chunk.choices[0].logprobs for chunk in asked(tiny_served, logprobs=3, stream=True)]
    assert [token for part in parts if part for token in part.tokens] == told.tokens
    native = complete(tiny_served, path="/v1/completions", n_probs=3)["choices"][0]["logprobs"]["content"]
    assert [one["logprob"] for one in native] == pytest.approx(told.token_logprobs)


def test_the_prompt_is_echoed_when_asked_for(tiny_served: Site) -> None:
    plain = asked(tiny_served).choices[0].text
    assert asked(tiny_served, echo=True).choices[0].text == "the user" + plain
    assert asked(tiny_served, tiny_served.engine.tokenize("the user"), echo=True).choices[0].text == "the user" + plain
    chunks = list(asked(tiny_served, echo=True, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == "the user" + plain
    assert asked(tiny_served, echo=True, max_tokens=0).choices[0].text == "the user"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"suffix": "end"}, "suffix"), ({"best_of": 2}, "best_of is 2"), ({"echo": True, "logprobs": 1}, "echo"),
        ({"n": 3}, "there are 2 slots"), ({"prompt": ""}, "prompt is empty"), ({"logprobs": -1}, "logprobs"),
    ],
    ids=["suffix", "best_of", "echo", "n", "empty", "logprobs"],
)  # fmt: skip
def test_what_is_not_done_is_told_to_the_client_of_openai(tiny_served: Site, body: dict[str, Any], words: str) -> None:
    with pytest.raises(openai.BadRequestError, match=words):
        asked(tiny_served, **body)


def test_answers_can_be_looked_into(tiny_served: Site, serve: Serve) -> None:
    found = complete(tiny_served, path="/v1/completions", verbose=True)
    assert found["__verbose"]["prompt"] == "the user"
    assert found["__verbose"].keys() == FIELDS
    assert "__verbose" not in complete(tiny_served, path="/v1/completions")
    chat = {"messages": [{"role": "user", "content": [sending.url(), {"type": "text", "text": "Book"}]}], "max_tokens": 2}
    seen = tiny_served.post("/v1/chat/completions", {**chat, "verbose": True}).json()["__verbose"]
    assert seen["prompt"] == tiny_served.post("/apply-template", chat).json()["prompt"]
    assert seen["tokens_predicted"] == 2
    assert "__verbose" not in tiny_served.post("/v1/chat/completions", chat).json()
    assert "__verbose" in serve(log_level="debug").post("/v1/chat/completions", chat).json()
