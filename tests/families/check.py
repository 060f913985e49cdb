"""What every family must hold, checked on a tiny random checkpoint: a family's test gives the checkpoint and a reference.

check_family(convert.mmproj(convert.read_checkpoint(folder), "f32"), sizes, reference, agreeing=…)
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray

from diptych import deploy, export, families
from diptych.backend import open_half
from diptych.encoder.half import FamilyHalf
from diptych.encoder.half import encoded as rows_together
from diptych.encoder.kernels import ATTENTION
from diptych.encoder.precision import BF16, Choice, Precision, this_machine
from diptych.errors import FileError
from diptych.families.base import Family, MediaHalf, Rows, projector_type
from diptych.graph.graph import Graph
from diptych.graph.unfused import unfused
from diptych.options import Options
from diptych.types import Media, MediaChunk, MediaSettings, Piece
from diptych.weights import Weights, write_gguf
from mtmd import Mtmd
from pictures import gradient, noise

Pixels = NDArray[np.uint8]
Size = tuple[int, int]  # (width, height) in pixels

PIXELS = 1e-6  # absolute: what the graph is fed against the Hugging Face processor
TRANSFORMERS = 1e-5  # relative to the largest value: f32 on both sides, sums in another order
LIBMTMD = 2e-3  # relative to the largest value: f16 tables for GELU and attention there


REST: Precision = "bf16" if BF16 & this_machine().features else "f32"
CHOICES = (
    Choice("f32", "openvino", "f32", ""),
    *([Choice("bf16", "openvino", "bf16", "")] if REST == "bf16" else []),
    Choice("int8", "openvino", REST, ""),
    Choice("int8", "onnxruntime", "f32", ""),
    *([Choice("int8", "kernels", "f32", "")] if this_machine().runs_kernels else []),
    *([Choice("int8", "kernels", "bf16", "")] if this_machine().runs_kernels and ATTENTION in this_machine().features else []),
)
GATES = {"f32": 1 - 1e-6, "bf16": 0.9998, "int8": 0.999}  # least cosine of any row with that in f32


@dataclass(frozen=True)
class Expected:
    """What the reference makes of a picture: what its encoder is fed, for each piece, and the rows of the picture."""

    inputs: Sequence[Mapping[str, NDArray[Any]]]
    rows: Rows


Reference = Callable[[Pixels], Expected]


def check_family(
    weights: Weights,
    sizes: Sequence[Size],
    reference: Reference,
    *,
    agreeing: Sequence[Size] = (),
    gates: Mapping[str, float] | None = None,
) -> None:
    """Every check there is, on noise of some sizes. `agreeing` are those that libmtmd prepares as the Hugging Face processor."""
    half = half_of(weights)
    check_weights(half.family)
    pictures = [noise(*size, seed=i) for i, size in enumerate(sizes)]
    chunks = [half.preprocess(media(p), MediaSettings()) for p in pictures]
    for picture, made in zip(pictures, chunks, strict=True):
        check_reference(half, made, reference(picture))
        check_layout(half, made)
    check_batches(half, [c for made in chunks for c in made])
    check_positions(half, [c for made in chunks for c in made])
    check_keys(half, pictures[0])
    check_precisions(half, [c for made in chunks for c in made], {**GATES, **(gates or {})})
    half.close()
    check_libmtmd(weights, [noise(*size) for size in agreeing])


def check_precisions(half: FamilyHalf, chunks: Sequence[MediaChunk], gates: Mapping[str, float] = GATES) -> None:
    """In another arithmetic, whatever computes it, no row turns further from that in f32 than its gate allows.

    All pieces go in at once, so that lattices of several sizes meet.
    """
    expected = rows_together(half, chunks)
    for choice in CHOICES:
        with closing(FamilyHalf(half.family, Options(), choice=choice)) as other:
            found = rows_together(other, [*chunks, *chunks[:1]])
        cosine = least_cosine([*expected, expected[0]], found)
        assert cosine >= gates[choice.precision], (choice, cosine)


def least_cosine(expected: Sequence[Rows], found: Sequence[Rows]) -> float:
    """The cosine of the row that turned furthest."""
    pairs = list(zip(expected, found, strict=True))
    assert all(a.shape == b.shape for a, b in pairs)
    return min(float(((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min()) for a, b in pairs)


def check_weights(family: Family) -> None:
    """The graph builds, dynamic, and reads every tensor of the file, those that are fused in parts."""
    read = set(family.learned)
    for kind in family.piece_kinds:
        graph = Graph(family.weights)
        family.graph(graph, kind)
        read |= {stored.removesuffix(".scale") for stored in graph.stored}
    assert read == set(unfused(family.weights.tensors)), "the graphs do not read just the tensors of the file"


def check_reference(half: MediaHalf, chunks: Sequence[MediaChunk], expected: Expected) -> None:
    """The graph is fed what the reference is, and gives its rows."""
    pieces = [p for c in chunks for p in c.pieces]
    assert len(pieces) == len(expected.inputs)
    for piece, inputs in zip(pieces, expected.inputs, strict=True):
        for name, wanted in inputs.items():
            assert piece.inputs[name].dtype == np.float32
            assert piece.inputs[name].shape == wanted.shape
            np.testing.assert_allclose(piece.inputs[name], wanted, rtol=0, atol=PIXELS)
    rows = np.concatenate([half.join(c, half.encode(c.pieces)) for c in chunks])
    assert far(rows, expected.rows) < TRANSFORMERS


def check_batches(half: MediaHalf, chunks: Sequence[MediaChunk]) -> None:
    """However the pieces are batched, each gives its own rows, to the bit, and as many as its chunk says."""
    alone = [half.join(c, [half.encode([p])[0] for p in c.pieces]) for c in chunks]
    for chunk, rows in zip(chunks, alone, strict=True):
        assert rows.shape == (chunk.n_tokens, half.n_embd)
        assert rows.dtype == np.float32
    for order in (chunks, chunks[::-1]):
        made = dict(encoded(half, order))
        for chunk, rows in zip(chunks, alone, strict=True):
            np.testing.assert_array_equal(half.join(chunk, [made[p.key] for p in chunk.pieces]), rows)


def check_layout(half: MediaHalf, chunks: Sequence[MediaChunk]) -> None:
    """The layout holds exactly the chunks it was given, in order, and nothing but text beside them."""
    parts = half.layout(chunks)
    assert [p for p in parts if isinstance(p, MediaChunk)] == list(chunks)
    assert any(isinstance(p, str) and p for p in parts) or half.layout(chunks) == list(chunks)
    assert all(names == tuple(sorted(names, key=len, reverse=True)) for names in half.placeholders.values())


def check_positions(half: MediaHalf, chunks: Sequence[MediaChunk]) -> None:
    """One column for each row; a row never stands before its chunk's start, nor at or past what comes next."""
    start = 3
    for ordinal, chunk in enumerate(chunks):
        planes, after = half.positions(replace(chunk, ordinal=ordinal), start)
        assert planes.shape == (half.n_pos, chunk.n_tokens)
        assert planes.dtype == np.int32
        assert (planes[: min(half.n_pos, 3)] >= start).all()
        assert planes.max() < after
        start = after


