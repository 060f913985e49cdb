"""Whole deployments: what is written, what binds it, and that it runs as what it was made of."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onnx_files
import tiny
from diptych import Engine, convert, deploy, export, reader
from diptych.backend import open_half
from diptych.encoder.foreign import ForeignHalf
from diptych.errors import DiptychError, InputError, MismatchedHalves, OutputError
from diptych.families.base import Rows
from diptych.families.qwen2vl import Qwen2VL
from diptych.options import Options
from diptych.types import Media, MediaChunk, MediaSettings
from diptych.weights import Weights, open_gguf, write_gguf
from diptych.weights.tensor import in_memory
from pictures import encoded, noise
from splitting import split

EXAMPLES = sorted((reader.FOLDER / "examples").glob("*.png"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.qwen2vl(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def model(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "model"
    convert.convert(checkpoint, folder, outtype="f32")
    return folder


def made(source: Path, folder: Path, outtype: str | None = None, **how: Any) -> list[str]:
    return [p.name for p in export.deploy(export.open_source(source, outtype=outtype), folder, **how)]


def answers(*where: Any, **files: Any) -> list[str]:
    """Greedy answers about two pictures."""
    pictures = [encoded(noise(*size, seed=size[0])) for size in ((84, 56), (112, 140))]
    with Engine.load(*where, options=tiny.EXACT, **files) as engine:
        return [engine.answer("Describe it.", [p], max_tokens=12, temperature=0)[0] for p in pictures]


def test_a_checkpoint_becomes_a_deployment_that_answers_as_its_converted_halves(
    checkpoint: Path, model: Path, tmp_path: Path
) -> None:
    assert made(checkpoint, tmp_path / "a", "f32") == ["text.gguf", "encoder.onnx", "encoder.data", "config.json"]
    assert made(model, tmp_path / "b", gguf=True) == ["text.gguf", "mmproj.gguf", "config.json"]
    wanted = answers(model)
    assert answers(tmp_path / "a") == wanted
    assert answers(tmp_path / "b") == wanted
    assert (tmp_path / "a" / "text.gguf").read_bytes() == (model / "text.gguf").read_bytes()


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda p: p.stem)
def test_the_exported_reader_answers_as_the_shipped_one(example: Path, readers: tuple[Engine, Engine]) -> None:
    shipped, exported = (e.answer("Read the text.", [example], temperature=0)[0] for e in readers)
    assert exported == shipped
    assert shipped


@pytest.fixture(scope="module")
def readers(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("reader")
    made(Path("reader"), folder)
    options = Options(threads=1)
    with Engine.load("reader", options=options) as shipped, Engine.load(folder, options=options) as exported:
        assert isinstance(exported._half, ForeignHalf)
        yield shipped, exported


def rows(half: Any, size: tuple[int, int], settings: MediaSettings) -> tuple[MediaChunk, Rows]:
    (chunk,) = half.preprocess(Media("image", noise(*size), str(size).encode()), settings)
    return chunk, half.join(chunk, half.encode(chunk.pieces))


@pytest.mark.parametrize("outtype", ["f32", "f16", "bf16", "q8_0"])
def test_a_ladder_gives_the_rows_of_the_family_at_its_sizes(checkpoint: Path, tmp_path: Path, outtype: str) -> None:
    write_gguf(tmp_path / "mmproj.gguf", convert.mmproj(convert.read_checkpoint(checkpoint), outtype))
    sizes = [(56, 84), (756, 336), (112, 112)]
    assert made(tmp_path / "mmproj.gguf", tmp_path / "out", sizes=sizes)[-1] == "config.json"
    ours, found = open_half(tmp_path / "mmproj.gguf", Options(threads=1)), deploy.find(tmp_path / "out")
    ladder = open_half(found, Options(threads=1))
    for size in ((60, 90), (700, 300), (400, 400)):
        chunk, got = rows(ladder, size, MediaSettings())
        assert chunk.used in sizes
        wanted_chunk, wanted = rows(ours, size, MediaSettings(sizes=(chunk.used,)))
        np.testing.assert_allclose(got, wanted, rtol=0, atol=5e-6 * np.abs(wanted).max())
        np.testing.assert_array_equal(ladder.positions(chunk, 7)[0], ours.positions(wanted_chunk, 7)[0])
        assert chunk.key == wanted_chunk.key


def test_the_configuration_says_all_that_binds_the_halves(model: Path, tmp_path: Path) -> None:
    made(model, tmp_path, sizes=[(504, 252), (252, 252)], any_size=True)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == ["Qwen2VLForConditionalGeneration"]
    assert config["text_model"] == {"model_path": "text.gguf", "hidden_size": 128}
    assert [m["model_path"] for m in config["vision_model"]["models"]] == [
        "encoder-504x252.onnx", "encoder-252x252.onnx", "encoder.onnx",
    ]  # fmt: skip
    assert [m.get("tokens") for m in config["vision_model"]["models"]] == [162, 81, None]
    assert config["vision_model"]["input_width"] == 504
    ours = config["diptych"]
    assert (ours["format"], ours["family"], ours["projector"], ours["n_embd"], ours["n_pos"]) == (
        1, "Qwen2VL", "qwen2vl_merger", 128, 4,
    )  # fmt: skip
    assert set(ours["files"]) == {p.name for p in tmp_path.iterdir()} - {"config.json"}
    for name, info in ours["files"].items():
        data = (tmp_path / name).read_bytes()
        assert info == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def test_a_family_built_from_the_configuration_preprocesses_as_from_its_weights(model: Path, tmp_path: Path) -> None:
    made(model / "mmproj.gguf", tmp_path)
    found = deploy.find(tmp_path)
    assert found.text is None
    half, ours = open_half(found, Options(threads=1)), Qwen2VL(open_gguf(model / "mmproj.gguf"))
    assert isinstance(half, ForeignHalf)
    family = half._pictures
    assert isinstance(family, Qwen2VL)
    assert family.hp == ours.hp
    for size in ((84, 56), (333, 90)):
        media = Media("image", noise(*size), b"key")
        (one,), (two,) = (f.preprocess(media, MediaSettings()) for f in (family, ours))
        assert (one.key, one.grid, one.used) == (two.key, two.grid, two.used)
        for (name, a), (other, b) in zip(family.feed(one.pieces).items(), ours.feed(two.pieces).items(), strict=True):
            assert name == other
            np.testing.assert_array_equal(a, b)


def test_learned_rows_travel_with_the_graphs(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    newline = np.arange(128, dtype=np.float32)
    weights = open_gguf(model / "mmproj.gguf")
    write_gguf(tmp_path / "m.gguf", Weights(weights.metadata, {**weights.tensors, "newline": in_memory("newline", newline)}))
    monkeypatch.setattr(Qwen2VL, "learned", ("newline",))
    assert "learned.gguf" in made(tmp_path / "m.gguf", tmp_path / "out")
    half = open_half(deploy.find(tmp_path / "out"), Options(threads=1))
    assert isinstance(half, ForeignHalf)
    assert isinstance(half._pictures, Qwen2VL)
    np.testing.assert_array_equal(half._pictures.weights.tensors["newline"].float32(), newline)
    with pytest.raises(DiptychError, match=r"mm\.0\.weight are not here"):
        half._pictures.weights.tensors["mm.0.weight"].float32()


def test_files_are_linked_or_left_where_they_lie(model: Path, tmp_path: Path) -> None:
    made(model, tmp_path / "a", link=True)
    assert (tmp_path / "a" / "text.gguf").samefile(model / "text.gguf")
    made(model, tmp_path / "a", link=True, force=True)
    before = os.stat(tmp_path / "a" / "text.gguf").st_ino
    source = export.open_source(model=tmp_path / "a" / "text.gguf", mmproj=model / "mmproj.gguf")
    export.deploy(source, tmp_path / "a", sizes=[(56, 56)], force=True)
    assert os.stat(tmp_path / "a" / "text.gguf").st_ino == before
    found = deploy.find(tmp_path / "a")
    assert found.onnx
    assert [e.size for e in found.onnx.encoders] == [(56, 56)]


def test_an_exported_directory_exports_again(model: Path, tmp_path: Path) -> None:
    made(model, tmp_path / "a", gguf=True)
    made(tmp_path / "a", tmp_path / "b")
    assert answers(tmp_path / "b") == answers(model)
    with pytest.raises(InputError, match="has no mmproj to export"):
        made(tmp_path / "b", tmp_path / "c")


def test_progress_ends_at_the_whole(model: Path, tmp_path: Path) -> None:
    for how in ({}, {"gguf": True}, {"link": True}, {"sizes": [(56, 56), (84, 84)]}):
        seen: list[tuple[int, int]] = []
        made(model, tmp_path / str(how), progress=lambda done, total, seen=seen: seen.append((done, total)), **how)
        assert seen == sorted(seen)
        assert seen[-1][0] == seen[-1][1]


@pytest.mark.parametrize("at", [1, 3, 10])
def test_an_export_that_is_interrupted_leaves_nothing(model: Path, tmp_path: Path, at: int) -> None:
    calls = 0

    def stop(done: int, total: int) -> None:
        nonlocal calls
        calls += 1
        if calls == at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        made(model, tmp_path / "out", progress=stop)
    assert not list(tmp_path.iterdir())


def test_what_stands_there_stays_unless_told_otherwise(model: Path, tmp_path: Path) -> None:
    for name in ("text.gguf", "encoder.onnx", "encoder.data", "config.json"):
        (tmp_path / name).write_bytes(b"mine")
        with pytest.raises(OutputError, match=f"{name} exists"):
            made(model, tmp_path)
        assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"mine"]
        (tmp_path / name).unlink()


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda m: export.open_source(), "name what to export"),
        (lambda m: export.open_source(m, mmproj=m / "mmproj.gguf"), "name what to export"),
        (lambda m: export.open_source(m, outtype="f16"), "--outtype is for checkpoints"),
        (lambda m: export.open_source(m / "text.gguf"), "no image encoder"),
        (lambda m: export.open_source(mmproj=m / "mmproj.gguf", model=m / "mmproj.gguf"), "no text half"),
        (lambda m: export.open_source(m / "gone.gguf"), "gone.gguf"),
        (lambda m: export.deploy(export.open_source(m), m / "x", gguf=True, sizes=[(56, 56)]), "--size makes ONNX"),
        (lambda m: export.deploy(export.open_source(m), m / "x", sizes=[(57, 56)]), "multiples of 28"),
    ],
)
def test_what_cannot_be_exported_is_told(model: Path, ask: Callable[[Path], Any], words: str) -> None:
    with pytest.raises(DiptychError, match=words) as caught:
        ask(model)
    assert "\n" not in str(caught.value)
    assert not (model / "x").exists()


def test_halves_that_do_not_fit_are_not_bound(model: Path, tmp_path: Path) -> None:
    with pytest.raises(MismatchedHalves, match=r"256.*128"):
        export.open_source(mmproj=reader.FOLDER / "mmproj.gguf", model=model / "text.gguf")
    weights = open_gguf(model / "text.gguf")
    renamed = {k.replace("qwen2vl", "qwen2"): v for k, v in weights.metadata.items()}
    write_gguf(tmp_path / "one.gguf", replace(weights, metadata={**renamed, "general.architecture": "qwen2"}))
    with pytest.raises(MismatchedHalves, match="4 positions a row, and the text half takes 1"):
        export.open_source(mmproj=model / "mmproj.gguf", model=tmp_path / "one.gguf")


def test_an_encoder_of_another_width_is_refused_before_a_picture_comes(model: Path, tmp_path: Path) -> None:
    folder = onnx_files.smt(tmp_path, "Qwen3VL", "v.onnx")
    onnx_files.pixels(folder / "v.onnx", (64, 64), 32)
    with pytest.raises(MismatchedHalves, match=r"width 16, and .*width 128"):
        Engine.load(folder, model=model / "text.gguf", options=Options(threads=1))


def test_an_smt_directory_answers_with_the_text_half_that_is_given(model: Path, tmp_path: Path) -> None:
    folder = onnx_files.smt(tmp_path, "Qwen3VL", "v.onnx", text_model__hidden_size=128)
    onnx_files.pixels(folder / "v.onnx", (64, 96), 32, width=128)
    assert len(answers(folder, model=model / "text.gguf")) == 2


def test_with_both_an_mmproj_and_onnx_files_the_files_run_unless_mtmd_is_asked_for(model: Path, tmp_path: Path) -> None:
    made(model, tmp_path)
    both = deploy.find(smt=tmp_path, mmproj=model / "mmproj.gguf", model=model / "text.gguf")
    assert (both.text, both.mmproj) == (model / "text.gguf", model / "mmproj.gguf")
    for backend in ("auto", "onnx", "smt"):
        half = open_half(both, Options(threads=1, media_backend=backend))
        assert isinstance(half, ForeignHalf)
        half.close()
    half = open_half(both, Options(threads=1, media_backend="mtmd"))
    assert half.backend == "mtmd"
    half.close()
    with pytest.raises(InputError, match="mtmd needs an mmproj"):
        open_half(deploy.find(tmp_path), Options(media_backend="mtmd"))


def test_a_text_half_in_parts_comes_along_whole(model: Path, tmp_path: Path) -> None:
    first = split(model / "text.gguf", tmp_path / "parts", 3)
    source = export.open_source(model=first, mmproj=model / "mmproj.gguf")
    names = [p.name for p in export.deploy(source, tmp_path / "out")]
    assert len([n for n in names if "-of-00003" in n]) == 3
    assert answers(tmp_path / "out") == answers(model)


def test_links_into_a_store_of_blobs_are_followed(model: Path, tmp_path: Path) -> None:
    """As the hub's cache has them: every file under another name elsewhere."""
    made(model, tmp_path / "out", sizes=[(56, 84), (84, 56)])
    snapshot, blobs = tmp_path / "snapshots" / "a", tmp_path / "blobs"
    for folder in (snapshot, blobs):
        folder.mkdir(parents=True)
    for i, file in enumerate(sorted((tmp_path / "out").iterdir())):
        file.rename(blobs / f"{i:02}")
        (snapshot / file.name).symlink_to(f"../../blobs/{i:02}")
    half = open_half(deploy.find(snapshot), Options(threads=1))
    for size in ((56, 84), (84, 56)):
        assert rows(half, size, MediaSettings())[1].shape == (6, 128)
