"""`run -hf`, `list` and `rm` as a user types them, against a hub on loopback."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from cli.conftest import Diptych
from cli.test_bad_input import refused
from diptych import reader
from hub.stand_in import Hub, serving, settle
from splitting import split

NAME = "me/reader-GGUF"
PICTURE = reader.examples()[0]
ASK = ("-p", "Read the text.", "--image", PICTURE, "-n", "4")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with the reader under the name of a quantisation it has not."""
    with serving() as hub:
        settle(monkeypatch, hub, tmp_path)
        text, mmproj = reader.FOLDER / "text.gguf", reader.FOLDER / "mmproj.gguf"
        hub.repo(NAME, {"reader-Q4_K_M.gguf": text, "reader-Q8_0.gguf": text, "mmproj-reader-F16.gguf": mmproj})
        yield hub


class Terminal(io.StringIO):
    """Standard input with somebody at it."""

    def isatty(self) -> bool:
        return True


def test_a_model_of_the_hub_answers(hub: Hub, diptych: Diptych) -> None:
    local = diptych("run", "reader", *ASK)
    first = diptych("run", "-hf", NAME, *ASK)
    assert (first.code, first.out) == (0, local.out)
    assert first.err.startswith(f"downloading {NAME}:Q4_K_M at ")
    hub.asked.clear()
    second = diptych("run", "--hf-repo", NAME, *ASK)
    assert (second.code, second.out, "downloading" in second.err) == (0, local.out, False)
    assert not hub.asked


def test_a_split_model_of_the_hub_answers(hub: Hub, diptych: Diptych, tmp_path: Path) -> None:
    first = split(reader.FOLDER / "text.gguf", tmp_path / "reader-Q8_0", 3)
    files = {p.name: p for p in sorted(first.parent.glob("reader-Q8_0-*.gguf"))}
    hub.repo("me/split", {**files, "mmproj.gguf": reader.FOLDER / "mmproj.gguf"})
    done = diptych("run", "-hf", "me/split:q8_0", *ASK)
    assert (done.code, done.out) == (0, diptych("run", "reader", *ASK).out)


def test_a_deployment_with_onnx_files_runs_out_of_the_cache(hub: Hub, diptych: Diptych, tmp_path: Path) -> None:
    assert diptych("export", "reader", "-o", tmp_path / "made").code == 0
    hub.repo("me/onnx", {p.relative_to(tmp_path / "made").as_posix(): p for p in (tmp_path / "made").rglob("*") if p.is_file()})
    said = diptych("run", "reader", *ASK).out
    for more in (), ("--offline",), ("--mmproj", reader.FOLDER / "mmproj.gguf"):
        done = diptych("run", "-hf", "me/onnx", *more, *ASK)
        assert (done.code, done.out) == (0, said), done.err
    folder = Path(json.loads(diptych("list", "--json").out)["models"][1]["folder"])
    assert next(folder.glob("*.data")).is_symlink(), "ONNX Runtime follows links to the weights"


def test_the_variables_of_the_hub_are_respected_in_a_process_of_its_own(hub: Hub, tmp_path: Path) -> None:
    code = "import sys; from diptych.cli.main import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", code, "run", "-hf", NAME, *map(str, ASK)]
    hub.repos[NAME].token = "hf_mine"
    environment = {**os.environ, "HF_TOKEN": "hf_mine", "HF_HOME": str(tmp_path / "other")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert hub.tokens[-1] == "Bearer hf_mine"
    assert list((tmp_path / "other" / "hub").glob("models--me--reader-GGUF/snapshots/*/reader-Q4_K_M.gguf"))
    hub.asked.clear()
    done = subprocess.run(command, env={**environment, "DIPTYCH_OFFLINE": "1"}, capture_output=True, text=True)
    assert (done.returncode, hub.asked) == (0, [])
    done = subprocess.run(
        command, env={**environment, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}, capture_output=True, text=True
    )
    assert (done.returncode, hub.asked) == (2, [])
    assert "this is offline" in done.stderr


def test_an_mmproj_of_ones_own_takes_the_place_of_the_hubs(hub: Hub, diptych: Diptych, tmp_path: Path) -> None:
    done = diptych("run", "-hf", NAME, "--mmproj", reader.FOLDER / "mmproj.gguf", *ASK)
    assert (done.code, done.out) == (0, diptych("run", "reader", *ASK).out)
    refused(diptych("run", "-hf", NAME, "--mmproj", tmp_path / "no.gguf", *ASK), "no.gguf")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("-hf", "me"), "USER/REPO"),
        (("-hf", "me/nothing"), "has no me/nothing"),
        (("-hf", f"{NAME}:q2_k"), "it has Q4_K_M, Q8_0"),
        (("-hf", NAME, "--hf-revision", "v9"), "no revision v9"),
        (("-hf", NAME, "--offline"), "run it once without --offline"),
        (("-hf", NAME, "-m", "x.gguf"), "both -hf"),
        (("reader", "-hf", NAME), "both -hf"),
        (("reader", "--hf-revision", "main"), "-hf USER/REPO"),
    ],
)
def test_what_cannot_be_is_one_line(hub: Hub, diptych: Diptych, arguments: tuple[str, ...], said: str) -> None:
    refused(diptych("run", *arguments, "-p", "x"), said)
    assert not list(Path(constants.HF_HUB_CACHE).rglob("*.*gguf*"))


