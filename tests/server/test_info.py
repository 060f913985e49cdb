"""What the server says it is, and what its slots do."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from sites import Site, site

from diptych import reader
from diptych.engine import Engine
from diptych.options import ServerOptions
from diptych.server import run
from diptych.server.serving import Serving

PROPS = {
    "default_generation_settings", "total_slots", "model_alias", "model_path", "model_ftype", "modalities", "media_marker",
    "endpoint_slots", "endpoint_props", "endpoint_metrics", "ui", "ui_settings", "chat_template", "chat_template_caps",
    "bos_token", "eos_token", "build_info", "is_sleeping", "cors_proxy_enabled",  # llama-server's
    "media_backend", "vision_backend",  # SMT's
    "halves",
}  # fmt: skip


def test_props_say_all_that_clients_ask_for(served: Site) -> None:
    found = served.get("/props").json()
    assert set(found) == PROPS
    assert found["modalities"] == {"vision": True, "audio": False, "video": False, "reconstruction": False}
    assert found["media_backend"] == found["vision_backend"] == "onnx"
    assert found["halves"]["media"] == {
        "backend": "onnx",
        "precision": "f32",
        "runtime": "onnxruntime",
        "providers": "CPUExecutionProvider",
    }
    assert found["halves"]["text"]["backend"] == "llama.cpp"
    assert found["model_path"].endswith(".gguf")
    assert (found["total_slots"], found["default_generation_settings"]["n_ctx"]) == (2, 4096)
    params = found["default_generation_settings"]["params"]
    assert {"seed", "temperature", "top_k", "n_predict", "samplers"} <= set(params)
    assert params["seed"] == 2**32 - 1
    assert found["build_info"].startswith("b")
    assert found["chat_template"]


def test_models_are_listed_for_clients_of_three_kinds(served: Site) -> None:
    for path in ("/v1/models", "/models"):
        found = served.get(path).json()
        assert found["object"] == "list"
        (listed,), (model,) = found["models"], found["data"]
        assert (listed["name"], listed["capabilities"]) == ("reader", ["completion", "multimodal"])
        assert (listed["media_backend"], listed["vision_backend"]) == ("onnx", "onnx")
        assert (model["id"], model["object"], model["meta"]["vision_backend"]) == ("reader", "model", "onnx")
        assert model["meta"]["halves"] == served.get("/props").json()["halves"]
    client = served.openai()
    assert [one.id for one in client.models.list()] == ["reader"]
    one = client.models.retrieve("reader")
    assert (one.id, one.object, one.owned_by) == ("reader", "model", "diptych")
    answer = served.get("/v1/models/gpt-4")
    assert (answer.status_code, answer.json()["error"]["type"]) == (404, "not_found_error")


def test_a_name_with_a_slash_is_found_and_a_text_half_alone_has_no_media(tmp_path: Path) -> None:
    (tmp_path / "text.gguf").symlink_to(reader.FOLDER / "text.gguf")
    with text_alone(tmp_path / "text.gguf", alias="user/model") as found:
        assert found.get("/v1/models/user/model").json()["id"] == "user/model"
        props = found.get("/props").json()
        assert (props["media_backend"], props["vision_backend"], props["halves"]["media"]) == ("none", "none", {})
        assert not any(props["modalities"].values())
        assert found.get("/v1/models").json()["models"][0]["capabilities"] == ["completion"]


@contextmanager
def text_alone(path: Path, **options: object) -> Iterator[Site]:
    wanted = ServerOptions(port=0, threads=1, n_ctx=512, drain_seconds=1, **options)  # type: ignore[arg-type]
    with running(Serving("text", wanted, lambda: Engine.load(model=path, options=wanted)), wanted) as url:
        client = httpx.Client(base_url=url, timeout=30)
        while client.get("/health").status_code != 200:
            time.sleep(0.02)
        yield Site(url, None, client)  # type: ignore[arg-type]
        client.close()


@contextmanager
def running(serving: Serving, options: ServerOptions) -> Iterator[str]:
    """The address of a server that need not be ready."""
    bound, server = run.bind(options), run.Server(serving, options)
    thread = threading.Thread(target=server.run, args=([bound],))
    thread.start()
    try:
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)
        bound.close()


def test_while_the_model_is_loaded_every_route_says_so() -> None:
    go = threading.Event()

    def slowly() -> Engine:
        go.wait(30)
        return Engine.load(reader.FOLDER, options=options)

    options = ServerOptions(port=0, threads=1, n_ctx=512, drain_seconds=1)
    with running(Serving("reader", options, slowly), options) as url, httpx.Client(base_url=url, timeout=30) as client:
        for method, path in (
            ("GET", "/health"), ("GET", "/v1/health"), ("GET", "/metrics"), ("GET", "/props"), ("GET", "/slots"),
            ("GET", "/v1/models"), ("GET", "/nothing"), ("GET", "/openapi.json"), ("POST", "/v1/chat/completions"),
            ("POST", "/completion"), ("POST", "/tokenize"), ("POST", "/v1/embeddings"),
        ):  # fmt: skip
            answer = client.request(method, path)
            assert answer.status_code == 503, path
            assert answer.json()["error"] == {
                "code": 503, "message": "Loading model", "type": "unavailable_error", "param": None,
            }  # fmt: skip
        assert client.get("/").status_code == 200
        assert client.post("/v1/messages").json()["error"]["type"] == "overloaded_error"
        go.set()
        end = time.monotonic() + 30
        while client.get("/health").status_code != 200:
            assert time.monotonic() < end
            time.sleep(0.02)


def test_slots_tell_what_they_do_and_nobodys_words(served: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_SERVER_SLOTS_DEBUG", "1")
    assert [slot["is_processing"] for slot in served.get("/slots").json()] == [False, False]
    body = {"messages": [{"role": "user", "content": "sesame"}], "max_tokens": 2000, "ignore_eos": True, "stream": True}
    with served.http.stream("POST", "/v1/chat/completions", json=body) as stream:
        lines = stream.iter_lines()
        for _ in range(5):
            next(lines)
        (busy,) = (slot for slot in served.get("/slots").json() if slot["is_processing"])
        assert set(busy) == {
            "id", "n_ctx", "speculative", "is_processing", "n_prompt_tokens", "n_prompt_tokens_processed",
            "n_prompt_tokens_cache", "next_token",
        }  # fmt: skip
        assert busy["n_prompt_tokens_processed"] == busy["n_prompt_tokens"] > 6
        (token,) = busy["next_token"]
        assert token["has_next_token"]
        assert token["n_decoded"] > 0
        assert token["n_decoded"] + token["n_remain"] == 2000
        assert "sesame" not in served.get("/slots").text
        assert served.get("/slots?fail_on_no_slot=1").status_code == 200
        with served.http.stream("POST", "/v1/chat/completions", json=body) as second:
            others = second.iter_lines()
            next(others)
            answer = served.get("/slots?fail_on_no_slot=1")
            assert (answer.status_code, answer.json()["error"]["type"]) == (503, "unavailable_error")
            assert served.get("/slots").status_code == 200
    end = time.monotonic() + 10
    while not served.idle():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_slots_can_be_switched_off() -> None:
    with site(reader.FOLDER, slots=False) as found:
        assert found.get("/slots").status_code == 501
        assert not found.get("/props").json()["endpoint_slots"]
