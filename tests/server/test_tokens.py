"""Text to tokens and back over HTTP, and what a conversation becomes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import httpx
import pytest
import sending
from sites import Serve, Site

from diptych import convert

TEXT = "the user's café, 12:\n媽 🤗"


def message(response: httpx.Response, status: int = 400) -> str:
    """The words of an error, which are one line."""
    assert response.status_code == status, response.text
    said = str(response.json()["error"]["message"])
    assert "\n" not in said
    assert len(said) < 500
    return said


def tokens(site: Site, **body: Any) -> Any:
    response = site.post("/tokenize", body)
    assert response.status_code == 200, response.text
    return response.json()["tokens"]


def test_tokens_become_the_text_they_came_from(tiny_served: Site) -> None:
    found = tokens(tiny_served, content=TEXT)
    assert found == tiny_served.engine.tokenize(TEXT)
    assert tiny_served.post("/detokenize", {"tokens": found}).json() == {"content": TEXT}


def test_pieces_are_texts_or_the_bytes_of_parts_of_characters(tiny_served: Site) -> None:
    found = tokens(tiny_served, content=TEXT, with_pieces=True)
    assert [one["id"] for one in found] == tokens(tiny_served, content=TEXT)
    assert {"id": tokens(tiny_served, content="the")[0], "piece": "the"} in found
    pieces = [one["piece"] for one in found]
    assert any(isinstance(piece, list) for piece in pieces)
    assert b"".join(p.encode() if isinstance(p, str) else bytes(p) for p in pieces).decode() == TEXT


def test_special_tokens_in_a_text_are_such_unless_told_otherwise(tiny_served: Site) -> None:
    assert len(tokens(tiny_served, content="<|im_end|>")) == 1
    plain = tokens(tiny_served, content="<|im_end|>", parse_special=False)
    assert len(plain) > 1
    assert tiny_served.engine.detokenize(plain) == b"<|im_end|>"


def test_texts_and_tokens_may_be_mixed(tiny_served: Site) -> None:
    the = tokens(tiny_served, content="the")
    assert tokens(tiny_served, content=["the", 5, "the"]) == [*the, 5, *the]
    assert tokens(tiny_served, content=[]) == tokens(tiny_served) == []
    assert tokens(tiny_served, content=[7], with_pieces=True) == [{"id": 7, "piece": tiny_served.engine.piece(7).decode()}]


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/tokenize", {"content": 5}, "content is of type int"),
        ("/tokenize", {"content": {"prompt_string": "x"}}, "content is of type dict"),
        ("/tokenize", {"content": ["x", None]}, "content holds something of type NoneType"),
        ("/tokenize", {"content": [True]}, "content holds something of type bool"),
        ("/tokenize", {"content": "\ud800"}, "half a character"),
        ("/tokenize", {"content": [10**30], "with_pieces": True}, "there is no token"),
        ("/tokenize", {"content": "x" * (2**22 + 1)}, "4,194,304 is the most"),
        ("/tokenize", {"content": "x", "add_special": "perhaps"}, "add_special"),
        ("/detokenize", {"tokens": [-1]}, "there is no token -1"),
        ("/detokenize", {"tokens": [10**6]}, "there is no token 1000000"),
        ("/detokenize", {"tokens": ["x"]}, "tokens.0"),
        ("/detokenize", {"tokens": 5}, "tokens"),
        ("/detokenize", {"tokens": [1] * (2**20 + 1)}, "at most 1048576 items"),
        ("/apply-template", {}, "messages"),
        ("/apply-template", {"messages": [{"role": "user", "content": 5}]}, "must be a string or a list"),
        ("/apply-template", {"messages": [{"role": "user", "content": "\ud800"}]}, "half a character"),
        ("/v1/chat/completions/input_tokens", {"messages": []}, "messages"),
        ("/apply-template", {"messages": [{"role": "user", "content": "x"}] * 10_001}, "at most 10000 items"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused_in_one_line(served: Site, path: str, body: Any, words: str) -> None:
    assert words in message(served.post(path, content=json.dumps(body)))


def chat(*content: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(content)}]}


def test_a_chat_becomes_the_prompt_that_its_answer_goes_on_with(tiny_served: Site) -> None:
    """Also with a picture, in whose place stands the marker that /completion takes."""
    body = chat({"type": "text", "text": "What is "}, sending.url(3), {"type": "text", "text": "?"})
    prompt = tiny_served.post("/apply-template", body).json()["prompt"]
    marker = tiny_served.get("/props").json()["media_marker"]
    assert prompt.count(marker) == 1
    assert prompt.endswith("?<|im_end|>\n<|im_start|>assistant\n")
    said = tiny_served.post("/v1/chat/completions", {**body, "max_tokens": 8, "temperature": 0}).json()
    given = {"prompt_string": prompt, "multimodal_data": [sending.picture(3)]}
    completed = tiny_served.post("/completion", {"prompt": given, "n_predict": 8, "temperature": 0}).json()
    assert completed["content"] == said["choices"][0]["message"]["content"]
    assert completed["tokens_evaluated"] == said["usage"]["prompt_tokens"]


def test_tokens_of_a_chat_are_counted_with_its_pictures_and_nothing_is_encoded(tiny_served: Site) -> None:
    body = chat({"type": "text", "text": "Look: "}, sending.url(11))
    before = tiny_served.engine.stats().encoder
    for path in ("/v1/chat/completions/input_tokens", "/chat/completions/input_tokens"):
        counted = tiny_served.post(path, body).json()
        assert counted["object"] == "response.input_tokens"
    assert tiny_served.engine.stats().encoder == before
    said = tiny_served.post("/v1/chat/completions", {**body, "max_tokens": 1}).json()
    assert counted["input_tokens"] == said["usage"]["prompt_tokens"]
    assert tiny_served.engine.stats().encoder != before


def test_the_tokens_of_a_chat_that_fits_no_context_are_counted(tiny_served: Site) -> None:
    counted = tiny_served.post("/v1/chat/completions/input_tokens", chat({"type": "text", "text": "ab " * 2000}))
    assert counted.json()["input_tokens"] > tiny_served.engine.about.n_ctx_slot


@pytest.fixture(scope="module")
def with_start(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a vocabulary that puts a token before each text."""
    folder = tmp_path_factory.mktemp("start")
    shutil.copytree(tiny_folder.parent / "checkpoint", folder / "checkpoint")
    file = folder / "checkpoint" / "tokenizer_config.json"
    said = json.loads(file.read_text())
    file.write_text(json.dumps({**said, "bos_token": "<|endoftext|>", "add_bos_token": True}))
    convert.convert(folder / "checkpoint", folder / "out", outtype="f32")
    return folder / "out"


def test_what_the_vocabulary_puts_before_a_text_is_added_when_asked_for(serve: Serve, with_start: Path) -> None:
    site = serve(with_start)
    start = site.engine.tokenize("<|endoftext|>")
    assert len(start) == 1
    assert tokens(site, content="the", add_special=True) == [*start, *tokens(site, content="the")]
    assert tokens(site, content=["the", 5], add_special=True) == [*start, *tokens(site, content="the"), 5]
    assert tokens(site, content=[5, "the"], add_special=True) == [5, *tokens(site, content="the")]
    completed = site.post("/completion", {"prompt": "the", "n_predict": 1}).json()
    assert (completed["prompt"], completed["tokens_evaluated"]) == ("<|endoftext|>the", 2)