def test_a_part_of_a_split_model_is_told_the_first(diptych: Diptych, tmp_path: Path) -> None:
    first = split(reader.FOLDER / "text.gguf", tmp_path / "x", 3)
    second = first.with_name("x-00002-of-00003.gguf")
    refused(diptych("run", "-m", second, "-p", "x"), "part 2 of 3", str(first))
    second.unlink()
    refused(diptych("run", "-m", first, "-p", "x"), "x-00002-of-00003.gguf is not beside it")


def test_the_reader_is_listed_where_nothing_was_downloaded(hub: Hub, diptych: Diptych) -> None:
    done = diptych("list")
    assert (done.code, "reader" in done.out, "8.6" in done.out) == (0, True, True)
    (only,) = json.loads(diptych("list", "--json").out)["models"]
    assert (only["name"], only["complete"], Path(only["text"]).is_file()) == ("reader", True, True)


def test_what_was_downloaded_is_listed(hub: Hub, diptych: Diptych) -> None:
    diptych("run", "-hf", f"{NAME}:Q8_0", *ASK)
    done = diptych("list")
    commit = hub.repos[NAME].commits[0][0]
    for said in f"{NAME}:Q8_0", commit[:12]:
        assert said in done.out
    model = json.loads(diptych("list", "--json").out)["models"][1]
    assert (model["name"], model["quant"], model["revision"], model["complete"]) == (f"{NAME}:Q8_0", "Q8_0", commit, True)
    assert model["size"] == sum((reader.FOLDER / name).stat().st_size for name in ("text.gguf", "mmproj.gguf"))
    assert Path(model["mmproj"]).is_file()


def test_a_download_that_was_broken_off_is_listed_as_such(hub: Hub, diptych: Diptych) -> None:
    hub.faults.cut_after, hub.faults.no_range = 2_000_000, True
    refused_after_a_line = diptych("run", "-hf", NAME, *ASK)
    assert refused_after_a_line.code == 2
    assert refused_after_a_line.err.splitlines()[-1].startswith("error: cannot get ")
    assert "%, not whole" in diptych("list").out
    assert json.loads(diptych("list", "--json").out)["models"][1]["complete"] is False
    hub.faults.cut_after = None
    assert diptych("run", "-hf", NAME, *ASK).code == 0
    assert "not whole" not in diptych("list").out


def test_removing_asks_and_a_no_keeps_it(hub: Hub, diptych: Diptych, monkeypatch: pytest.MonkeyPatch) -> None:
    diptych("run", "-hf", NAME, *ASK)
    monkeypatch.setattr(sys, "stdin", Terminal("n\n"))
    done = diptych("rm", NAME)
    assert (done.code, f"Remove {NAME}:Q4_K_M at" in done.out, "nothing was removed" in done.out) == (0, True, True)
    assert diptych("run", "-hf", NAME, "--offline", *ASK).code == 0
    monkeypatch.setattr(sys, "stdin", Terminal("y\n"))
    done = diptych("rm", NAME)
    assert (done.code, "removed me/reader-GGUF:Q4_K_M, 2 files: 8.6 MB are free again" in done.out) == (0, True)
    refused(diptych("run", "-hf", NAME, "--offline", *ASK), "run it once without --offline")


def test_removing_needs_somebody_to_agree_or_a_flag(hub: Hub, diptych: Diptych, monkeypatch: pytest.MonkeyPatch) -> None:
    diptych("run", "-hf", NAME, *ASK)
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    refused(diptych("rm", NAME), "nobody is here to agree", "-y")
    done = diptych("rm", f"{NAME}:q4_k_m", "-y", "--json")
    freed = sum((reader.FOLDER / name).stat().st_size for name in ("text.gguf", "mmproj.gguf"))
    assert json.loads(done.out) == {"removed": [f"{NAME}:Q4_K_M"], "files": 2, "freed": freed, "kept": []}
    assert len(json.loads(diptych("list", "--json").out)["models"]) == 1


def test_what_cannot_be_removed_is_told(hub: Hub, diptych: Diptych) -> None:
    refused(diptych("rm", "reader", "-y"), "ships with Diptych")
    refused(diptych("rm", NAME, "-y"), "has not downloaded", "nothing")
    diptych("run", "-hf", NAME, *ASK)
    diptych("run", "-hf", f"{NAME}:Q8_0", *ASK)
    refused(diptych("rm", NAME, "-y"), f"{NAME}:Q4_K_M, {NAME}:Q8_0; name one of them")
    done = diptych("rm", f"{NAME}:Q8_0", "-y")
    assert "mmproj-reader-F16.gguf, which something else uses" in done.out
