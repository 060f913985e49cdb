"""Open a session over a family's graph, in the arithmetic and the runtime that were chosen."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from diptych.encoder.kernels import LIBRARY
from diptych.encoder.openvino import OpenVinoSession
from diptych.encoder.ort import OrtSession
from diptych.encoder.precision import Choice
from diptych.encoder.prepared import kept, prepared
from diptych.encoder.session import Session
from diptych.families.base import Family
from diptych.graph.graph import Graph, Place, Stored
from diptych.options import Options
from diptych.trace import OFF, Trace

PREPACK = 100_000_000  # weights; at 675 million it costs 8 s of loading and 0.2 GB, and runs are no faster for it


def load(family: Family, kind: str, options: Options, choice: Choice, trace: Trace = OFF, *, arena: bool = True) -> Session:
    """Write a family's graph for one kind of piece and open a session over it, with an arena where it has such a thing.

    Raises FileError when it cannot be loaded, EngineError or MissingExtra when the runtime cannot do what was chosen.
    """
    if (choice.precision, choice.runtime) == ("f32", "onnxruntime"):
        return _float32(family, kind, options, choice, trace)
    with prepared(family, kind, choice) as model:
        if choice.runtime == "openvino":
            return OpenVinoSession(model, options, choice.precision, choice.rest, trace)
        operators = LIBRARY if choice.runtime == "kernels" else None
        given = model.read_bytes()
        return OrtSession(given, options, folder=model.parent, operators=operators, arena=arena, trace=trace)


def _float32(family: Family, kind: str, options: Options, choice: Choice, trace: Trace) -> OrtSession:
    """ONNX Runtime in f32, over weights that are mapped into memory: those of the file where they are float32, else of one in
    the cache. Where that takes nothing, it unpacks them each time it loads."""
    prepack = sum(math.prod(tensor.shape) for tensor in family.weights.tensors.values()) <= PREPACK
    if any(tensor.type.name != "F32" for tensor in family.weights.tensors.values()):
        model = kept(family, kind, choice)
        if model is not None:
            return OrtSession(model.read_bytes(), options, folder=model.parent, prepack=prepack, trace=trace)
    return _in_place(family, kind, options, prepack, trace)


def _in_place(family: Family, kind: str, options: Options, prepack: bool, trace: Trace) -> OrtSession:
    graph = Graph(family.weights, unpack=True)
    family.graph(graph, kind)
    folder = next((s.tensor.place[0].resolve().parent for s in graph.stored.values() if s.tensor and s.tensor.place), None)
    places: dict[str, Place] = {}
    arrays: dict[str, tuple[NDArray[Any], int]] = {}
    for name, stored in graph.stored.items():
        place = _place(stored, folder)
        places[name] = place or ("elsewhere", 0)
        if place is None:
            arrays[name] = stored.read(), stored.element_type
    return OrtSession(graph.serialize(places), options, folder=folder, arrays=arrays, prepack=prepack, trace=trace)


def _place(stored: Stored, folder: Path | None) -> Place | None:
    """Where a weight's bytes lie in `folder` as they are, if they do. Links are followed: ONNX Runtime refuses them."""
    if stored.tensor is None or stored.tensor.place is None:
        return None
    file, offset, _ = stored.tensor.place
    file = file.resolve()
    return (file.name, offset) if file.parent == folder else None
