"""Verification on a tiny checkpoint: whole, and with faults planted in either half."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny
import tiny_dotsocr
import tiny_paddleocr
import tiny_qwen3
import tiny_qwen25
from diptych import convert, export
from diptych.backend import open_half
from diptych.deploy import Deployment, find
from diptych.errors import FileError, InputError
from diptych.families.base import MediaHalf
from diptych.families.packed import Packed
from diptych.llama.model import TextModel
from diptych.options import Options
from diptych.positions import Positions, mrope
from diptych.types import Media, MediaChunk
from diptych.verify import references
from diptych.verify.lines import Line
from diptych.verify.references import bounds_of, made_pictures, verify
from diptych.weights import open_gguf, write_gguf
from families.check import media, swapped
from pictures import noise

pytestmark = pytest.mark.parity
OTHERS: dict[str, Callable[[Path], Any]] = {  # rows with taps, a thinker, rows of patches that transformers has in another order
    "qwen3vl": lambda folder: tiny_qwen3.write(folder, tiny_qwen3.Qwen3()),
    "qwen25omni": lambda folder: tiny_qwen25.thinker(folder, tiny_qwen25.Qwen25VL(window=112, max_pixels=224 * 224)),
    "paddleocr": lambda folder: tiny_paddleocr.paddleocr(folder, tiny_paddleocr.PaddleOCR(max_pixels=224 * 224)),
}
PICTURES = {"wide": media(noise(140, 84)), "odd": media(noise(117, 191, seed=1))}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("verify")
    tiny.qwen2vl(out / "checkpoint", tiny.Qwen2VL(max_pixels=224 * 224))
    convert.convert(out / "checkpoint", out / "good", outtype="f32")
    return out


def lines(folder: Path, halves: str = "good", pictures: dict[str, Media] = PICTURES) -> list[Line]:
    return list(verify(find(folder / halves), pictures, tiny.EXACT, checkpoint=folder / "checkpoint"))


def broken(found: list[Line]) -> set[tuple[str, str]]:
    return {(line.against, line.what) for line in found if line.ok is False}


def test_a_sound_conversion_breaks_no_bound(folder: Path) -> None:
    found = lines(folder)
    assert not broken(found)
    assert {(line.picture, line.against, line.what) for line in found} == {
        (picture, against, what)
        for picture in PICTURES
        for against, compared in (("libmtmd", ()), ("transformers", ("pixels",)))
        for what in (*compared, "tokens", "positions", "embeddings", "answer")
    }


def test_it_compares_in_f32_unless_another_precision_is_asked_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`auto` would take what is fastest; whoever verifies a conversion wants to know of the conversion."""
    opened: list[str] = []

    def told(deployment: Deployment, options: Options, text: TextModel | None = None) -> MediaHalf:
        half = open_half(deployment, options, text)
        opened.append(half.arithmetic["precision"])
        return half

    monkeypatch.setattr(references, "open_half", told)
    found = {}
    for precision in ("auto", "f32", "int8"):
        options = tiny.EXACT.model_copy(update={"precision": precision, "media_runtime": "onnxruntime"})
        lines = list(verify(Deployment(None, folder / "good" / "mmproj.gguf"), {"wide": PICTURES["wide"]}, options))
        assert not broken(lines)
        found[precision] = [line for line in lines if line.what == "embeddings"]
    assert opened[::2] == ["f32", "f32", "int8"]
    assert found["auto"] == found["f32"]
    assert found["int8"] != found["f32"]


@pytest.mark.parametrize("name", OTHERS)
def test_checkpoints_of_other_families_are_read_too(name: str, tmp_path: Path) -> None:
    OTHERS[name](tmp_path / "checkpoint")
    convert.convert(tmp_path / "checkpoint", tmp_path / "good", outtype="f32")
    found = lines(tmp_path)
    assert not broken(found)
    assert len(found) == 2 * 9


def test_a_checkpoint_that_transformers_does_not_know_is_told_in_one_line(tmp_path: Path) -> None:
    tiny_dotsocr.dotsocr(tmp_path / "checkpoint", tiny_dotsocr.DotsOCR())
    convert.convert(tmp_path / "checkpoint", tmp_path / "good", outtype="f32")
    with pytest.raises(FileError, match=r"transformers cannot load .*dots_ocr"):
        lines(tmp_path)


@pytest.mark.parametrize(("backend", "why"), [("mtmd", "libmtmd as its media half"), ("onnx", "no mmproj")])
def test_without_a_reference_there_is_nothing_to_verify(folder: Path, tmp_path: Path, backend: str, why: str) -> None:
    files = Deployment(None, folder / "good" / "mmproj.gguf")
    if backend == "onnx":
        export.deploy(export.open_source(folder / "good" / "mmproj.gguf"), tmp_path / "onnx")
        files = find(tmp_path / "onnx")
    with pytest.raises(InputError, match=why):
        list(verify(files, PICTURES, tiny.EXACT.model_copy(update={"media_backend": backend})))


def test_a_media_half_alone_is_compared_in_what_it_has(folder: Path) -> None:
    found = list(verify(Deployment(None, folder / "good" / "mmproj.gguf"), made_pictures(), tiny.EXACT))
    assert not broken(found)
    assert {line.what for line in found} == {"tokens", "positions", "embeddings"}


@pytest.mark.parametrize(
    ("half", "one", "two", "wrong"),
    [
        ("mmproj.gguf", "v.blk.0.attn_q.weight", "v.blk.0.attn_k.weight", ("transformers", "embeddings")),
        ("text.gguf", "blk.0.ffn_gate.weight", "blk.0.ffn_up.weight", ("transformers", "answer")),
    ],
)
def test_a_swapped_weight_is_caught(folder: Path, half: str, one: str, two: str, wrong: tuple[str, str]) -> None:
    (folder / half).mkdir()
    for name in ("mmproj.gguf", "text.gguf"):
        weights = open_gguf(folder / "good" / name)
        write_gguf(folder / half / name, swapped(weights, one, two) if name == half else weights)
    assert wrong in broken(lines(folder, half))


def test_a_shifted_position_is_caught(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def shifted(self: Packed, chunk: MediaChunk, start: int) -> tuple[Positions, int]:
        planes, after = mrope(chunk, start)
        planes[2, -1] += 1
        return planes, after + 1

    monkeypatch.setattr(Packed, "positions", shifted)
    assert {("libmtmd", "positions"), ("transformers", "positions")} <= broken(lines(folder))


def test_bounds_follow_the_types_of_the_files(folder: Path) -> None:
    exact = bounds_of(folder / "good" / "mmproj.gguf", folder / "good" / "text.gguf")
    assert (exact.transformers, exact.libmtmd, exact.lead) == (1e-5, 2e-3, 1e-3)
    convert.convert(folder / "checkpoint", folder / "f16", outtype="f16")
    mixed = bounds_of(folder / "good" / "mmproj.gguf", folder / "f16" / "text.gguf")
    assert (mixed.lead or 0) > 1e-3
    assert not broken(lines(folder, "f16"))


def test_pictures_are_made_alike_each_time() -> None:
    one, two = made_pictures(), made_pictures()
    assert [m.key for m in one.values()] == [m.key for m in two.values()]
    assert all(m.data.shape[:2] != (0, 0) and np.ptp(m.data) > 200 for m in one.values())
