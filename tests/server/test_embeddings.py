"""`/v1/embeddings` with the real client, and llama-server's own forms of input and answer."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from sending import picture, url
from sites import EXACT, Serve, Site, site

import tiny_bert


@pytest.fixture(scope="module")
def pooled(tiny_folder: Path) -> Iterator[Site]:
    """A model that generates, and gives embeddings of the mean of all rows."""
    with site(tiny_folder, **EXACT, embeddings=True, pooling="mean") as found:
        yield found


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A model that only embeds."""
    folder = tmp_path_factory.mktemp("bert")
    tiny_bert.bert(folder / "text.gguf")
    with site(folder, **EXACT, embeddings=True) as found:
        yield found


def vectors(found: Any) -> np.ndarray:
    return np.array([one["embedding"] for one in found["data"]])


def test_openais_client_gets_vectors_of_length_one(pooled: Site) -> None:
    client = pooled.openai()
    one = client.embeddings.create(model="any", input="the user")
    assert one.object == "list"
    assert one.model == "any"
    assert np.linalg.norm(one.data[0].embedding) == pytest.approx(1, abs=1e-6)
    several = client.embeddings.create(model="any", input=["the user", "in the image", "the user"])
    assert [d.index for d in several.data] == [0, 1, 2]
    np.testing.assert_allclose(several.data[0].embedding, one.data[0].embedding, atol=1e-6)
    assert several.data[0].embedding == several.data[2].embedding != several.data[1].embedding
    assert several.usage.prompt_tokens == several.usage.total_tokens > 2 * one.usage.prompt_tokens
    lists = client.embeddings.create(model="any", input="the user", encoding_format="float")
    np.testing.assert_allclose(lists.data[0].embedding, one.data[0].embedding, atol=1e-7)


def test_a_picture_has_one_embedding_however_it_is_given(pooled: Site) -> None:
    marker = pooled.get("/props").json()["media_marker"]
    parts = [{"type": "text", "text": "What is this: "}, url(), {"type": "text", "text": "\n"}]
    sent = [
        {"content": parts},
        {"prompt_string": f"What is this: {marker}\n", "multimodal_data": [picture()]},
        "What is this: \n",
        {"prompt_string": f"What is this: {marker}\n", "multimodal_data": [picture(1)]},
    ]
    found = pooled.post("/v1/embeddings", {"input": sent})
    assert found.status_code == 200, found.text
    a, b, text, other = vectors(found.json())
    np.testing.assert_array_equal(a, b)
    assert abs(a - text).max() > 1e-3
    assert abs(a - other).max() > 1e-4
    native = pooled.post("/embeddings", {"content": sent}).json()
    assert native[0]["embedding"] == native[1]["embedding"] != native[2]["embedding"]
    np.testing.assert_allclose(native[0]["embedding"][0], a, atol=1e-7)


def test_texts_of_a_content_are_joined_as_they_are(bert: Site) -> None:
    parts = [{"type": "text", "text": "hello "}, {"type": "text", "text": "world"}]
    a, b = vectors(bert.post("/v1/embeddings", {"input": ["hello world", {"content": parts}]}).json())
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("given", "n"),
    [
        ("", 1), ("hello", 1), ([5, 6, 7], 1), ([5, 6, "hello", 7], 1), (["hello", "world"], 2), (["hello", [5, 6, 7]], 2),
        ([[5, 6, 7], [5, 6, 7]], 2), ([[5, 6, 7], [5, "hello", 7]], 2), ({"prompt_string": "hello"}, 1),
        ({"content": [{"type": "text", "text": "hello"}]}, 1),
        (["hello", {"prompt_string": "world"}, {"content": [{"type": "text", "text": "test"}]}], 3),
    ],
)  # fmt: skip
def test_every_form_of_input_of_llama_server_is_taken(bert: Site, given: Any, n: int) -> None:
    found = bert.post("/v1/embeddings", {"input": given})
    assert found.status_code == 200, found.text
    assert vectors(found.json()).shape == (n, 64)


