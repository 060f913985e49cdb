"""Tensors made of others are what NumPy makes of the whole, and read no more at a time than they need."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from pathlib import Path

import gguf
import ml_dtypes
import numpy as np
import pytest
from gguf import GGMLQuantizationType
from numpy.typing import NDArray
from safetensors.numpy import save_file

from diptych.convert import layout
from diptych.errors import FileError
from diptych.weights import Tensor, open_safetensors

F32, BF16, Q8_0 = (GGMLQuantizationType[name] for name in ("F32", "BF16", "Q8_0"))


def stored(folder: Path, *shapes: tuple[int, ...], seed: int = 0, dtype: type = np.float32) -> list[tuple[Tensor, NDArray]]:
    rng = np.random.default_rng(seed)
    arrays = {f"t{i}": rng.standard_normal(s).astype(dtype) for i, s in enumerate(shapes)}
    save_file(arrays, folder / "model.safetensors")
    return [(open_safetensors(folder).tensors[n], a) for n, a in arrays.items()]


def same(tensor: Tensor, array: NDArray) -> bool:
    read = tensor.read()
    return tensor.shape == read.shape == array.shape and tensor.nbytes == read.nbytes and np.array_equal(read, array)


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_cut_turned_and_reordered_as_numpy_does(tmp_path: Path, dtype: type) -> None:
    (t, a), (cube, b) = stored(tmp_path, (6, 4), (3, 5, 2), dtype=dtype)
    assert same(layout.rows(t, 2, 5), a[2:5])
    assert same(layout.transposed(t), a.T)
    assert same(layout.rows(layout.transposed(t), 1, 3), a.T[1:3])
    assert same(layout.taken(t, np.array([3, 0, 0])), a[[3, 0, 0]])
    assert same(layout.taken(t, np.array([3, 1]), axis=1), a[:, [3, 1]])
    assert same(layout.reshaped(t, (2, 12)), a.reshape(2, 12))
    assert same(layout.stacked([layout.rows(t, i, i + 2) for i in (0, 2)]), np.stack([a[:2], a[2:4]]))
    for part, array in zip(layout.unstacked(cube), b, strict=True):
        assert same(part, array)
    doubled = layout.computed(t, lambda v: v * 2)
    assert doubled.type == F32
    assert same(doubled, a.astype(np.float32) * 2)


def test_a_tensor_that_lies_in_no_file_is_cut_the_same(tmp_path: Path) -> None:
    ((cube, b),) = stored(tmp_path, (3, 5, 2))
    loose = replace(cube, place=None)
    assert same(layout.rows(loose, 1, 3), b[1:3])
    assert all(same(part, array) for part, array in zip(layout.unstacked(loose), b, strict=True))


@pytest.mark.parametrize("type", [F32, BF16, Q8_0])
def test_a_stack_converts_to_what_the_whole_would(tmp_path: Path, type: GGMLQuantizationType) -> None:
    pairs = stored(tmp_path, *[(8, 64)] * 5)
    found = layout.converted(layout.named(layout.stacked([t for t, _ in pairs]), "all"), type)
    assert (found.name, found.shape, found.type) == ("all", (5, 8, 64), type)
    whole = gguf.quants.quantize(np.stack([a for _, a in pairs]), type)
    assert np.array_equal(found.read().view(np.uint8), whole.view(np.uint8))


@pytest.mark.parametrize("fused", [False, True])
def test_beside_the_stack_no_more_than_one_of_its_parts_is_held(tmp_path: Path, fused: bool) -> None:
    """Sixteen parts of 1 MiB, kept apart or in one tensor, to be turned and converted to half their size."""
    n, side = 16, 512
    if fused:
        ((cube, _),) = stored(tmp_path, (n, side, side))
        parts = layout.unstacked(cube)
    else:
        parts = [t for t, _ in stored(tmp_path, *[(side, side)] * n)]
    found = layout.converted(layout.stacked([layout.transposed(p) for p in parts]), BF16)
    tracemalloc.start()
    array = found.read()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < array.nbytes + 4 * (1 << 20)


def test_parts_that_differ_are_named(tmp_path: Path) -> None:
    (a, _), (b, _) = stored(tmp_path, (2, 3), (2, 4))
    with pytest.raises(FileError, match=r"tensor t1 is F32 \(2, 4\), and t0 beside it F32 \(2, 3\)"):
        layout.stacked([a, b])


@pytest.mark.parametrize(("wanted", "message"), [((2, 4), r"\(2, 4\)"), ((2,), r"\(2\)"), ((2, None, 3), r"\(2, any, 3\)")])
def test_a_shape_that_is_not_expected_is_named(tmp_path: Path, wanted: tuple[int | None, ...], message: str) -> None:
    ((t, _),) = stored(tmp_path, (2, 3))
    assert layout.expect_shape(t, 2, None) == (2, 3)
    with pytest.raises(FileError, match=rf"tensor t0 has the shape \(2, 3\), and config.json wants {message}"):
        layout.expect_shape(t, *wanted)
