"""The graphs of a media half as ONNX files that run without Diptych: for pictures of any size, or one for each size."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from diptych.errors import InputError
from diptych.families.base import Family
from diptych.families.packed import check_aspect
from diptych.graph.graph import OPSET, Graph, Place, Stored
from diptych.types import Media, MediaSettings, Piece

if TYPE_CHECKING:
    from diptych.weights import Progress

DATA = "encoder.data"
ALIGNMENT = 4096  # a page, so that each weight can be mapped by itself
MAX_PIXELS = 1 << 25  # of a static graph; its tables alone would take 100 MB there

Size = tuple[int, int]  # (width, height) in pixels


@dataclass(frozen=True, eq=False)
class Drawn:
    """A graph and the ONNX file it becomes; `size` is the (width, height) of the pictures a static one takes."""

    name: str
    graph: Graph
    kind: str
    size: Size | None = None


def drawn(family: Family, sizes: Sequence[Size] = (), *, any_size: bool = False) -> list[Drawn]:
    """A static graph for each size, and with `any_size` or without sizes a dynamic one for each kind of piece.

    Raises InputError when a size is not one the model takes as it is.
    """
    fixed = [Drawn(f"encoder-{w}x{h}.onnx", static(family, (w, h)), family.kind, (w, h)) for w, h in dict.fromkeys(sizes)]
    if fixed and not any_size:
        return fixed
    kinds = family.piece_kinds
    names = ["encoder.onnx"] if len(kinds) == 1 else [f"encoder-{kind}.onnx" for kind in kinds]
    return fixed + [Drawn(name, dynamic(family, kind), kind) for name, kind in zip(names, kinds, strict=True)]


def stored(graphs: Iterable[Drawn]) -> list[Stored]:
    """The weights of graphs, each once."""
    return list({name: weight for made in graphs for name, weight in made.graph.stored.items()}.values())


def write(family: Family, folder: Path, graphs: Sequence[Drawn], progress: Progress | None = None) -> None:
    """Write graphs over one file of weights into a folder. Each weight is read once and written once."""
    places = write_data(folder / DATA, stored(graphs), progress)
    for made in graphs:
        (folder / made.name).write_bytes(made.graph.serialize(places, _metadata(family, made.graph)))


def dynamic(family: Family, kind: str) -> Graph:
    """The graph for pieces of any size, several in a run."""
    graph = Graph(family.weights)
    family.graph(graph, kind)
    return graph


def static(family: Family, size: Size) -> Graph:
    """The graph for one picture of one size: what a picture brings is its one input, all else is folded in.

    Raises InputError when the model would see a picture of that size as one of another.
    """
    feed, piece = _feed(family, size)
    fixed: dict[str, NDArray[Any] | tuple[int, ...]] = {n: a.shape if n in piece.inputs else a for n, a in feed.items()}
    graph = Graph(family.weights, fixed)
    family.graph(graph, piece.kind)
    return graph


def write_data(path: Path, stored: Iterable[Stored], progress: Callable[[int, int], None] | None = None) -> dict[str, Place]:
    """Write weights one after the other into one file; where each begins."""
    weights = list(stored)
    total = sum(w.n_bytes for w in weights)
    done, places = 0, {}
    with path.open("wb") as file:
        for weight in weights:
            file.write(bytes(-file.tell() % ALIGNMENT))
            places[weight.name] = path.name, file.tell()
            data = np.ascontiguousarray(weight.read()).reshape(-1).view(np.uint8)
            assert data.size == weight.n_bytes, f"{weight.name}: {data.size} bytes read, {weight.n_bytes} declared"
            file.write(data.data)
            done += weight.n_bytes
            if progress:
                progress(done, total)
    return places


def _feed(family: Family, size: Size) -> tuple[dict[str, NDArray[Any]], Piece]:
    """What the graph is fed for a blank picture of that size, and the piece it is fed for."""
    width, height = size
    unit = family.hp.patch_size * family.hp.n_merge
    if not 0 < math.prod(size) <= MAX_PIXELS:
        raise InputError(f"--size {width}x{height} is not of 1 to {MAX_PIXELS} pixels; give a smaller one")
    if width % unit or height % unit:
        near = "x".join(str(max(unit, round(side / unit) * unit)) for side in size)
        raise InputError(f"--size {width}x{height}: both sides must be multiples of {unit} (patch × merge), such as {near}")
    check_aspect(width, height)
    blank = Media("image", np.zeros((height, width, 3), np.uint8), b"")
    piece = family.preprocess(blank, MediaSettings(sizes=(size,)))[0].pieces[0]
    return family.feed([piece]), piece


def _metadata(family: Family, graph: Graph) -> dict[str, str]:
    inputs, outputs = graph.signature()
    explained = family.explain()
    hp = family.hp
    return {
        "diptych.version": version("diptych"),
        "diptych.family": type(family).__name__,
        "diptych.projector": hp.projector,
        "diptych.opset": str(OPSET),
        **{f"input.{name}": ": ".join(filter(None, (type, explained.get(name)))) for name, type in inputs.items()},
        **{f"output.{name}": ": ".join(filter(None, (type, explained.get(name)))) for name, type in outputs.items()},
    }
