"""What a media half is known by: rows that it made are its own, whatever process it runs in, and no other's."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from diptych.deploy.deployment import Declared, OnnxHalf
from diptych.encoder import content
from diptych.encoder.kernels import LIBRARY
from diptych.errors import FileError
from diptych.families.base import Family, MediaHalf
from diptych.options import Options

if TYPE_CHECKING:
    from diptych.encoder.plan import Plan


def identity(half: MediaHalf) -> str | None:
    """A hash of all that a half's rows depend on beside a chunk's key, its files by content; None where that is not known."""
    if not half.made_of:
        return None
    try:
        told = [content.sha256(one) if isinstance(one, Path) else one for one in half.made_of]
    except FileError:
        return None
    return hashlib.sha256(json.dumps([version("diptych"), half.n_embd, half.backend, *told]).encode()).hexdigest()


def of_family(family: Family, arithmetic: Mapping[str, str], options: Options) -> tuple[str | Path, ...]:
    """`MediaHalf.made_of` of a family's graph: none where its weights, or the family itself, lie in no file."""
    places = [tensor.place for tensor in family.weights.tensors.values()]
    source = inspect.getsourcefile(type(family))
    if not places or None in places or source is None:
        return ()
    told = {key: value for key, value in family.weights.metadata.items() if key.startswith("clip.")}  # of a file of its own
    files = sorted({place[0] for place in places if place})
    return (*of_runtime(arithmetic, options), json.dumps(told, sort_keys=True, default=repr), Path(source), *files)


def of_runtime(arithmetic: Mapping[str, str], options: Options) -> tuple[str | Path, ...]:
    """What rows depend on in the runtime: the arithmetic, its version, the kernels, what execution providers are told."""
    told: Mapping[str, object] = {"options": options.provider_options, "libraries": options.ep_libraries}
    release = ""
    with suppress(PackageNotFoundError):  # ONNX Runtime comes under several names
        release = version("openvino" if arithmetic["runtime"] == "openvino" else "onnxruntime")
    own = (LIBRARY,) if arithmetic["runtime"] == "kernels" else ()
    return json.dumps(dict(arithmetic), sort_keys=True), release, json.dumps(told, sort_keys=True), *own


def of_onnx(half: OnnxHalf, plan: Plan, arithmetic: Mapping[str, str], options: Options) -> tuple[str | Path, ...]:
    """`MediaHalf.made_of` of ONNX files: these with those of their weights, and what tells how pictures are prepared."""
    source = inspect.getsourcefile(type(plan.pictures))
    if source is None:
        return ()
    learned = half.model.learned if isinstance(half.model, Declared) else None
    graphs = [
        (graph.encoder.path, *(graph.encoder.path.parent / name for name in graph.header.files)) for graph in plan.graphs.values()
    ]
    return (*of_runtime(arithmetic, options), Path(source), half.config, *([learned] if learned else []), *chain(*graphs))
