"""The config.json that binds the halves of a deployment; deploy/config.py says what stands in it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from diptych.deploy.config import FORMAT
from diptych.deploy.hashes import FileInfo
from diptych.export.graphs import Drawn
from diptych.families.base import Family
from diptych.graph.graph import OPSET

_FLAT = re.compile(r"\[\s+([^\[\]{}]*?)\s+\]")  # an array of numbers or names, which json breaks into a line each
_PACKAGES = ("diptych", "llama-cpp-python", "onnxruntime")


def config_text(family: Family, architecture: str, text: str | None, made: Sequence[Drawn], files: Mapping[str, FileInfo]) -> str:
    """The text of config.json for a text half of this name and these graphs, or the mmproj among the files."""
    config: dict[str, Any] = {
        "architectures": [architecture],
        "vision_model": _vision(family, made, files),
        "vision_preprocess": {
            "rescale_factor": 1 / 255, "image_mean": list(family.hp.mean), "image_std": list(family.hp.std),
        },
        "text_model": {**({"model_path": text} if text else {}), "hidden_size": family.n_embd},
        "diptych": {
            "format": FORMAT,
            "family": type(family).__name__,
            "projector": family.hp.projector,
            "n_embd": family.n_embd,
            "n_pos": family.n_pos,
            "versions": {**_versions(), "opset": OPSET},
            **_declared(family, files, bool(made)),
            "files": {name: asdict(info) for name, info in files.items()},
        },
    }  # fmt: skip
    return _FLAT.sub(lambda m: f"[{' '.join(m[1].split())}]", json.dumps(config, indent=2)) + "\n"


def _vision(family: Family, made: Sequence[Drawn], files: Mapping[str, FileInfo]) -> dict[str, Any]:
    """The graphs, the first as SMT writes its only one; or the mmproj."""
    if not made:
        return {"model_path": [name for name in files if name.endswith(".gguf")][-1]}  # the text half stands before it
    several = [{"model_path": d.name, **_size(family, d), **({"piece": d.kind} if d.kind != "image" else {})} for d in made]
    return {**several[0], **({"models": several} if len(several) > 1 else {})}


def _size(family: Family, made: Drawn) -> dict[str, int]:
    if made.size is None:
        return {}
    width, height = made.size
    tokens = width * height // (family.hp.patch_size * family.hp.n_merge) ** 2
    return {"input_width": width, "input_height": height, "tokens": tokens}


def _declared(family: Family, files: Mapping[str, FileInfo], onnx: bool) -> dict[str, Any]:
    """What the mmproj tells of the media half, where it does not come along."""
    if not onnx:
        return {}
    return {
        "metadata": {name: _plain(value) for name, value in family.weights.metadata.items() if name.startswith("clip.")},
        "tensors": {name: list(tensor.shape) for name, tensor in family.weights.tensors.items()},
        **({"learned": "learned.gguf"} if "learned.gguf" in files else {}),
    }


def _plain(value: Any) -> Any:  # noqa: ANN401
    """A value of GGUF metadata as JSON has it."""
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
