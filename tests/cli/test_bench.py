"""`diptych bench`: rows and what follows from them, sides that take turns, bad input, and what is drawn."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import psutil
import pytest
from PIL import Image

import tiny_mmproj
from cli.conftest import Diptych, Done
from diptych.bench.results import Results, Row, with_notes

FEW = ("--rounds", "1", "--runs", "2")
NUMBER, COUNT = {"type": "number", "exclusiveMinimum": 0}, {"type": "integer", "exclusiveMinimum": 0}
ROW = {
    "measure": {"enum": ["encode", "prefill", "decode", "first token", "first token, cached"]},
    "picture": {"type": ["string", "null"]},
    "side": {"type": "string"},
    "seconds": {"type": "array", "items": NUMBER, "minItems": 1},
    "tokens": COUNT,
    "load_s": NUMBER,
    "peak_bytes": COUNT,
    "origin": {"type": ["string", "null"]},
    "median_s": NUMBER,
    "quartiles_s": {"type": "array", "items": NUMBER, "minItems": 2, "maxItems": 2},
    "tokens_per_second": NUMBER,
    "speed_ratio": NUMBER,
    "memory_ratio": NUMBER,
}
TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
RESULTS = {
    "diptych_bench": {"const": 1},
    "model": {"type": "string"},
    "machine": {**TEXTS, "required": ["name", "processor", "cores", "memory", "threads"]},
    "versions": {**TEXTS, "required": ["diptych", "llama-cpp-python", "onnxruntime"]},
    "rounds": COUNT,
    "runs": COUNT,
    "rows": {
        "type": "array",
        "items": {"type": "object", "properties": ROW, "required": list(ROW), "additionalProperties": False},
    },
    "failures": {"type": "array"},
    "notes": {"type": "array", "items": {"type": "string"}},
}
SCHEMA = {"type": "object", "properties": RESULTS, "required": list(RESULTS), "additionalProperties": False}


def found(done: Done) -> dict[str, Any]:
    assert done.code == 0, done.err
    out: dict[str, Any] = json.loads(done.out)
    jsonschema.validate(out, SCHEMA)
    return out


def refused(done: Done) -> str:
    """The one line of an error of the user's."""
    assert done.code == 2
    assert done.out == ""
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    return done.err


def row(measure: str, side: str, seconds: list[float], peak: int = 10**8, **given: object) -> dict[str, object]:
    picture = None if side == "text half" else "56×56"
    return {
        "measure": measure, "picture": picture, "side": side, "seconds": seconds, "tokens": 4, "load_s": 0.5,
        "peak_bytes": peak, "origin": None, **given,
    }  # fmt: skip


def results(tmp_path: Path, *rows: dict[str, object], **given: object) -> Path:
    """A file of results with these rows."""
    out = tmp_path / "results.json"
    whole = {
        "diptych_bench": 1, "model": "m", "machine": {"processor": "P", "threads": "1"}, "versions": {"diptych": "0"},
        "rounds": 1, "runs": 2, "rows": rows, "failures": [], "notes": [], **given,
    }  # fmt: skip
    out.write_text(json.dumps(whole))
    return out


def test_both_backends_and_all_measures_have_their_rows(diptych: Diptych, model: Path) -> None:
    done = diptych("bench", model, "--size", "56", "--media-backend", "mtmd,onnx", "--json", "--prompt-tokens", 30, "-n", 5, *FEW)
    told = found(done)
    assert done.err == ""
    rows = told["rows"]
    sides = ["mtmd", "onnx f32"]
    pictured = [(name, side) for name in ("encode", "first token", "first token, cached") for side in sides]
    assert [(r["measure"], r["side"]) for r in rows] == [
        *pictured[:2], ("prefill", "text half"), ("decode", "text half"), *pictured[2:],
    ]  # fmt: skip
    assert {r["tokens"] for r in rows if r["picture"]} == {4}
    assert {r["picture"] for r in rows} == {"56×56", None}
    assert {r["measure"]: r["tokens"] for r in rows if not r["picture"]} == {"prefill": 30, "decode": 5}
    assert all(len(r["seconds"]) == 2 for r in rows)
    assert [r["origin"] for r in rows if r["measure"] == "first token"] == ["encoder", "encoder"]
    assert [r["origin"] for r in rows if r["measure"] == "first token, cached"] == ["cache", "cache"]
    assert all(r["peak_bytes"] > 20e6 for r in rows)
    assert (told["notes"], told["failures"]) == ([], [])


