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
from diptych.encoder.prepared import prepared
from diptych.encoder.session import Session
from diptych.families.base import Family
from diptych.graph.graph import Graph, Place, Stored
from diptych.options import Options
from diptych.trace import OFF, Trace

PREPACK = 100_000_000  # weights; at 675 million it costs 8 s of loading and 0.2 GB, and runs are no faster for it


def load(family: Family, kind: str, options: Options, choice: Choice, trace: Trace = OFF) -> Session:
    """Write a family's graph for one kind of piece and open a session over it.

    Raises FileError when it cannot be loaded, EngineError or MissingExtra when the runtime cannot do what was chosen.
    """
    if (choice.precision, choice.runtime) == ("f32", "onnxruntime"):
        return _in_place(family, kind, options, trace)
    with prepared(family, kind, choice.precision, choice.runtime) as model:
        if choice.runtime == "openvino":
            return OpenVinoSession(model, options, choice.precision, choice.rest, trace)
        if choice.runtime == "kernels":
            return OrtSession(model, options, operators=LIBRARY, trace=trace)
        return OrtSession(model, options, trace=trace)  # int8, which it packs: what is mapped of the file is let go


def _in_place(family: Family, kind: str, options: Options, trace: Trace) -> OrtSession:
    """ONNX Runtime in f32, over weights that stay in the file they come from, mapped into memory."""
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
    n_weights = sum(math.prod(s.shape) for s in graph.stored.values())
    model = graph.serialize(places)
    return OrtSession(model, options, folder=folder, arrays=arrays, prepack=n_weights <= PREPACK, trace=trace)


def _place(stored: Stored, folder: Path | None) -> Place | None:
    """Where a weight's bytes lie in `folder` as they are, if they do. Links are followed: ONNX Runtime refuses them."""
    if stored.tensor is None or stored.tensor.place is None:
        return None
    file, offset, _ = stored.tensor.place
    file = file.resolve()
    return (file.name, offset) if file.parent == folder else None
