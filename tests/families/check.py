"""What every family must hold, checked on a tiny random checkpoint: a family's test gives the checkpoint and a reference.

check_family(convert.mmproj(convert.read_checkpoint(folder), "f32"), pictures, reference, agreeing=…)
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from diptych import deploy, export, families
from diptych.backend import open_half
from diptych.encoder.half import FamilyHalf
from diptych.families.base import Family, MediaHalf, Rows, projector_type
from diptych.graph.graph import Graph
from diptych.options import Options
from diptych.types import Media, MediaChunk, MediaSettings
from diptych.weights import Weights, write_gguf
from mtmd import Mtmd

Pixels = NDArray[np.uint8]

PIXELS = 1e-6  # absolute: what the graph is fed against the Hugging Face processor
TRANSFORMERS = 1e-5  # relative to the largest value: f32 on both sides, sums in another order
LIBMTMD = 2e-3  # relative to the largest value: f16 tables for GELU and attention there


@dataclass(frozen=True)
class Expected:
    """What the reference makes of a picture: what its encoder is fed, for each piece, and the rows of the picture."""

    inputs: Sequence[Mapping[str, NDArray[Any]]]
    rows: Rows


Reference = Callable[[Pixels], Expected]


def check_family(weights: Weights, pictures: Sequence[Pixels], reference: Reference, *, agreeing: Sequence[Pixels] = ()) -> None:
    """Every check there is. `agreeing` are pictures that libmtmd prepares as the Hugging Face processor does."""
    family = families.for_projector(projector_type(weights.metadata) or "")(weights)
    check_weights(family)
    half = FamilyHalf(family, Options())
    chunks = [half.preprocess(media(p), MediaSettings()) for p in pictures]
    for picture, made in zip(pictures, chunks, strict=True):
        check_reference(half, made, reference(picture))
        check_layout(half, made)
    check_batches(half, [c for made in chunks for c in made])
    check_positions(half, [c for made in chunks for c in made])
    check_keys(half, pictures[0])
    half.close()
    check_libmtmd(weights, agreeing)


def check_weights(family: Family) -> None:
    """The graph builds, dynamic, and reads every tensor of the file."""
    read = set(family.learned)
    for kind in family.piece_kinds:
        graph = Graph(family.weights)
        family.graph(graph, kind)
        read |= {stored.removesuffix(".scale") for stored in graph.stored}
    assert read == set(family.weights.tensors), "the graphs do not read just the tensors of the file"


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


def check_static(weights: Weights, size: tuple[int, int]) -> None:
    """The graph for one (width, height) takes a picture's patches alone, is of ONNX's own ops, and gives the encoder's rows."""
    family = families.for_projector(projector_type(weights.metadata) or "")(weights)
    half = FamilyHalf(family, Options())
    picture = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), np.uint8)
    (chunk,) = half.preprocess(media(picture), MediaSettings(min_pixels=size[0] * size[1], max_pixels=size[0] * size[1]))
    (piece,) = chunk.pieces
    with tempfile.TemporaryDirectory() as folder:
        path = export.write(family, Path(folder) / "out", sizes=[size])[0]
        onnx.checker.check_model(path, full_check=True)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        assert {i.name: (i.type, tuple(i.shape)) for i in session.get_inputs()} == {
            name: ("tensor(float)", array.shape) for name, array in piece.inputs.items()
        }
        assert {node.domain for node in onnx.load(path, load_external_data=False).graph.node} == {""}
        (rows,) = session.run(None, dict(piece.inputs))
        assert far(rows, half.encode([piece])[0]) < TRANSFORMERS
    check_deployed(family, half, media(picture), size)
    half.close()


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