def test_each_combination_of_backend_and_precision_is_a_side_and_libmtmd_is_one(diptych: Diptych, model: Path) -> None:
    flags = ("--media-backend", "onnx,mtmd", "--precision", "f32,int8", "--media-runtime", "onnxruntime", "--size", "84x56")
    told = found(diptych("bench", "--mmproj", model / "mmproj.gguf", *flags, "--json", "--rounds", 1, "--runs", 2))
    assert [(r["measure"], r["side"]) for r in told["rows"]] == [("encode", s) for s in ("onnx f32", "onnx int8", "mtmd")]
    assert {(r["picture"], r["tokens"], len(r["seconds"])) for r in told["rows"]} == {("84×56", 6, 2)}


def test_a_text_half_alone_is_measured_without_pictures(diptych: Diptych, model: Path) -> None:
    told = found(diptych("bench", "-m", model / "text.gguf", "--json", *FEW))
    assert [(r["measure"], r["tokens"]) for r in told["rows"]] == [("prefill", 512), ("decode", 64)]


def test_what_is_wrong_later_loses_nothing_that_was_measured(diptych: Diptych, model: Path) -> None:
    flags = ("-c", 256, "--measure", "encode,first-token", "--rounds", 1, "--runs", 1)
    done = diptych("bench", model, *flags, "--json")
    assert done.code == 2
    (row,) = json.loads(done.out)["rows"]
    assert (row["measure"], row["picture"], row["tokens"]) == ("encode", "504×504", 324)
    assert done.err.startswith("error: first-token, 504×504, auto f32: the prompt has ")


def test_pictures_of_a_size_and_of_ones_own_are_measured(diptych: Diptych, model: Path, picture: Path) -> None:
    flags = ("bench", "--mmproj", model / "mmproj.gguf", "--json", "--rounds", 1, "--runs", 1)
    own = found(diptych(*flags, "--image", picture, "--size", "56"))["rows"]
    assert [(r["picture"], r["tokens"]) for r in own] == [("56×56", 4), ("picture.png", 8)]


def test_an_mmproj_that_only_libmtmd_knows_is_measured(diptych: Diptych, tmp_path: Path) -> None:
    told = found(diptych("bench", "--mmproj", tiny_mmproj.idefics3(tmp_path / "m.gguf"), "--size", "56", "--json", *FEW))
    assert [r["side"] for r in told["rows"]] == ["mtmd"]


