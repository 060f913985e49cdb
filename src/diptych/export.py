"""The media half as ONNX files that run without Diptych: one graph for pictures of any size, or one for each size.

A folder gets `encoder.onnx`, or `encoder-504x504.onnx` and the like, and `encoder.data`, the weights of all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from diptych import convert, families
from diptych.errors import InputError
from diptych.families.base import Family
from diptych.files import check_output, whole_folder
from diptych.graph.graph import OPSET, Graph, Place, Stored
from diptych.types import Media, MediaSettings, Piece

if TYPE_CHECKING:
    from diptych.weights import Progress

DATA = "encoder.data"
ALIGNMENT = 4096  # a page, so that each weight can be mapped by itself
MAX_PIXELS = 1 << 25  # of a static graph; its tables alone would take 100 MB there

Size = tuple[int, int]  # (width, height) in pixels


def export(
    source: Path, folder: Path, *, sizes: Sequence[Size] = (), force: bool = False, progress: Progress | None = None
) -> list[Path]:
    """Write the media half of an mmproj file or of a checkpoint's folder; weights keep their type. Returns the files.

    Raises FileError and UnknownModel when there is no such half, and as `write` does.
    """
    if source.is_dir():
        checkpoint = convert.read_checkpoint(source)
        family = families.for_architecture(checkpoint.architecture)(convert.mmproj(checkpoint))
        return write(family, folder, sizes=sizes, force=force, inputs=checkpoint.files, progress=progress)
    return write(families.open_family(source), folder, sizes=sizes, force=force, inputs=[source], progress=progress)


def write(
    family: Family,
    folder: Path,
    *,
    sizes: Sequence[Size] = (),
    force: bool = False,
    inputs: Iterable[Path] = (),
    progress: Progress | None = None,
) -> list[Path]:
    """Write a dynamic graph, or a static one for each size, over one file of weights. Returns the files written.

    Each weight is read once and written once. Raises InputError when a size is not one the model takes as it is, and
    OutputError when a file may not be written.
    """
    graphs = {f"encoder-{w}x{h}.onnx": static(family, (w, h)) for w, h in sizes} or {"encoder.onnx": dynamic(family)}
    for name in (*graphs, DATA):
        check_output(folder / name, force=force, inputs=inputs, parent=False)
    stored = {name: weight for graph in graphs.values() for name, weight in graph.stored.items()}
    with whole_folder(folder, force=force, inputs=inputs) as part:
        places = write_data(part / DATA, stored.values(), progress)
        for name, graph in graphs.items():
            (part / name).write_bytes(graph.serialize(places, _metadata(family, graph)))
    return [folder / name for name in (*graphs, DATA)]


def dynamic(family: Family) -> Graph:
    """The graph for pictures of any size, several in a run."""
    graph = Graph(family.weights)
    family.graph(graph, family.kind)
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
    blank = Media("image", np.zeros((height, width, 3), np.uint8), b"")
    settings = MediaSettings(min_pixels=width * height, max_pixels=width * height)
    piece = family.preprocess(blank, settings)[0].pieces[0]
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
