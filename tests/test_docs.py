"""The pages: every example in them runs as pasted, and the generated ones are what the code says."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

import pictures
import sounds
import tiny
import tiny_mmproj
from diptych import reader
from hub.stand_in import serving, settle

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
ADDRESS = "localhost:8080"  # where the pages have their server
SETUP = re.compile(r"^(make|pip|python -m pytest)\b|CHECKPOINT|--help$|^export ")  # run elsewhere, or placeholders


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def commands(page: Path) -> Iterator[str]:
    for block in blocks(page, "bash"):
        if "curl" in block:
            continue  # a script, run whole against a server
        for line in block.splitlines():
            command = line.partition(" #")[0].strip()
            if command and not SETUP.search(command) and not command.startswith("diptych serve"):
                yield command


def scripts(page: Path) -> Iterator[tuple[list[str], str]]:
    """What talks to a server at port 8080: the interpreter, and the code."""
    yield from ((["bash", "-euo", "pipefail", "-c"], block) for block in blocks(page, "bash") if "curl" in block)
    yield from (([sys.executable, "-c"], block) for block in blocks(page, "python") if ADDRESS in block)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the pages speak of: a checkpoint and a few pictures."""
    folder = tmp_path_factory.mktemp("docs")
    tiny.qwen2vl(folder / "Qwen2-VL-2B-Instruct")
    Image.fromarray(pictures.gradient(200, 120)).save(folder / "photo.jpg")
    Image.fromarray(pictures.printed("TOTAL: $12.50", 360, 90)).save(folder / "receipt.png")
    (folder / "docs").mkdir()
    Image.fromarray(pictures.printed("TOTAL: $12.50", 360, 90)).save(folder / "docs" / "receipt.png")
    tiny_mmproj.text(folder / "ultravox.gguf", "qwen2")
    tiny_mmproj.ultravox(folder / "mmproj-ultravox.gguf")
    tiny_mmproj.gemma3(folder / "mmproj-gemma3.gguf")
    (folder / "talk.wav").write_bytes(sounds.wav(sounds.tone(2.0)))
    (folder / "settings.yaml").write_text("n_ctx: 2048\n")
    return folder


@pytest.fixture(scope="module", autouse=True)
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A hub on loopback with the repository that the pages name; the reader stands in for its model."""
    text, mmproj = reader.FOLDER / "text.gguf", reader.FOLDER / "mmproj.gguf"
    stem = "Qwen2-VL-2B-Instruct"
    files = {f"{stem}-Q4_K_M.gguf": text, f"{stem}-Q8_0.gguf": text, f"mmproj-{stem}-f16.gguf": mmproj}
    with serving() as hub, pytest.MonkeyPatch.context() as patch:
        settle(patch, hub, tmp_path_factory.mktemp("hub"))
        hub.repo("ggml-org/Qwen2-VL-2B-Instruct-GGUF", files)
        yield


def run(command: list[str], place: Path, variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **variables, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    return subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, input="/quit\n", timeout=120)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_command_of_a_page_runs_as_pasted(page: Path, place: Path) -> None:
    for command in commands(page):
        words = shlex.split(command)
        variables = dict(word.split("=", 1) for word in words if re.match(r"^[A-Z_]+=", word))
        words = words[len(variables) :]
        if words[0] == "diptych" and words[1] in ("convert", "export", "quantize", "encode", "inspect", "bench"):
            words.append("--force")  # pages name the same outputs
        if words[:2] == ["diptych", "run"] and words[2] != "reader":
            words += ["-n", "4"]  # a random model would talk until the context is full
        done = run(words, place, variables)
        assert done.returncode == 0, f"{command}\n{done.stderr}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_python_example_of_a_page_runs_as_pasted(page: Path, place: Path) -> None:
    for code in (block for block in blocks(page, "python") if ADDRESS not in block):
        done = run([sys.executable, "-c", code], place, {})
        assert done.returncode == 0, f"{code}\n{done.stderr}"


@pytest.fixture(scope="module")
def address(place: Path) -> Iterator[str]:
    """A server of the reader, started as the pages say, but on a free port."""
    command = [Path(sys.executable).parent / "diptych", "serve", "reader", "--port", "0", "--slot-save-path", "."]
    with subprocess.Popen(command, cwd=place, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        said = re.search(r"http://127.0.0.1:(\d+)", next(line for line in server.stderr if "listening" in line))
        assert said
        assert next(line for line in server.stderr if "is ready" in line)
        reading = threading.Thread(target=server.stderr.read)  # or its log would fill the pipe
        reading.start()
        yield f"localhost:{said[1]}"
        server.terminate()
        reading.join()
    assert server.returncode == 0


SERVED = [(page, *script) for page in PAGES for script in scripts(page)]


@pytest.mark.parametrize(("page", "interpreter", "code"), SERVED, ids=[f"{page.name}-{i}" for i, (page, *_) in enumerate(SERVED)])
def test_every_example_of_a_client_runs_against_the_server(
    page: Path, interpreter: list[str], code: str, address: str, place: Path
) -> None:
    done = run([*interpreter, code.replace(ADDRESS, address)], place, {})
    assert done.returncode == 0, f"{page.name}: {code}\n{done.stderr}"
    assert '"error"' not in done.stdout, done.stdout
    assert done.stdout.strip()


def test_the_pages_have_examples() -> None:
    assert sum(len(list(commands(page))) for page in PAGES) > 12
    assert sum(len(blocks(page, "python")) for page in PAGES) >= 3


def test_generated_pages_are_what_the_code_says() -> None:
    done = subprocess.run([sys.executable, ROOT / "scripts" / "docs.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"
