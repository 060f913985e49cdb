"""`diptych run`: one answer, JSON, a chat; on the shipped reader and on a tiny random model."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

import pictures
import sounds
import tiny_mmproj
from cli.conftest import Diptych
from diptych import reader


@pytest.fixture(scope="session")
def receipt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures.save(tmp_path_factory.mktemp("receipt") / "receipt.png", pictures.printed("TOTAL: $12.50", 360, 90))


def halves(model: Path) -> tuple[str, ...]:
    return ("-m", str(model / "text.gguf"), "--mmproj", str(model / "mmproj.gguf"))


def test_the_reader_reads_a_picture_just_made(diptych: Diptych, receipt: Path) -> None:
    done = diptych("run", "reader", "-p", "Read it.", "--image", receipt, "--temp", 0)
    assert (done.code, done.out) == (0, "TOTAL: $12.50\n"), done.err


def test_json_has_text_tokens_usage_and_timings(diptych: Diptych, receipt: Path) -> None:
    done = diptych("run", "reader", "-p", "Read it.", "--image", receipt, "--temp", 0, "--json")
    said = json.loads(done.out)
    assert list(said) == ["text", "tokens", "finish_reason", "usage", "media_backend", "timings"]
    assert said["media_backend"] == "onnx"
    assert said["text"] == "TOTAL: $12.50"
    assert said["finish_reason"] == "stop"
    assert len(said["tokens"]) == said["usage"]["completion_tokens"]
    assert said["usage"]["media_tokens"] == 3 * 13
    assert said["usage"]["prompt_tokens"] > said["usage"]["media_tokens"]
    assert set(said["timings"]) == {
        "load_ms", "queue_ms", "preprocess_ms", "encode_ms", "prefill_ms", "media_prefill_ms", "decode_ms",
        "time_to_first_token_ms", "tokens_per_second",
    }  # fmt: skip
    assert all(v > 0 for v in said["timings"].values())


def test_a_random_model_answers_greedily_the_same_twice_and_stops_at_n(diptych: Diptych, model: Path, picture: Path) -> None:
    arguments = ("run", *halves(model), "-p", "the", "--image", picture, "--temp", 0, "-n", 7, "--json")
    first, second = (json.loads(diptych(*arguments).out) for _ in range(2))
    assert first["tokens"] == second["tokens"]
    assert len(first["tokens"]) <= 7
    assert first["finish_reason"] in ("length", "stop")


def test_a_folder_of_both_halves_is_a_deployment(diptych: Diptych, model: Path, picture: Path) -> None:
    done = diptych("run", model, "-p", "the", "--image", picture, "-n", 3, "--json")
    assert done.code == 0, done.err


def test_text_alone_needs_no_media_half(diptych: Diptych, model: Path) -> None:
    done = diptych("run", "-m", model / "text.gguf", "-p", "the", "-n", 3, "--json")
    assert json.loads(done.out)["usage"]["media_tokens"] == 0


def test_an_answer_follows_its_json_schema(diptych: Diptych, model: Path) -> None:
    schema = '{"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"], "additionalProperties": false}'
    done = diptych("run", "-m", model / "text.gguf", "-p", "the", "--json-schema", schema, "--json", "--seed", 1, "-n", 200)
    assert isinstance(json.loads(json.loads(done.out)["text"])["a"], bool), done.err


def test_a_chat_takes_pictures_and_keeps_going_after_an_error(
    diptych: Diptych, receipt: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    lines = [
        f"/image {receipt}",
        "Read it.",
        "/image nowhere.png",
        f"/image {tmp_path / 'broken.png'}",
        "Read.",
        "/clear",
        "/dance",
    ]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join([*lines, f"/image {receipt}", "Again.", "/quit", "never"])))
    done = diptych("run", "reader", "--temp", 0)
    assert done.code == 0
    assert done.out.splitlines() == ["TOTAL: $12.50", "TOTAL: $12.50"]
    assert "nowhere.png" in done.err
    assert "broken.png" in done.err
    assert "/dance" in done.err
    assert "never" not in done.out


def test_min_and_max_pixels_change_how_many_tokens_a_picture_takes(diptych: Diptych, model: Path, tmp_path: Path) -> None:
    large = pictures.save(tmp_path / "large.png", pictures.gradient(560, 560))

    def tokens(*flags: object) -> int:
        done = diptych("run", *halves(model), "-p", "x", "--image", large, "-n", 1, "--json", *flags)
        return int(json.loads(done.out)["usage"]["media_tokens"])

    assert tokens() == 400
    assert tokens("--max-pixels", 28 * 28 * 100) == 100
    assert tokens("--min-pixels", 28 * 28 * 600) >= 600


def test_the_demo_reads_its_examples(diptych: Diptych) -> None:
    done = diptych("demo", "--json")
    said = json.loads(done.out)
    assert len(said["pictures"]) == len(reader.examples()) >= 3
    for shown in said["pictures"]:
        assert shown["text"] == Path(shown["image"]).with_suffix(".txt").read_text().rstrip("\n")
    told = diptych("demo")
    assert "Next" in told.out
    assert told.code == 0


def test_the_backend_is_told_on_standard_error_where_it_was_chosen(diptych: Diptych, receipt: Path) -> None:
    given = ("run", "reader", "-p", "Read it.", "--image", receipt, "--temp", 0, "-n", 1)
    assert diptych(*given).err == "media backend: onnx\n"
    assert diptych(*given, "--media-backend", "smt").err == ""
    assert diptych("run", "reader", "-p", "Hi.", "-n", 1, "--vision-backend", "mtmd").err == ""


def test_a_recording_is_asked_about(diptych: Diptych, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = tiny_mmproj.text(tmp_path / "text.gguf", "qwen2")
    mmproj = tiny_mmproj.ultravox(tmp_path / "mmproj.gguf")
    (tmp_path / "a.wav").write_bytes(sounds.wav(sounds.tone()))
    given = ("run", "-m", text, "--mmproj", mmproj, "--temp", 0, "-n", 4)
    done = diptych(*given, "-p", "the", "--audio", tmp_path / "a.wav", "--json")
    said = json.loads(done.out)
    assert (said["media_backend"], said["usage"]["media_tokens"]) == ("mtmd", 375)
    lines = [f"/audio {tmp_path / 'a.wav'}", "the", "/audio nowhere.wav", "/quit"]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
    chat = diptych(*given)
    assert chat.code == 0
    assert chat.out.strip() == said["text"].strip()
    assert "/audio nowhere.wav: no such file" in chat.err
