"""What runs llama.cpp's own server tests: its stand-in for llama-server, its models, and what it makes of results."""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from pictures import png

SCRIPTS = Path(__file__).parent.parent / "scripts"
sys.path.append(str(SCRIPTS))

from upstream import models, stand_in, table  # noqa: E402 - from the folder above
from upstream.place import written_stand_in  # noqa: E402

GIVEN = "--hf-repo org/repo:Q8 --verbose --lora a.gguf --chat-template llama3 -fa on -ctk f32 --metrics"
FLAGS = "--temp 0.0 --seed 42 --host 127.0.0.1 --offline --parallel 2 --ctx-size 1024 --no-slots --jinja --sleep-idle-seconds 9"


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The table of the models, those that need nothing of llama.cpp's."""
    folder = tmp_path_factory.mktemp("models")
    seeing = {"model": models.gemma3(folder / "gemma3.gguf"), "mmproj": models.mmproj(folder / "mmproj.gguf")}
    names = {"stories": {"model": models.llama(folder / "stories.gguf")}, "ggml-org/seeing": seeing}
    (folder / "models.json").write_text(json.dumps(names, default=str))
    return folder / "models.json"


@contextmanager
def started(found: Path, *flags: str) -> Iterator[httpx.Client]:
    """The stand-in, as the tests start and end it."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [written_stand_in(found.parent, found), "--port", str(port), *FLAGS.split(), *flags]
    environment = {**os.environ, "LLAMA_MEDIA_MARKER": "<__media__>"}
    with (
        subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client,
    ):
        while not healthy(client):
            assert process.poll() is None, process.stderr and process.stderr.read()
            time.sleep(0.02)
        yield client
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=20)[1]
        assert process.returncode == 0, said
        assert "--sleep-idle-seconds 9 has no meaning" in said


def healthy(client: httpx.Client) -> bool:
    try:
        return client.get("/health").status_code == 200
    except httpx.TransportError:
        return False


def test_the_stand_in_serves_a_model_that_counts_as_the_published_one(found: Path) -> None:
    with started(found, "--hf-repo", "stories", "--alias", "tiny") as client:
        for text, n in (("I believe the meaning of life is", 18), ("What is the capital of France?", 21), ("Hi how are you", 8)):
            answer = client.post("/completion", json={"prompt": text, "n_predict": 64, "cache_prompt": False}).json()
            assert (answer["tokens_evaluated"], answer["tokens_predicted"], answer["stop_type"]) == (n, 64, "limit")
            assert answer["content"].isprintable()
        assert client.get("/v1/models").json()["data"][0]["id"] == "tiny"


def test_the_stand_in_sees(found: Path) -> None:
    def said(seed: int) -> tuple[str, int]:
        data = {"prompt_string": "What is this: <__media__>\n", "multimodal_data": [base64.b64encode(png(seed)).decode()]}
        answer = client.post("/completion", json={"prompt": data, "n_predict": 8}).json()
        return answer["content"], answer["tokens_evaluated"]

    with started(found, "--hf-repo", "ggml-org/seeing:Q8_0") as client:
        (first, n), (second, _), (again, _) = said(1), said(2), said(1)
    assert first == again != second
    assert n > 64


def test_flags_are_told_in_our_words_and_absent_ones_as_llama_server_means_them(capsys: pytest.CaptureFixture[str]) -> None:
    known = {"org/repo/file.gguf": {"model": "m.gguf"}, "org/repo": {"model": "o.gguf", "mmproj": "p.gguf"}}
    said = stand_in.translated(known, GIVEN.split())
    assert " ".join(said[2:]) == (
        "--log-level debug --chat-template chatml -fa on -ctk f32 --metrics --no-kv-unified --cors-origins * -m o.gguf "
        "--mmproj p.gguf --media-backend mtmd"
    )
    assert capsys.readouterr().err == "stand-in: --lora a.gguf has no meaning for diptych serve\n"
    file = stand_in.translated(known, ["--hf-repo", "org/repo", "--hf-file", "file.gguf", "--kv-unified"])
    assert file[-2:] == ["-m", "m.gguf"]
    assert "--no-kv-unified" not in file
    with pytest.raises(SystemExit, match="there is no model for org/other"):
        stand_in.translated(known, ["--hf-repo", "org/other"])


def test_results_are_counted_by_how_they_ended(tmp_path: Path) -> None:
    (tmp_path / "utils.py").write_text(
        "import re, subprocess\nserver_instances = set()\nmatch_regex = lambda p, t: bool(re.search(p, t))\n"
    )
    (tmp_path / "unit").mkdir()
    (tmp_path / "unit" / "test_basic.py").write_text(
        "import pytest\nfrom utils import *\n"
        "def test_plain(): assert match_regex('a', 'a')\n"
        "def test_words(): assert match_regex('Suddenly', 'zzz')\n"
        "def test_kept(): assert match_regex('a{5,5}', 'zzz')\n"
        "def test_skipped(): pytest.skip('not here')\n"
    )
    (tmp_path / "unit" / "test_infill.py").write_text("def test_one(): raise RuntimeError('a | b')\n")
    record = tmp_path / "record.jsonl"
    variables = {"UPSTREAM_RECORD": str(record), "PYTHONPATH": str(SCRIPTS)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "upstream.plugin", "unit"]
    done = subprocess.run(command, cwd=tmp_path, env={**os.environ, **variables}, capture_output=True, text=True)
    assert done.returncode == 1, done.stdout + done.stderr
    results = table.read(record)
    assert {r.name: r.outcome for r in results} == {
        "test_plain": "passed", "test_words": "words", "test_kept": "failed", "test_skipped": "skipped", "test_one": "failed",
    }  # fmt: skip
    assert [r.name for r in table.unexplained(results)] == ["test_kept"]
    page = tmp_path / "page.md"
    page.write_text(f"before\n{table.MARK}\nold\n{table.MARK}\nbehind\n")
    table.put(page, table.markdown(results))
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nbehind\n")
    assert "| `test_basic` | 1 | 1 | 1 | 1 |" in text
    assert "| `test_infill::test_one` | there is no `/infill` |" in text