def check_keys(half: MediaHalf, picture: Pixels) -> None:
    """Ids are stable, and another picture or another size of the same one has others."""
    again = [half.preprocess(media(picture), MediaSettings()) for _ in range(2)]
    other = half.preprocess(media(picture[::-1, ::-1]), MediaSettings())
    for one, two, three in zip(*again, other, strict=True):
        np.testing.assert_array_equal(one.ids, two.ids)
        assert one.key == two.key
        assert three.key != one.key
        assert len(set(one.ids.tolist())) == one.n_tokens
        assert (one.ids < 0).all()


def check_libmtmd(weights: Weights, pictures: Sequence[Pixels]) -> None:
    """libmtmd gives the same rows from the same file, written and read again."""
    if not pictures:
        return
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "mmproj.gguf"
        write_gguf(file, weights)
        half = FamilyHalf(families.open_family(file), Options())
        with Mtmd(file, n_embd=half.n_embd) as other:
            for picture in pictures:
                (chunk,) = half.preprocess(media(picture), MediaSettings())
                rows, grid = other.encode(picture)
                # it knows lines only where positions have several planes
                assert grid == ((chunk.grid.w, chunk.grid.h) if half.n_pos == 4 else (chunk.n_tokens, 1))
                assert far(half.join(chunk, half.encode(chunk.pieces)), rows) < LIBMTMD
        half.close()


def check_caught(weights: Weights, reference: Reference, size: Size) -> None:
    """A fault that was planted in the family or in its weights shows."""
    with pytest.raises(AssertionError):
        check_family(weights, [size], reference)


def check_missing(weights: Weights, missing: str) -> None:
    """A file without a tensor is refused by its name."""
    tensors = {name: tensor for name, tensor in weights.tensors.items() if name != missing}
    with pytest.raises(FileError, match=re.escape(missing)):
        half_of(Weights(weights.metadata, tensors))


def check_marks(family: Family, start: str, end: str) -> None:
    """The layout puts a picture between two texts."""
    chunks = family.preprocess(media(gradient(56, 56)), MediaSettings())
    assert family.layout(chunks) == [start, *chunks, end]


