"""`/v1/media/preview`: what the encoder will be fed, told before anything is asked."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from diptych import reader
from diptych.media.image import resize

RECEIPT = (reader.FOLDER / "examples" / "receipt.png").read_bytes()


def url(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def noise(width: int, height: int, seed: int = 0) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)).save(out, "PNG")
    return out.getvalue()


def previewed(site, data: bytes, **body: object) -> dict:
    response = site.post("/v1/media/preview", {"image_url": {"url": url(data)}, **body})
    assert response.status_code == 200, response.text
    return response.json()


def asked(site, data: bytes) -> dict:
    parts = [{"type": "image_url", "image_url": {"url": url(data)}}, {"type": "text", "text": "Read."}]
    body = {"messages": [{"role": "user", "content": parts}], "max_tokens": 4}
    return site.post("/v1/chat/completions", body).json()["timings"]


def test_a_picture_is_told_as_the_model_sees_it(served) -> None:
    found = previewed(served, RECEIPT)
    image = found.pop("image")
    assert found.pop("cached") in (True, False)
    assert found == {
        "kind": "image", "size": [300, 150], "used": [308, 140], "n_tokens": 55,
        "chunks": [{"grid": [1, 5, 11], "n_tokens": 55}], "patch": 14, "merge": 2,
    }  # fmt: skip
    assert image.startswith("data:image/png;base64,")


def test_the_pixels_are_those_the_encoder_is_fed(served) -> None:
    data = noise(300, 150)
    shown = Image.open(io.BytesIO(base64.b64decode(previewed(served, data)["image"].partition(",")[2])))
    given = np.asarray(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(np.asarray(shown), resize(given, 308, 140))


def test_what_is_told_is_what_a_chat_then_uses(served) -> None:
    data = noise(220, 90, seed=1)
    found = previewed(served, data)
    assert not found["cached"]
    used = asked(served, data)["media"][0]
    assert (used["size"], used["used"], used["n_tokens"]) == (found["size"], found["used"], found["n_tokens"])
    assert previewed(served, data)["cached"], "it was encoded for the chat"


def test_a_cached_picture_still_has_its_pixels(served) -> None:
    data = noise(180, 100, seed=2)
    before = previewed(served, data)
    asked(served, data)
    after = previewed(served, data)
    assert (before["cached"], after["cached"]) == (False, True)
    assert after["image"] == before["image"]


def test_nothing_is_encoded_for_a_preview(served) -> None:
    runs = served.engine.stats().encoder.runs
    previewed(served, noise(200, 90, seed=3))
    assert served.engine.stats().encoder.runs == runs


def test_limits_of_the_request_hold(served) -> None:
    large, small = previewed(served, RECEIPT), previewed(served, RECEIPT, media={"max_pixels": 20 * 28 * 28})
    assert small["n_tokens"] <= 20 < large["n_tokens"]
    assert small["used"] != large["used"]


def test_the_url_alone_and_bare_base64_will_do(served) -> None:
    for given in (url(RECEIPT), base64.b64encode(RECEIPT).decode(), {"data": base64.b64encode(RECEIPT).decode()}):
        response = served.post("/v1/media/preview", {"image_url": given})
        assert response.json()["n_tokens"] == 55, response.text


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({}, 400),
        ({"image_url": {}}, 400),
        ({"image_url": 5}, 400),
        ({"image_url": {"url": "data:image/png;base64,AAAA"}}, 400),
        ({"image_url": {"url": url(RECEIPT[:2000])}}, 400),
        ({"image_url": {"url": "data:text/html,<b>"}}, 415),
        ({"image_url": {"url": "file:///etc/passwd"}}, 400),
        ({"image_url": {"url": url(RECEIPT)}, "media": {"max_tokens": 0}}, 400),
        ({"image_url": {"url": url(noise(4, 1000))}}, 422),
    ],
)
def test_what_cannot_be_shown_is_refused_in_words(served, body: dict, status: int) -> None:
    response = served.post("/v1/media/preview", body)
    assert response.status_code == status, response.text
    assert response.json()["error"]["message"]
    assert served.get("/health").status_code == 200


def test_a_half_of_others_tells_what_it_knows(serve) -> None:
    site = serve(media_backend="mtmd")
    found = previewed(site, noise(300, 150))
    assert (found["patch"], found["merge"], found["image"]) == (None, None, None)
    assert found["n_tokens"] == sum(chunk["n_tokens"] for chunk in found["chunks"])
    assert found["n_tokens"] == asked(site, noise(300, 150))["media"][0]["n_tokens"]
