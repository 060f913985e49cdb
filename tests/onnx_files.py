"""Small ONNX encoders as others make them, and the configurations they come with."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diptych.encoder.prepared import DATA, MODEL
from diptych.graph.graph import Graph, Value
from diptych.weights import Weights

WIDTH = 16  # of the rows


def mix(n: int, width: int = WIDTH, seed: int = 0) -> np.ndarray[Any, np.dtype[np.float32]]:
    """(n, width): the one weight of these encoders."""
    return np.random.default_rng(seed).normal(size=(n, width)).astype(np.float32)


def write(path: Path, build: Callable[[Graph], None]) -> Path:
    g = Graph(Weights({}, {}))
    build(g)
    path.write_bytes(g.serialize({}))
    return path


def stored(g: Graph, folder: Path) -> Path:
    """The ONNX file of a graph, with its weights in a file beside it."""
    data, places = b"", {}
    for name, weight in g.stored.items():
        places[name] = (DATA, len(data))
        data += np.ascontiguousarray(weight.read()).tobytes()
    (folder / DATA).write_bytes(data)
    (folder / MODEL).write_bytes(g.serialize(places))
    return folder / MODEL


def give(g: Graph, rows: Value, n: int | str, width: int, n_outputs: int, lead: bool) -> None:
    """Name outputs: the rows, and multiples of them."""
    for i in range(n_outputs):
        value = g.Mul(rows, float(i + 1))
        shape: tuple[int | str, ...] = (1, n, width) if lead else (n, width)
        g.output(f"rows{i}", g.Unsqueeze(value, [0]) if lead else value, shape)


def pixels(
    path: Path, size: tuple[int, int], unit: int, *, width: int = WIDTH, n_outputs: int = 1, rank: int = 4, lead: bool = False
) -> Path:
    """Pixels of one size → for each cell of `unit` pixels the mean of its channels, mixed: one row each, cells row by row."""
    w, h = size
    shape = (1, 3, h, w) if rank == 4 else (3, h, w)

    def build(g: Graph) -> None:
        x = g.Reshape(g.input("pixels", shape), [3, h // unit, unit, w // unit, unit])
        means = g.Transpose(g.ReduceMean(x, [2, 4], keepdims=0), perm=[1, 2, 0])
        n = (h // unit) * (w // unit)
        give(g, g.MatMul(g.Reshape(means, [n, 3]), mix(3, width)), n, width, n_outputs, lead)

    return write(path, build)


def any_pixels(path: Path, unit: int, *, width: int = WIDTH) -> Path:
    """As `pixels`, for pictures of any size."""

    def build(g: Graph) -> None:
        x = g.input("pixels", (1, 3, "height", "width"))
        means = g.AveragePool(x, kernel_shape=[unit, unit], strides=[unit, unit])
        g.output("rows", g.MatMul(g.Transpose(g.Reshape(means, [3, -1]), perm=[1, 0]), mix(3, width)), ("n_token", width))

    return write(path, build)


def rows(path: Path, n_patch: int | str, *, row: int = 1176, width: int = WIDTH, lead: bool = False) -> Path:
    """Patch rows → one row for each four of them: their mean, mixed."""
    shape: tuple[int | str, ...] = (1, n_patch, row) if lead else (n_patch, row)

    def build(g: Graph) -> None:
        cells = g.ReduceMean(g.Reshape(g.input("patches", shape), [-1, 4, row]), [1], keepdims=0)
        give(g, g.MatMul(cells, mix(row, width)), n_patch // 4 if isinstance(n_patch, int) else "n_token", width, 1, lead)

    return write(path, build)


def smt(folder: Path, architecture: str, model: str | Sequence[dict[str, Any]], **more: Any) -> Path:
    """A folder with the configuration of an SMT deployment; keys of `more` are `block__key`."""
    vision: dict[str, Any] = {"model_path": model} if isinstance(model, str) else {"models": list(model)}
    config: dict[str, Any] = {
        "architectures": [architecture],
        "vision_model": vision,
        "text_model": {"model_path": "text.gguf", "hidden_size": WIDTH},
    }
    for name, value in more.items():
        block, _, key = name.partition("__")
        if key:
            config.setdefault(block, {})[key] = value
        else:
            config[block] = value
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "text.gguf").touch()
    (folder / "config.json").write_text("// as boards have it\n" + json.dumps(config, indent=2))
    return folder
