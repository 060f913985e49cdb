"""What llama-server's own tests ask of a server, where nothing else here does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from sites import Serve, Site, site

from diptych.engine import Engine
from diptych.errors import InputError
from diptych.options import ServerOptions
from diptych.server import run
from diptych.server.http.guard import hosts


@pytest.fixture(scope="module")
def compatible(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A server that lets its slots be saved."""
    with site(tiny_folder, slot_save_path=tmp_path_factory.mktemp("slots")) as found:
        yield found


def test_without_its_page_the_server_has_none(serve: Serve) -> None:
    site = serve(page=False)
    assert site.get("/").status_code == 404
    assert site.get("/page/page.js").status_code == 404
    assert site.get("/health").status_code == 200


def test_a_model_has_several_names_and_tags(serve: Serve) -> None:
    site = serve(alias="tiny, small,  code", tags="chat,fim")
    data = site.get("/v1/models").json()["data"]
    assert [(m["id"], m["aliases"], m["tags"]) for m in data] == [("code", ["code", "small", "tiny"], ["chat", "fim"])]
    assert site.get("/v1/models/tiny").json() == data[0]
    assert site.get("/v1/models/large").status_code == 404


def test_slots_are_saved_and_restored_by_name_below_one_directory(serve: Serve, tmp_path: Path) -> None:
    site = serve(slot_save_path=tmp_path / "slots", n_parallel=2)
    (tmp_path / "slots").mkdir()
    asked = {"prompt": "Once upon a time", "n_predict": 8, "temperature": 0, "id_slot": 1}
    first = site.post("/completion", asked).json()
    saved = site.post("/slots/1?action=save", {"filename": "a.bin"}).json()
    n = first["tokens_evaluated"] + 7  # the last token was never decoded
    assert saved == {
        "id_slot": 1, "filename": "a.bin", "n_saved": n, "n_written": (tmp_path / "slots" / "a.bin").stat().st_size,
        "timings": {"save_ms": saved["timings"]["save_ms"]},
    }  # fmt: skip
    assert site.post("/slots/1?action=erase").json() == {"id_slot": 1, "n_erased": n}
    restored = site.post("/slots/0?action=restore", {"filename": "a.bin"}).json()
    assert (restored["n_restored"], restored["n_read"]) == (n, saved["n_written"])
    again = site.post("/completion", {**asked, "id_slot": 0}).json()
    assert (again["content"], again["timings"]["prompt_n"]) == (first["content"], 1)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        *(("/slots/0?action=save", {"filename": name}) for name in ("", ".", "..", "../a", "a/b", ".a", "a\\b", "a" * 201, "ä")),
        ("/slots/0?action=save", {}),
        ("/slots/0?action=save", None),
        ("/slots/0?action=restore", {"filename": "none"}),
        ("/slots/9?action=erase", None),
        ("/slots/x?action=erase", None),
        ("/slots/0?action=sing", None),
        ("/slots/0", None),
    ],
)  # fmt: skip
def test_other_names_slots_and_actions_are_refused(compatible: Site, path: str, body: object) -> None:
    answer = compatible.post(path, body)
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")


def test_slots_are_not_saved_where_nobody_said_where(served: Site) -> None:
    answer = served.post("/slots/0?action=save", {"filename": "a"})
    assert (answer.status_code, answer.json()["error"]["type"]) == (501, "not_supported_error")


@pytest.mark.parametrize(
    ("reasoning", "asked", "end"),
    [
        ("auto", {}, "<think>\n"),
        ("on", {}, "<think>\n"),
        ("off", {}, "<think>\n</think>"),
        ("off", {"enable_thinking": True}, "<think>\n"),
        ("auto", {"reasoning_effort": "none"}, "<think>\n</think>"),
        ("auto", {"chat_template_kwargs": {"enable_thinking": False}}, "<think>\n</think>"),
        ("off", {"add_generation_prompt": False}, "user: Hi\n"),
    ],
)
def test_a_model_that_always_thinks_can_be_told_not_to(serve: Serve, reasoning: str, asked: dict[str, object], end: str) -> None:
    template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<think>\n{% endif %}"
    )
    site = serve(chat_template=template, reasoning=reasoning)
    body = {"messages": [{"role": "user", "content": "Hi"}], **asked}
    assert site.post("/apply-template", body).json()["prompt"].endswith(end)


def test_a_template_by_a_name_is_refused_rather_than_taken_for_its_text(tiny_folder: Path) -> None:
    with pytest.raises(InputError, match=r"--chat-template is 'llama3', and its Jinja text is expected"):
        Engine.load(tiny_folder, options=ServerOptions(chat_template="llama3", threads=1))


def test_a_prompt_that_is_too_long_is_told_in_the_words_clients_look_for(served: Site) -> None:
    error = served.post("/completion", {"prompt": "word " * 5000}).json()["error"]
    assert error["type"] == "exceed_context_size_error"
    assert "exceeds the available context size" in error["message"]
    assert error["n_prompt_tokens"] > error["n_ctx"]


def test_a_server_listens_on_several_addresses_and_is_called_by_each() -> None:
    options = ServerOptions(host="127.0.0.1, 127.0.0.2", port=0)
    for host in hosts(options):
        with run.bind(options, host) as bound:
            assert bound.getsockname()[0] == host
    assert hosts(options) == ["127.0.0.1", "127.0.0.2"]


def test_the_way_to_an_answer_is_told_with_timings_that_are_numbers(served: Site) -> None:
    asked = {"prompt": "the quick brown fox " * 40, "n_predict": 4, "stream": True, "cache_prompt": False}
    told = [
        json.loads(line) for line in served.data("/completion", {**asked, "return_progress": True, "timings_per_token": True})
    ]
    way = [chunk for chunk in told if "prompt_progress" in chunk]
    assert [c["prompt_progress"]["processed"] for c in way] == sorted(c["timings"]["prompt_n"] for c in way)
    first, last = way[0]["timings"], way[-1]["timings"]
    assert (first["prompt_n"], first["prompt_ms"], first["predicted_ms"]) == (0, 0.0, 0.0)
    assert last["prompt_n"] == way[-1]["prompt_progress"]["total"]
    assert last["prompt_ms"] > 0
    assert all(isinstance(value, int | float) for chunk in told if "timings" in chunk for value in chunk["timings"].values())


def test_an_answer_goes_on_or_begins_and_not_both(served: Site) -> None:
    turns = [{"role": "user", "content": "Read."}, {"role": "assistant", "content": "TOTAL"}]
    for settings, status in (
        ({"continue_final_message": True}, 200),
        ({"continue_final_message": True, "add_generation_prompt": False}, 200),
        ({"continue_final_message": False, "add_generation_prompt": True}, 200),
        ({"continue_final_message": True, "add_generation_prompt": True}, 400),
    ):
        answer = served.post("/v1/chat/completions", {"messages": turns, "max_tokens": 1, **settings})
        assert answer.status_code == status, settings