def check_static(weights: Weights, size: Size) -> None:
    """The graph for one (width, height) is whole, and so is a deployment of it."""
    half = half_of(weights)
    picture = media(noise(*size))
    (chunk,) = half.preprocess(picture, MediaSettings(min_pixels=size[0] * size[1], max_pixels=size[0] * size[1]))
    with tempfile.TemporaryDirectory() as folder:
        check_graph(export.write(half.family, Path(folder) / "out", sizes=[size])[0], half, chunk.pieces)
    check_deployed(half.family, half, picture, size)
    half.close()


def check_graph(path: Path, half: MediaHalf, pieces: Sequence[Piece]) -> None:
    """The graph for one size takes a picture's patches alone, is of ONNX's own ops, and gives the encoder's rows."""
    (piece,) = pieces
    onnx.checker.check_model(path, full_check=True)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert {i.name: (i.type, tuple(i.shape)) for i in session.get_inputs()} == {
        name: ("tensor(float)", array.shape) for name, array in piece.inputs.items()
    }
    assert {node.domain for node in onnx.load(path, load_external_data=False).graph.node} == {""}
    (rows,) = session.run(None, dict(piece.inputs))
    assert far(rows, half.encode([piece])[0]) < TRANSFORMERS


def check_deployed(family: Family, half: FamilyHalf, picture: Media, size: tuple[int, int]) -> None:
    """A deployment tells enough of a family: without its weights it prepares pictures alike, and its graphs give its rows."""
    source = export.Source(family, family.architectures[0], ())
    for how in ({"sizes": [size]}, {}):
        with tempfile.TemporaryDirectory() as folder:
            export.deploy(source, Path(folder) / "out", **how)
            deployed = open_half(deploy.find(Path(folder) / "out"), Options())
            (wanted,) = half.preprocess(picture, MediaSettings(sizes=(size,) if how else ()))
            (chunk,) = deployed.preprocess(picture, MediaSettings())
            assert (chunk.key, chunk.grid, chunk.used) == (wanted.key, wanted.grid, wanted.used)
            rows = deployed.join(chunk, deployed.encode(chunk.pieces))
            assert far(rows, half.join(wanted, half.encode(wanted.pieces))) < TRANSFORMERS
            for one, two in zip(deployed.positions(chunk, 3), half.positions(wanted, 3), strict=True):
                np.testing.assert_array_equal(one, two)
            assert [p if isinstance(p, str) else None for p in deployed.layout([chunk])] == [
                p if isinstance(p, str) else None for p in half.layout([wanted])
            ]
            deployed.close()


def half_of(weights: Weights) -> FamilyHalf:
    """The media half that reads a file of these weights."""
    return FamilyHalf(families.for_projector(projector_type(weights.metadata) or "")(weights), Options())


def rows_of(weights: Weights, picture: Pixels) -> Rows:
    """The rows of a picture that is one piece."""
    half = half_of(weights)
    (chunk,) = half.preprocess(media(picture), MediaSettings())
    return half.encode(chunk.pieces)[0]


def within(sizes: Sequence[Size], low: float, high: float) -> list[Size]:
    """Those of the sizes that have `low` to `high` pixels."""
    return [(w, h) for w, h in sizes if low <= w * h <= high]


def media(picture: Pixels) -> Media:
    """A decoded picture as `media.load` makes it."""
    return Media("image", np.ascontiguousarray(picture), sha256(picture.tobytes() + str(picture.shape).encode()).digest())


def encoded(half: MediaHalf, chunks: Sequence[MediaChunk]) -> Iterator[tuple[bytes, Rows]]:
    """Every piece of the chunks by its key, those of one batch key in one run."""
    groups: dict[Any, list[Any]] = {}
    for chunk in chunks:
        for piece in chunk.pieces:
            groups.setdefault(half.batch_key(piece), []).append(piece)
    for pieces in groups.values():
        for piece, rows in zip(pieces, half.encode(pieces), strict=True):
            yield piece.key, rows


def far(rows: NDArray[Any], wanted: NDArray[Any]) -> float:
    """The largest difference, relative to the largest value."""
    assert rows.shape == wanted.shape
    return float(np.abs(rows - wanted).max() / np.abs(wanted).max())


def swapped(weights: Weights, one: str, two: str) -> Weights:
    """The same weights with two tensors in each other's place: a fault to plant."""
    tensors = dict(weights.tensors)
    tensors[one], tensors[two] = replace(tensors[two], name=one), replace(tensors[one], name=two)
    return Weights(weights.metadata, tensors)
