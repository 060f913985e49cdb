"""`/v1/media/encode`, and what it answers sent in a message in the place of the picture."""

from __future__ import annotations

import base64
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from sending import picture, url
from sites import Site

CHAT = "/v1/chat/completions"


def chat(*parts: Any, n: int = 12) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(parts)}], "max_tokens": n, "temperature": 0}


def said(found: Any) -> tuple[str, int]:
    assert found.status_code == 200, found.text
    return found.json()["choices"][0]["message"]["content"], found.json()["usage"]["prompt_tokens"]


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


def encoding(served: Site, seed: int = 0, **fields: Any) -> Any:
    found = served.post("/v1/media/encode", {"image_url": url(seed)["image_url"], **fields})
    assert found.status_code == 200, found.text
    return found.json()


def part(value: Any) -> dict[str, Any]:
    return {"type": "media_embedding", "media_embedding": value}


def test_an_encoding_tells_what_a_picture_becomes(tiny_served: Site) -> None:
    found = encoding(tiny_served)
    (chunk,) = found["chunks"]
    assert (found["object"], found["kind"], found["size"], found["used"]) == ("media.encoding", "image", [112, 84], [112, 84])
    assert found["model"] == "tiny-qwen2vl"
    assert (chunk["n_tokens"], chunk["grid"], chunk["shape"]) == (12, [1, 3, 4], [12, 128])
    assert found["usage"] == {"media_tokens": 12, "total_tokens": 12}
    assert set(found["timings"]) == {"preprocess_ms", "encode_ms"}
    rows = np.frombuffer(base64.b64decode(chunk["embedding"]), "<f4").reshape(chunk["shape"])
    lists = encoding(tiny_served, encoding_format="float")["chunks"][0]["embedding"]
    np.testing.assert_array_equal(np.array(lists, np.float32), rows)
    half = encoding(tiny_served, encoding_format="base64_f16")["chunks"][0]
    sixteen = np.frombuffer(base64.b64decode(half["embedding"]), "<f2").reshape(chunk["shape"])
    np.testing.assert_allclose(sixteen, rows, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("form", ["float", "base64"])
def test_a_message_with_an_encoding_is_answered_as_one_with_the_picture(tiny_served: Site, form: str) -> None:
    made = encoding(tiny_served, 1, encoding_format=form)
    expected = said(tiny_served.post(CHAT, chat(url(1), text("the user"))))
    assert said(tiny_served.post(CHAT, chat(part(made), text("the user")))) == expected
    assert said(tiny_served.post(CHAT, chat(part(made["chunks"]), text("the user")))) == expected
    assert said(tiny_served.post(CHAT, chat(url(2), text("the user")))) != expected
    both = said(tiny_served.post(CHAT, chat(part(made), url(2), text("differ"))))
    assert both == said(tiny_served.post(CHAT, chat(url(1), url(2), text("differ"))))


def test_the_answer_says_that_rows_came_from_the_client(tiny_served: Site) -> None:
    made = encoding(tiny_served, 7)
    found = tiny_served.post(CHAT, chat(part(made), text("unheard of"))).json()
    (use,) = found["timings"]["media"]
    assert (use["origin"], use["size"], use["used"]) == ("client", [112, 84], [112, 84])


def test_limits_of_a_request_hold(tiny_served: Site) -> None:
    found = encoding(tiny_served, media={"max_pixels": 56 * 56})
    assert found["used"][0] * found["used"][1] <= 56 * 56
    assert found["chunks"][0]["n_tokens"] <= 4


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({}, 400), ({"image_url": None}, 400), ({"image_url": "malformed"}, 400), ({"image_url": {"url": ""}}, 400),
        ({"image_url": "data:text/html;base64,AAAA"}, 415), 
        ({"image_url": url()["image_url"], "input_audio": {"data": "AA"}}, 400),
        ({"image_url": url()["image_url"], "encoding_format": "base64_f8"}, 400), ({"input_audio": {"data": "AAAA"}}, 415),
        ({"image_url": "file:///etc/passwd"}, 400),
    ],
)  # fmt: skip
def test_what_cannot_be_encoded_is_refused(tiny_served: Site, body: dict[str, Any], status: int) -> None:
    found = tiny_served.post("/v1/media/encode", body)
    assert (found.status_code, bool(found.json()["error"]["message"])) == (status, True), found.text


def hostile(made: Any) -> dict[str, Any]:
    """Encodings that are none, by what is wrong with them."""
    (chunk,) = made["chunks"]
    rows = np.frombuffer(base64.b64decode(chunk["embedding"]), "<f4").reshape(chunk["shape"])

    def changed(**fields: Any) -> Any:
        return {**made, "chunks": [{**chunk, **fields}]}

    def with_row(value: float) -> Any:
        bad = rows.copy()
        bad[5] = value
        return changed(embedding=base64.b64encode(bad.tobytes()).decode())

    return {
        "NaN": with_row(np.nan), "infinite": with_row(np.inf), "zeros": with_row(0.0), "huge": with_row(1e30),
        "many": changed(n_tokens=10**6, grid=[1, 1000, 1000], shape=[10**6, 128]),
        "cut": changed(embedding=chunk["embedding"][:-16]),
        "wide": changed(shape=[12, 256], embedding=base64.b64encode(bytes(12 * 256 * 4)).decode()),
        "another grid": changed(grid=[1, 4, 4]), "no chunks": {**made, "chunks": []}, "text": "text", "none": None, "list": [[]],
    }  # fmt: skip


def test_hostile_encodings_are_refused_and_neighbours_are_unharmed(tiny_served: Site) -> None:
    wanted = chat(url(3), text("the user"), n=64)
    expected = said(tiny_served.post(CHAT, wanted))
    bad = hostile(encoding(tiny_served))
    with ThreadPoolExecutor(3) as threads:
        neighbours = [threads.submit(lambda: said(tiny_served.post(CHAT, wanted))) for _ in range(2)]
        for name, value in bad.items():
            found = tiny_served.post(CHAT, chat(part(value), text("the user")))
            assert found.status_code in (400, 422), (name, found.text)
            assert found.json()["error"]["type"] == "invalid_request_error"
        assert [one.result() for one in neighbours] == [expected] * 2
    assert said(tiny_served.post(CHAT, wanted)) == expected


def test_a_key_of_the_clients_own_choosing_does_not_reach_what_others_see(tiny_served: Site) -> None:
    victim = chat(url(4), text("the user"))
    made, other = encoding(tiny_served, 4), encoding(tiny_served, 5)
    other["chunks"][0]["key"] = made["chunks"][0]["key"]
    poisoned = said(tiny_served.post(CHAT, chat(part(other), text("the user"))))
    assert said(tiny_served.post(CHAT, victim)) != poisoned
    assert said(tiny_served.post(CHAT, chat(url(5), text("the user")))) == poisoned


def test_a_picture_that_is_encoded_is_not_encoded_again_in_a_chat(tiny_served: Site) -> None:
    encoding(tiny_served, 6)
    runs = tiny_served.engine.stats().encoder.runs
    encoding(tiny_served, 6)
    said(tiny_served.post(CHAT, chat(url(6), text("the user"))))
    assert tiny_served.engine.stats().encoder.runs == runs


def test_embeddings_take_encoded_media_too(tiny_served: Site) -> None:
    assert picture() in url()["image_url"]["url"]
    found = tiny_served.post("/v1/embeddings", {"input": {"content": [part(encoding(tiny_served))]}})
    assert found.status_code == 501
