"""`diptych show` and what `diptych export` writes: told before anything is loaded, and checked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import onnx_files
from cli.conftest import Diptych
from diptych import reader


@pytest.fixture(scope="module")
def deployment(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from diptych import export

    folder = tmp_path_factory.mktemp("shown") / "out"
    export.deploy(export.open_source(model), folder, sizes=[(112, 84), (84, 84)])
    return folder


def test_the_reader_is_shown(diptych: Diptych) -> None:
    done = diptych("show", "reader")
    assert done.code == 0, done.err
    for words in ("Text half", "qwen2vl", "Qwen2VL", "qwen2vl_merger", "256", "the halves fit"):
        assert words in done.out


def test_a_deployment_is_shown_as_json(diptych: Diptych, deployment: Path) -> None:
    done = diptych("show", deployment, "--json")
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert told["misfit"] is None
    assert (told["text"]["architecture"], told["text"]["n_embd"], told["text"]["n_pos"]) == ("qwen2vl", 128, 4)
    assert (told["media"]["family"], told["media"]["n_embd"], told["media"]["n_pos"]) == ("Qwen2VL", 128, 4)
    graphs = [(g["file"], g["size"], g["tokens"], g["input"]) for g in told["media"]["graphs"]]
    assert graphs == [
        ("encoder-112x84.onnx", [112, 84], 12, "float32 (48, 1176)"),
        ("encoder-84x84.onnx", [84, 84], 9, "float32 (36, 1176)"),
    ]
    assert set(told["files"]) == {"text.gguf", "encoder-112x84.onnx", "encoder-84x84.onnx", "encoder.data"}


def test_check_finds_what_is_not_as_it_was(diptych: Diptych, deployment: Path) -> None:
    done = diptych("show", deployment, "--check")
    assert done.code == 0, done.err
    assert done.out.count("as exported") == 4
    data = (deployment / "encoder.data").read_bytes()
    spoilt = {"changed": data[:5000] + b"x" + data[5001:], "bytes where": data + b"x", "missing": b""}
    for words, content in spoilt.items():
        (deployment / "encoder.data").write_bytes(content)
        if not content:
            (deployment / "encoder.data").rename(deployment / "gone")
        done = diptych("show", deployment, "--check")
        assert done.code == 2
        assert words in done.err or "not beside it" in done.err
        assert "encoder.data" in done.err
        assert done.err.count("\n") == 1
    (deployment / "encoder.data").write_bytes(data)
    done = diptych("show", "reader", "--check")
    assert (done.code, "no hashes" in done.err) == (2, True)


def test_halves_that_do_not_fit_are_told_and_fail(diptych: Diptych, model: Path) -> None:
    done = diptych("show", "-m", model / "text.gguf", "--mmproj", reader.FOLDER / "mmproj.gguf")
    assert done.code == 2
    assert "the halves do not fit" in done.out
    assert "256" in done.err
    assert "128" in done.err


def test_an_smt_directory_and_a_half_alone_are_shown(diptych: Diptych, model: Path, tmp_path: Path) -> None:
    folder = onnx_files.smt(
        tmp_path, "Qwen3VL", "v.onnx", ep_config__SPACEMIT_EP_INTRA_THREAD_NUM="4", audio_model={"d_model": 3}
    )
    onnx_files.pixels(folder / "v.onnx", (64, 96), 32)
    (folder / "text.gguf").unlink()
    done = diptych("show", "--smt-config-dir", folder)
    assert done.code == 2
    assert "text_model.model_path" in done.err
    done = diptych("show", "--smt-config-dir", folder, "-m", model / "text.gguf")
    assert done.code == 2
    for words in ("SMT, Qwen3VL", "64×96", "SPACEMIT_EP_INTRA_THREAD_NUM"):
        assert words in done.out
    assert "width 16" in done.err
    alone = diptych("show", "--mmproj", model / "mmproj.gguf")
    assert alone.code == 0
    assert "none" in alone.out


def test_a_model_of_no_family_is_shown_as_far_as_it_is_known(diptych: Diptych, model: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.gguf"
    other.write_bytes((model / "mmproj.gguf").read_bytes().replace(b"qwen2vl_merger", b"qwen9vl_merger"))
    done = diptych("show", "-m", model / "text.gguf", "--mmproj", other)
    assert done.code == 0, done.err
    assert "qwen9vl_merger" in done.out


def test_what_is_exported_from_the_command_line_runs(diptych: Diptych, checkpoint: Path, picture: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = diptych("export", checkpoint, "-o", out, "--size", "112x84", "--any-size", "--outtype", "f32")
    assert done.code == 0, done.err
    assert [Path(line.split("  ")[0]).name for line in done.out.splitlines()] == [
        "text.gguf", "encoder-112x84.onnx", "encoder.onnx", "encoder.data", "config.json",
    ]  # fmt: skip
    done = diptych("run", out, "-p", "x", "--image", picture, "-n", 3, "-c", 512, "--json")
    assert done.code == 0, done.err
    done = diptych("encode", out, "--image", picture, "-o", tmp_path / "e.npz", "--json")
    assert json.loads(done.out)["images"][0]["tokens"] in (8, 12)
    done = diptych("encode", "--smt-config-dir", out, "--image", picture, "-o", tmp_path / "f.npz", "--json")
    assert done.code == 0, done.err
    done = diptych("run", out, "-p", "x", "--media-backend", "mtmd", "--image", picture)
    assert done.code == 2
    assert "mtmd needs an mmproj" in done.err


def test_a_configuration_may_name_files_elsewhere_only_when_allowed(diptych: Diptych, model: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        json.dumps(
            {"text_model": {"model_path": str(model / "text.gguf")}, "vision_model": {"model_path": str(model / "mmproj.gguf")}}
        )
    )
    done = diptych("show", tmp_path)
    assert done.code == 2
    assert "--allow-absolute-paths" in done.err
    for command in (("show",), ("run", "-p", "x", "-n", 1, "-c", 256)):
        assert diptych(command[0], tmp_path, *command[1:], "--allow-absolute-paths").code == 0