def plant(folder: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Have the processes that measure run this code as they start."""
    (folder / "sitecustomize.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(folder))


def test_sides_take_turns_in_processes_of_their_own_and_a_slower_one_shows_in_the_ratio(
    diptych: Diptych, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log"
    plant(
        tmp_path,
        monkeypatch,
        f"""
import os, time
from diptych import backend
opened = backend.open_half
def open_half(files, options, *rest):
    open({str(log)!r}, "a").write(f"{{os.getpid()}} {{options.media_backend}}\\n")
    half = opened(files, options, *rest)
    if options.media_backend == "mtmd":
        encode = half.encode
        half.encode = lambda pieces: (time.sleep(0.2), encode(pieces))[1]
    return half
backend.open_half = open_half
""",
    )
    flags = ("--mmproj", model / "mmproj.gguf", "--size", "56", "--media-backend", "onnx,mtmd", "--rounds", 2, "--runs", 1)
    ours, slow = found(diptych("bench", *flags, "--json"))["rows"]
    assert slow["median_s"] > 0.2
    assert slow["speed_ratio"] == pytest.approx(ours["median_s"] / slow["median_s"])
    assert slow["speed_ratio"] < 0.5
    lines = [line.split() for line in log.read_text().splitlines()]
    assert [side for _, side in lines] == ["onnx", "mtmd", "onnx", "mtmd"]
    assert len({pid for pid, _ in lines}) == 4


@pytest.mark.parametrize(
    ("crash", "said"),
    [
        ("os.kill(os.getpid(), 9)", "killed, most likely as memory ran out"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
    ],
)
def test_a_process_that_dies_is_one_line_and_the_others_go_on(
    diptych: Diptych, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crash: str, said: str
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        f"import os\nfrom diptych.llama import libmtmd\ndef encode(*given):\n    {crash}\nlibmtmd.Mtmd.encode = encode\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    flags = ("--mmproj", model / "mmproj.gguf", "--size", "56", "--media-backend", "mtmd,onnx", "--json", *FEW)
    done = diptych("bench", *flags)
    assert done.code == 2
    assert done.err.startswith("error: encode, 56×56, mtmd: the process ")
    assert said in done.err
    assert done.err.count("\n") == 1
    told = json.loads(done.out)
    assert [r["side"] for r in told["rows"]] == ["onnx f32"]
    assert [f["side"] for f in told["failures"]] == ["mtmd"]


def processes(of: int) -> Iterator[psutil.Process]:
    """The living descendants of a process."""
    try:
        yield from psutil.Process(of).children(recursive=True)
    except psutil.NoSuchProcess:
        return


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left_running_when_it_is_ended(model: Path, sent: signal.Signals) -> None:
    command = [Path(sys.executable).with_name("diptych"), "bench", model, "--size", "504", "--runs", "100000"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ) as bench:
        end = time.monotonic() + 30
        while not (children := list(processes(bench.pid))) and time.monotonic() < end:
            time.sleep(0.05)
        assert children
        time.sleep(0.5)
        bench.send_signal(sent)
        assert bench.wait(10) != 0
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--media-backend", "onnx,cuda"), "--media-backend: 'cuda' is none of auto, onnx, smt, mtmd"),
        (("--precision", "f32,int3"), "--precision: 'int3' is none of auto, f32, bf16, f16, int8"),
        (("--precision", "bf16", "--media-runtime", "onnxruntime"), "does not compute in bf16"),
        (("--measure", "encode,sing"), "--measure: 'sing' is none of encode, text, first-token"),
        (("--size", "57"), "--size 57x57: the model would see it at 56×56; give --size 56x56"),
        (("--size", "56x0"), "--size '56x0' is not a size"),
        (("--size", "large"), "--size 'large' is not a size"),
        (("--image", "missing.png"), "there is no file missing.png"),
        (("--from", "missing.json"), "both"),
        (("--plot", "p.pdf"), "--plot p.pdf: the name must end in .png or .svg"),
        (("--plot", "missing/p.png"), "there is no folder missing"),
    ],
)
def test_bad_input_is_one_line_before_anything_is_measured(
    diptych: Diptych, model: Path, flags: tuple[str, ...], said: str
) -> None:
    line = refused(diptych("bench", model, *flags))
    assert said.replace("both", "leave one out") in line


def test_a_missing_model_half_or_file_is_one_line(diptych: Diptych, model: Path, tmp_path: Path) -> None:
    assert "there is no model to load" in refused(diptych("bench"))
    assert "there is no file" in refused(diptych("bench", "--mmproj", tmp_path / "no.gguf"))
    assert "--measure text needs the text half too" in refused(
        diptych("bench", "--mmproj", model / "mmproj.gguf", "--measure", "text")
    )
    alone = ("bench", "-m", model / "text.gguf")
    assert "--measure first-token needs the media half too" in refused(diptych(*alone, "--measure", "first-token"))
    assert "504 is for the media half, and none is named" in refused(diptych(*alone, "--size", "504"))


def test_a_prompt_that_does_not_fit_is_one_line(diptych: Diptych, model: Path) -> None:
    done = diptych("bench", "-m", model / "text.gguf", "-c", 256, "--prompt-tokens", 2000)
    assert "n_ctx" in refused(done)


def test_what_was_measured_is_shown_again_with_medians_and_ratios(diptych: Diptych, tmp_path: Path) -> None:
    rows = [row("encode", "mtmd", [3.0, 5.0, 4.0, 6.0]), row("encode", "onnx f32", [1.0, 3.0, 2.0], 2 * 10**8)]
    again = found_loosely(diptych("bench", "--from", results(tmp_path, *rows), "--json"))
    first, second = again["rows"]
    assert (first["median_s"], first["quartiles_s"], first["speed_ratio"]) == (4.5, [3.75, 5.25], 1)
    assert (second["median_s"], second["speed_ratio"], second["memory_ratio"]) == (2.0, 2.25, 2)
    table = diptych("bench", "--from", results(tmp_path, *rows)).out
    assert "encode, 56×56, 4 tokens" in table
    assert "2.25×" in table
    assert "200 MB" in table


def found_loosely(done: Done) -> dict[str, Any]:
    """As `found`, of results whose machine is made up."""
    assert done.code == 0, done.err
    out: dict[str, Any] = json.loads(done.out)
    return out


def test_unequal_numbers_of_tokens_and_rows_that_were_not_cached_are_told() -> None:
    def made(measure: str, side: str, tokens: int, origin: str | None) -> Row:
        return Row(measure, "p", side, (1.0,), tokens, 1.0, 1, origin)

    told = with_notes(
        Results(
            "m",
            {},
            {},
            1,
            1,
            (made("encode", "a", 4, None), made("encode", "b", 5, None), made("first token, cached", "a", 4, "encoder")),
        )
    )
    assert any("not the same number of tokens (a 4, b 5)" in note for note in told.notes)
    assert any("the rows came from the encoder" in note for note in told.notes)
    assert len(told.notes) == 2


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_results_are_drawn(diptych: Diptych, tmp_path: Path, suffix: str) -> None:
    rows = [
        row("encode", "mtmd", [7.0, 7.1]), row("encode", "onnx int8 (auto)", [2.0, 2.1], 8 * 10**7),
        row("prefill", "text half", [0.5]), row("decode", "text half", [3.0]),
    ]  # fmt: skip
    out = tmp_path / f"out{suffix}"
    given = ("bench", "--from", results(tmp_path, *rows), "--plot", out)
    done = diptych(*given)
    assert done.code == 0, done.err
    if suffix == ".png":
        with Image.open(out) as drawn:
            pixels = np.asarray(drawn.convert("RGB"))
        assert pixels.shape[1] == 1600
        for colour in (0x00, 0x72, 0xB2), (0xE6, 0x9F, 0x00):
            assert (pixels == colour).all(-1).sum() > 5000  # the bars of both sides
    else:
        assert out.read_text().startswith("<?xml")
    assert "exists" in refused(diptych(*given))
    assert diptych(*given, "--force").code == 0


def test_names_that_mean_something_elsewhere_are_drawn_and_shown_as_they_are(diptych: Diptych, tmp_path: Path) -> None:
    given = results(tmp_path, row("encode", "mtmd", [1.0], picture="$a_{[red]文.png"), model="[bold]$\\frac{")
    done = diptych("bench", "--from", given, "--plot", tmp_path / "out.png")
    assert done.code == 0, done.err
    assert done.err == ""
    assert "$a_{[red]文.png" in done.out
    assert done.out.startswith("[bold]$\\frac{")


def test_the_longer_time_has_the_longer_bar(diptych: Diptych, tmp_path: Path) -> None:
    out = tmp_path / "out.png"
    rows = [row("encode", "mtmd", [4.0]), row("encode", "onnx f32", [1.0])]
    assert diptych("bench", "--from", results(tmp_path, *rows), "--plot", out).code == 0
    with Image.open(out) as drawn:
        pixels = np.asarray(drawn.convert("RGB"))[:, :1000]  # the panels of time
    slow, fast = ((pixels == colour).all(-1).sum(1).max() for colour in ((0x00, 0x72, 0xB2), (0xE6, 0x9F, 0x00)))
    assert slow / fast == pytest.approx(4, rel=0.05)


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "{}", "[" * 100_000, '{"diptych_bench": 2}', '{"diptych_bench": 1}',
        json.dumps({"diptych_bench": 1, "model": "m", "machine": [], "versions": {}, "rounds": 1, "runs": 1}),
    ],
)  # fmt: skip
def test_a_file_that_holds_no_results_is_one_line(diptych: Diptych, tmp_path: Path, text: str) -> None:
    (tmp_path / "r.json").write_text(text)
    assert "r.json" in refused(diptych("bench", "--from", tmp_path / "r.json", "--plot", tmp_path / "p.png"))
    assert not (tmp_path / "p.png").exists()


@pytest.mark.parametrize(
    "damage", [{"seconds": []}, {"seconds": [0]}, {"seconds": ["1"]}, {"seconds": None}, {"peak_bytes": 0}, {"tokens": "many"}]
)
def test_a_damaged_row_is_one_line(diptych: Diptych, tmp_path: Path, damage: dict[str, object]) -> None:
    broken = results(tmp_path, {**row("encode", "mtmd", [1.0]), **damage})
    assert "results.json is damaged" in refused(diptych("bench", "--from", broken))


def test_results_without_a_row_cannot_be_drawn(diptych: Diptych, tmp_path: Path) -> None:
    line = refused(diptych("bench", "--from", results(tmp_path), "--plot", tmp_path / "p.png"))
    assert "nothing to draw" in line


def test_without_matplotlib_it_says_what_to_install(
    diptych: Diptych, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    line = refused(diptych("bench", model, "--plot", tmp_path / "p.png"))
    assert "pip install 'diptych[plot]'" in line
