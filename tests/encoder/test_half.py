"""A family in a session, over mmproj files of every type."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import tiny
from diptych import convert
from diptych.encoder.half import FamilyHalf, open_half
from diptych.encoder.limits import runs
from diptych.errors import FileError, UnknownModel
from diptych.families.base import Rows
from diptych.families.qwen2vl import Qwen2VL
from diptych.options import Options
from diptych.types import Media, MediaChunk, MediaSettings, Piece
from diptych.weights import Weights, open_gguf, write_gguf
from pictures import noise

OUTTYPES = {"f32": 1e-5, "f16": 5e-3, "bf16": 3e-2, "q8_0": 3e-2}  # far from f32: the type's own rounding, over 2 layers


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, and its media half as an mmproj file of each type."""
    out = tiny.qwen2vl(tmp_path_factory.mktemp("half"))
    for outtype in OUTTYPES:
        write_gguf(out / f"{outtype}.gguf", convert.mmproj(convert.read_checkpoint(out), outtype))
    return out


def chunk(half: FamilyHalf | Qwen2VL, width: int, height: int) -> MediaChunk:
    media = Media("image", noise(width, height, seed=width), f"{width}x{height}".encode())
    return half.preprocess(media, MediaSettings())[0]


def encoded(path: Path, options: Options | None = None, sizes: Sequence[tuple[int, int]] = ((84, 56), (140, 196))) -> list[Rows]:
    half = open_half(path, options or Options())
    assert isinstance(half, FamilyHalf)
    out = half.encode([chunk(half, *size).pieces[0] for size in sizes])
    half.close()
    return out


@pytest.mark.parametrize("outtype", OUTTYPES)
def test_a_file_of_any_type_gives_what_its_values_give_in_float32(folder: Path, outtype: str) -> None:
    """Exactly the stored values: those of the file, unpacked by other hands."""
    weights = open_gguf(folder / f"{outtype}.gguf")
    write_gguf(folder / f"{outtype}-unpacked.gguf", unpacked(weights, folder), force=True)
    exact = open_gguf(folder / f"{outtype}-unpacked.gguf")
    assert {t.type.name for t in exact.tensors.values()} == {"F32"}
    for rows, wanted in zip(encoded(folder / f"{outtype}.gguf"), encoded(folder / f"{outtype}-unpacked.gguf"), strict=True):
        np.testing.assert_allclose(rows, wanted, rtol=0, atol=1e-6 * np.abs(wanted).max())


@pytest.mark.parametrize("outtype", OUTTYPES)
def test_a_smaller_type_stays_near_float32(folder: Path, outtype: str) -> None:
    for rows, wanted in zip(encoded(folder / f"{outtype}.gguf"), encoded(folder / "f32.gguf"), strict=True):
        assert np.abs(rows - wanted).max() < OUTTYPES[outtype] * np.abs(wanted).max()


def unpacked(weights: Weights, folder: Path) -> Weights:
    f32 = next(t.type for t in open_gguf(folder / "f32.gguf").tensors.values())
    return Weights(
        weights.metadata,
        {n: replace(t, type=f32, read=t.float32, place=None) for n, t in weights.tensors.items()},
    )


def test_weights_that_lie_in_no_file_serve_as_well(folder: Path) -> None:
    half = FamilyHalf(Qwen2VL(convert.mmproj(convert.read_checkpoint(folder), "f16")), Options())
    (rows,) = half.encode(chunk(half, 84, 56).pieces)
    np.testing.assert_array_equal(rows, encoded(folder / "f16.gguf")[0])


def test_a_link_to_the_file_serves_as_well(folder: Path, tmp_path: Path) -> None:
    link = tmp_path / "mmproj.gguf"
    link.symlink_to(folder / "f16.gguf")
    np.testing.assert_array_equal(encoded(link)[0], encoded(folder / "f16.gguf")[0])


def test_pictures_of_many_sizes_in_one_run_or_in_several_give_the_same_bits(folder: Path) -> None:
    sizes = ((84, 56), (140, 196), (30, 333), (9, 5), (84, 56))
    wanted = [rows for size in sizes for rows in encoded(folder / "f16.gguf", sizes=(size,))]
    for budget in (1, 200, 16384):
        for rows, alone in zip(encoded(folder / "f16.gguf", Options(encode_max_patches=budget), sizes), wanted, strict=True):
            np.testing.assert_array_equal(rows, alone)


@pytest.mark.parametrize(
    ("sizes", "cut"),
    [
        ([4, 4, 4], [[4, 4], [4]]),
        ([12, 4], [[12], [4]]),
        ([4, 12, 4], [[4], [12], [4]]),
        ([5, 5], [[5, 5]]),
        ([10], [[10]]),
        ([], []),
    ],
)
def test_runs_are_cut_at_the_budget_and_a_larger_piece_goes_alone(sizes: list[int], cut: list[list[int]]) -> None:
    pieces = [Piece("image", {}, (1, n, 1), bytes([n])) for n in sizes]
    assert [[p.grid[1] for p in run] for run in runs(pieces, 10)] == cut


def test_warming_up_runs_the_graph(folder: Path) -> None:
    half = open_half(folder / "f16.gguf", Options())
    assert isinstance(half, FamilyHalf)
    half.warm_up()
    half.close()


def bad_projector(weights: Weights) -> Weights:
    return Weights({**weights.metadata, "clip.projector_type": "other"}, weights.tensors)


def bad_width(weights: Weights) -> Weights:
    return Weights({**weights.metadata, "clip.vision.embedding_length": 80}, weights.tensors)


def no_layers(weights: Weights) -> Weights:
    return Weights({k: v for k, v in weights.metadata.items() if "block_count" not in k}, weights.tensors)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (bad_projector, UnknownModel, "'other'.*qwen2vl_merger"),
        (bad_width, FileError, "cannot load the media half"),
        (no_layers, FileError, r"clip\.vision\.block_count"),
    ],
)
def test_a_file_that_does_not_fit_its_metadata_is_refused_on_one_line(
    folder: Path, tmp_path: Path, change: Callable[[Weights], Weights], error: type[Exception], message: str
) -> None:
    write_gguf(tmp_path / "bad.gguf", change(open_gguf(folder / "f16.gguf")))
    with pytest.raises(error, match=message) as caught:
        open_half(tmp_path / "bad.gguf", Options())
    assert "\n" not in str(caught.value)