@pytest.mark.parametrize(
    "given",
    [
        [], None, {}, 5, True, [[]], [None], [True], {"content": "text"}, {"content": []}, {"content": [{"type": "unknown"}]},
        {"content": [5]}, [5, {"content": []}], [10**9], [-1], {"prompt_string": 5},
        {"content": [url()]}, {"content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]},
        {"content": [{"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}]},
        {"content": [{"type": "input_video", "input_video": {"url": "data:video/mp4;base64,AAAA"}}]},
        {"prompt_string": "none", "multimodal_data": ["AAAA"]},
        ["hello"] * 2049,
    ],
)  # fmt: skip
def test_what_is_no_input_is_refused_and_the_next_is_served(bert: Site, given: Any) -> None:
    found = bert.post("/v1/embeddings", {"input": given})
    assert 400 <= found.status_code < 500, found.text
    assert found.json()["error"]["message"]
    assert bert.post("/v1/embeddings", {"input": "hello"}).status_code == 200


@pytest.mark.parametrize(
    "fields",
    [
        {"encoding_format": "base32"}, {"embd_normalize": -2}, {"embd_normalize": 10**400},
        {"embd_normalize": "much"}, {"dimensions": 12}, {"dimensions": 0},
        {"media": {"min_tokens": 0}},
    ],
)  # fmt: skip
def test_what_cannot_be_asked_is_refused(bert: Site, fields: dict[str, Any]) -> None:
    assert bert.post("/v1/embeddings", {"input": "hello", **fields}).status_code == 400


def test_a_bad_picture_is_refused(pooled: Site) -> None:
    for data in ("malformed", "AAAA", ""):
        sent = {"content": [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}]}
        assert 400 <= pooled.post("/v1/embeddings", {"input": ["fine", sent]}).status_code < 500
    assert pooled.post("/v1/embeddings", {"input": {"prompt_string": "no marker", "multimodal_data": [""]}}).status_code == 400


def test_base64_is_the_same_numbers(bert: Site) -> None:
    lists = bert.post("/v1/embeddings", {"input": "hello world", "encoding_format": "float"}).json()
    coded = bert.post("/v1/embeddings", {"input": "hello world", "encoding_format": "base64"}).json()
    np.testing.assert_allclose(
        np.frombuffer(base64.b64decode(coded["data"][0]["embedding"]), "<f4"), lists["data"][0]["embedding"], rtol=0, atol=1e-7
    )


@pytest.mark.parametrize(("text", "n"), [("hello world", 4), ("this is a test", 6)])
def test_usage_counts_every_token(bert: Site, text: str, n: int) -> None:
    assert bert.post("/v1/embeddings", {"input": text}).json()["usage"] == {"prompt_tokens": n, "total_tokens": n}
    assert bert.post("/v1/embeddings", {"input": [text, text]}).json()["usage"]["prompt_tokens"] == 2 * n


def test_norms_are_those_that_are_asked_for(bert: Site) -> None:
    plain = vectors(bert.post("/v1/embeddings", {"input": "hello", "embd_normalize": -1}).json())[0]
    for p in 1, 2, 3:
        found = vectors(bert.post("/v1/embeddings", {"input": "hello", "embd_normalize": p}).json())[0]
        np.testing.assert_allclose(found, plain / np.linalg.norm(plain, p), atol=1e-6)


def test_an_input_that_is_too_long_says_how_long_it_may_be(bert: Site) -> None:
    found = bert.post("/v1/embeddings", {"input": "this is a test " * 512})
    error = found.json()["error"]
    assert found.status_code == 400
    assert "too large" in error["message"]
    assert (error["type"], error["n_prompt_tokens"], error["n_ctx"]) == ("exceed_context_size_error", 2050, 64)


def test_a_model_that_only_embeds_does_not_chat(bert: Site) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        bert.openai().chat.completions.create(model="any", messages=[{"role": "user", "content": "hello"}])
    assert caught.value.status_code == 501
    assert "only embeds" in str(caught.value)


def test_without_a_pooling_there_is_a_vector_a_token_and_none_for_openai(serve: Serve) -> None:
    found = serve(embeddings=True)
    rows = found.post("/embeddings", {"input": "the user"}).json()[0]["embedding"]
    n = len(found.post("/tokenize", {"content": "the user"}).json()["tokens"])
    assert np.array(rows).shape == (n, 128)
    refused = found.post("/v1/embeddings", {"input": "the user"})
    assert refused.status_code == 400
    assert "pooling" in refused.json()["error"]["message"]


def test_embeddings_have_to_be_switched_on(tiny_served: Site) -> None:
    for route in "/v1/embeddings", "/embeddings", "/embedding":
        found = tiny_served.post(route, {"input": "the user"})
        assert found.status_code == 501
        assert found.json()["error"]["type"] == "not_supported_error"
        assert "--embeddings" in found.json()["error"]["message"]


def test_chat_goes_on_beside_embeddings(pooled: Site, tiny_served: Site) -> None:
    sent = {"messages": [{"role": "user", "content": [url(), {"type": "text", "text": "the user"}]}], "max_tokens": 12}
    sent["temperature"] = 0
    alone = tiny_served.post("/v1/chat/completions", sent).json()["choices"][0]["message"]["content"]
    pooled.post("/v1/embeddings", {"input": ["the", {"content": [url()]}]})
    assert pooled.post("/v1/chat/completions", sent).json()["choices"][0]["message"]["content"] == alone
