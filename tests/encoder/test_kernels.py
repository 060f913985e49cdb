"""Diptych's own operators: attention against float64, linear layers against the same arithmetic in NumPy, and bad inputs."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import onnx
import pytest
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

import onnx_files
from diptych.encoder import kernels
from diptych.encoder.kernels import ATTENTION, LIBRARY, at_most
from diptych.encoder.ort import OrtSession
from diptych.encoder.precision import this_machine
from diptych.errors import EngineError, FileError
from diptych.graph import int8 as quantising
from diptych.graph import nn
from diptych.graph.graph import Graph, Kernel, Value
from diptych.graph.kernels import DIPTYCH
from diptych.options import Options
from diptych.weights import Tensor, Weights

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(
    not this_machine().runs_kernels or ATTENTION not in this_machine().features,
    reason="the kernels are not there, or not for this CPU",
)

KERNELS: frozenset[Kernel] = frozenset({"linear", "attention"})
Array = NDArray[np.float32]
Spans = list[tuple[int, int]]
ACTS: dict[str, tuple[nn.Act | None, Callable[[NDArray[np.float64]], NDArray[np.float64]]]] = {
    "none": (None, lambda x: x),
    "gelu": (nn.gelu, lambda x: x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))),
    "gelu_tanh": (nn.gelu_tanh, lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))),
    "quick_gelu": (nn.quick_gelu, lambda x: 0.5 * x * (1 + np.tanh(0.851 * x))),
    "silu": (nn.silu, lambda x: 0.5 * x * (1 + np.tanh(0.5 * x))),
}


def session(g: Graph, folder: Path, threads: int = 1) -> OrtSession:
    return OrtSession(onnx_files.stored(g, folder), Options(threads=threads), operators=LIBRARY)


def attention(
    folder: Path,
    n_head: int,
    width: int,
    scale: float,
    threads: int = 1,
    turned: bool = False,
    kernels: frozenset[Kernel] = KERNELS,
) -> OrtSession:
    g = Graph(Weights({}, {}), kernels=kernels)
    q, k, v = (g.input(name, ("n", width)) for name in "qkv")
    spans = g.input("spans", ("n_span", 2), np.int64)
    cos, sin = (g.input(name, ("n", width // n_head // 2)) for name in ("cos", "sin")) if turned else (None, None)
    angles = (cos, sin) if cos is not None and sin is not None else None
    g.output("out", nn.attention(g, q, k, v, spans, n_head, scale, angles=angles), ("n", width))
    return session(g, folder, threads)


def recorder(**arrays: Array) -> Graph:
    """Over weights of these names, where a double underscore stands for a dot."""
    named = {name.replace("__", "."): array for name, array in arrays.items()}
    tensors = {n: Tensor(n, a.shape, GGMLQuantizationType.F32, lambda a=a: a) for n, a in named.items()}  # type: ignore[misc]
    return Graph(Weights({}, tensors), kernels=KERNELS, products="int8")


def made(folder: Path, g: Graph, width: int, layers: Callable[[Graph, Value], Value], n_out: int, threads: int = 1) -> OrtSession:
    g.output("out", layers(g, g.input("x", ("n", width))), ("n", n_out))
    return session(g, folder, threads)


def linear(folder: Path, weight: Array, bias: Array | None, act: nn.Act | None = None, threads: int = 1) -> OrtSession:
    g = recorder(w__weight=weight, **({} if bias is None else {"w__bias": bias}))
    return made(folder, g, weight.shape[1], lambda g, x: nn.linear(g, x, "w", act), len(weight), threads)


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def ops(path: Path) -> set[str]:
    return {node.op_type for node in onnx.load(path, load_external_data=False).graph.node}


def fed(n: int, width: int, spans: Spans, seed: int = 0, spread: float = 1.0) -> dict[str, NDArray]:
    rng = np.random.default_rng(seed)
    rows = {name: (rng.standard_normal((n, width)) * spread).astype(np.float32) for name in "qkv"}
    return {**rows, "spans": np.array(spans, np.int64).reshape(-1, 2)}


def exact(feed: dict[str, NDArray], n_head: int, scale: float) -> NDArray[np.float64]:
    """softmax(scale · q kᵀ) v of each segment and head in float64."""
    n, width = feed["q"].shape
    q, k, v = (feed[name].astype(np.float64).reshape(n, n_head, -1).swapaxes(0, 1) for name in "qkv")
    out, start = np.zeros_like(q), 0
    for count, length in feed["spans"]:
        for _ in range(count):
            rows = slice(start, start := start + length)
            scores = scale * q[:, rows] @ k[:, rows].swapaxes(1, 2)
            shares = np.exp(scores - scores.max(axis=2, keepdims=True))
            out[:, rows] = shares / shares.sum(axis=2, keepdims=True) @ v[:, rows]
    return out.swapaxes(0, 1).reshape(n, width)


def distance(found: NDArray, wanted: NDArray) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


@pytest.mark.parametrize(
    ("n_head", "dim", "spans"),
    [
        (16, 80, [(1, 784)]),  # Qwen2-VL
        (2, 64, [(9, 64), (2, 40), (1, 3)]),  # windows, as Qwen2.5-VL has them, and odd ones
        (3, 72, [(1, 257)]),  # one key more than a block
        (1, 128, [(1, 95), (1, 97)]),  # about a block of queries
        (2, 256, [(1, 70)]),
        (2, 17, [(2, 33)]),  # no even dimension
        (5, 1, [(1, 9)]),
        (4, 88, [(1, 1), (3, 2), (1, 31), (1, 512)]),
    ],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_attention_is_that_of_each_segment_in_bfloat16(n_head: int, dim: int, spans: Spans, seed: int, tmp_path: Path) -> None:
    n, scale = sum(count * length for count, length in spans), dim**-0.5
    feed = fed(n, n_head * dim, spans, seed)
    found = attention(tmp_path, n_head, n_head * dim, scale).run(feed)
    assert distance(found, exact(feed, n_head, scale)) < 6e-3, "bfloat16 keeps eight bits"


def test_attention_over_numbers_that_bfloat16_has_is_float32s_but_for_the_shares(tmp_path: Path) -> None:
    """Whole numbers have no rounding, and equal keys make equal shares, which have none either; the outcome has one."""
    feed = fed(300, 32, [(1, 300)])
    feed["v"] = np.round(feed["v"] * 8)
    feed["k"][:] = 1
    found = attention(tmp_path, 2, 32, 1.0).run(feed)
    np.testing.assert_allclose(found, np.tile(feed["v"].mean(axis=0), (300, 1)), rtol=2**-8, atol=2e-5)


@pytest.mark.parametrize("spread", [1e-3, 10.0, 60.0])
def test_attention_holds_for_flat_and_for_steep_scores(spread: float, tmp_path: Path) -> None:
    feed = fed(400, 64, [(1, 400)], spread=1.0)
    feed["q"] *= spread
    found = attention(tmp_path, 1, 64, 1.0).run(feed)
    assert np.isfinite(found).all()
    steep = np.abs(feed["q"] @ feed["k"].T).max() * 2**-8  # what rounding q and k may move a score by
    assert distance(found, exact(feed, 1, 1.0)) < 6e-3 + min(steep, 1) * 0.1


def test_segments_do_not_see_each_other_and_threads_change_nothing(tmp_path: Path) -> None:
    spans: Spans = [(3, 50), (1, 129)]
    feed = fed(279, 96, spans)
    (tmp_path / "two").mkdir()
    one, two = attention(tmp_path, 2, 96, 0.2), attention(tmp_path / "two", 2, 96, 0.2, threads=2)
    found = one.run(feed)
    np.testing.assert_array_equal(two.run(feed), found)
    changed = {name: array.copy() for name, array in feed.items()}
    for name in "qkv":
        changed[name][50:100] += 1
    again = one.run(changed)
    assert not np.array_equal(again[50:100], found[50:100])
    again[50:100] = found[50:100]
    np.testing.assert_array_equal(again, found)
    alone = one.run({**{name: feed[name][150:] for name in "qkv"}, "spans": np.array([[1, 129]])})
    np.testing.assert_array_equal(alone, found[150:])


def test_a_query_that_is_no_number_is_alone_with_it(tmp_path: Path) -> None:
    feed = fed(64, 32, [(1, 64)])
    feed["q"][7, 3] = np.nan
    found = attention(tmp_path, 2, 32, 0.2).run(feed)
    assert np.isnan(found[7, :16]).all()
    found[7, :16] = 0
    assert np.isfinite(found).all()


@pytest.mark.parametrize("spans", [[], [(0, 5)], [(3, 0)]])
def test_no_rows_make_none(spans: Spans, tmp_path: Path) -> None:
    assert attention(tmp_path, 2, 32, 0.2).run(fed(0, 32, spans)).shape == (0, 32)


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        ([(1, 9)], "reach beyond the rows"),
        ([(2**62, 2**62)], "reach beyond the rows"),
        ([(1, 7)], "leave out the last rows"),
        ([(-1, -8)], "count segments and rows"),
        ([], "leave out the last rows"),
    ],
)
def test_spans_that_are_not_of_the_rows_are_refused(spans: Spans, message: str, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=message):
        attention(tmp_path, 2, 32, 0.2).run(fed(8, 32, spans))


def test_heads_that_do_not_make_the_width_are_refused(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="heads of 1 to 256 numbers"):
        attention(tmp_path, 3, 32, 0.2).run(fed(8, 32, [(1, 8)]))
    with pytest.raises(EngineError, match="heads of 1 to 256 numbers"):
        attention(tmp_path, 1, 257, 0.2).run(fed(8, 257, [(1, 8)]))
    with pytest.raises(FileError, match="num_heads and scale are above zero"):
        attention(tmp_path, 0, 32, 0.2)


def emulated(x: Array, weight: Array, bias: Array | None) -> NDArray[np.float64]:
    """What the layer computes, in NumPy: int8 by int8, with a scale for each row of weights and each group of activations."""
    whole, scales = quantising.quantised(weight)
    out = np.zeros((len(x), len(weight)))
    for start in range(0, x.shape[1], quantising.GROUP):
        part = slice(start, start + quantising.GROUP)
        largest = np.abs(x[:, part]).max(axis=1, keepdims=True)
        times = np.divide(np.float32(127), largest, out=np.zeros_like(largest), where=largest > 0)
        numbers = np.rint(x[:, part] * times).astype(np.int64)
        out += numbers @ whole[:, part].T.astype(np.int64) * (largest / np.float32(127)).astype(np.float64)
    out *= scales
    return out if bias is None else out + bias


@pytest.mark.parametrize(
    ("n", "n_in", "n_out"),
    [(1, 4, 64), (5, 1280, 320), (48, 256, 64), (49, 257, 65), (100, 588, 130), (7, 3, 1), (13, 1025, 96), (300, 2560, 33)],
)
@pytest.mark.parametrize("biased", [True, False])
def test_a_linear_layer_is_what_int8_makes_of_it(n: int, n_in: int, n_out: int, biased: bool, tmp_path: Path) -> None:
    rng = np.random.default_rng(n)
    x, weight = rng.standard_normal((n, n_in), np.float32), rng.standard_normal((n_out, n_in), np.float32)
    bias = rng.standard_normal(n_out, np.float32) if biased else None
    found = linear(tmp_path, weight, bias).run({"x": x})
    assert found.shape == (n, n_out)
    np.testing.assert_allclose(found, emulated(x, weight, bias), rtol=1e-5, atol=1e-5 * math.sqrt(n_in))
    assert distance(found, x @ weight.T + (0 if bias is None else bias)) < 2e-2


@pytest.mark.parametrize("name", ACTS)
def test_activations_are_those_of_their_names(name: str, tmp_path: Path) -> None:
    act, wanted = ACTS[name]
    x = np.concatenate([np.linspace(-12, 12, 4001, dtype=np.float32), np.array([0, 1e4, -1e4], np.float32)])[:, None]
    g = linear(tmp_path, np.ones((1, 1), np.float32), None, act)  # a row of one number is exact: it is 127 of its scale
    found = g.run({"x": x})
    np.testing.assert_allclose(found, wanted(x.astype(np.float64)), rtol=2e-5, atol=4e-6)


def test_an_activation_that_the_kernel_has_not_follows_the_layer(tmp_path: Path) -> None:
    x = np.array([[-3.0], [2.0]], np.float32)
    found = linear(tmp_path, np.ones((1, 1), np.float32), None, lambda g, rows: g.Abs(rows)).run({"x": x})
    np.testing.assert_allclose(found, np.abs(x), rtol=1e-6)


def test_a_row_gets_the_same_bits_in_any_company(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    weight, x = rng.standard_normal((200, 600), np.float32), rng.standard_normal((101, 600), np.float32)
    x[50] *= 1e4  # one scale for all of them would cost the others their precision
    (tmp_path / "two").mkdir()
    one, two = linear(tmp_path, weight, None), linear(tmp_path / "two", weight, None, threads=2)
    together = one.run({"x": x})
    np.testing.assert_array_equal(two.run({"x": x}), together)
    for i in (0, 49, 50, 100):
        np.testing.assert_array_equal(one.run({"x": x[i : i + 1]}), together[i : i + 1])


def test_a_large_number_costs_its_own_group_alone_precision(tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((1, 512), np.float32)
    weight = np.eye(512, dtype=np.float32)
    x[0, 300] = 1e5
    found = linear(tmp_path, weight, None).run({"x": x})
    assert distance(found[:, :256], x[:, :256]) < 1e-2
    assert distance(found[:, 256:300], x[:, 256:300]) > 0.5


@pytest.mark.parametrize("kind", ["layer", "rms"])
@pytest.mark.parametrize(("n", "n_in", "n_out"), [(5, 33, 70), (900, 256, 64), (3, 1280, 200)])
def test_a_normalisation_goes_into_the_layers_behind_it(kind: str, n: int, n_in: int, n_out: int, tmp_path: Path) -> None:
    x, weight, scale, shift = normal(n, n_in) * 3 + 1, normal(n_out, n_in, seed=1), normal(n_in, seed=2), normal(n_in, seed=3)
    g = recorder(w__weight=weight, norm__weight=scale, norm__bias=shift)
    norm = nn.layer_norm if kind == "layer" else nn.rms_norm
    run = made(tmp_path, g, n_in, lambda g, x: nn.linear(g, norm(g, x, "norm", 1e-5), "w"), n_out)
    assert ops(tmp_path / "model.onnx") == {"Linear", "Identity"}
    wide = x.astype(np.float64)
    wide -= wide.mean(axis=1, keepdims=True) if kind == "layer" else 0
    wanted = wide / np.sqrt((wide**2).mean(axis=1, keepdims=True) + 1e-5) * scale + (shift if kind == "layer" else 0)
    found = run.run({"x": x})
    # what int8 rounds up or down may differ where a number lies between two
    assert distance(found, emulated(wanted.astype(np.float32), weight, None)) < 2e-3
    assert distance(found, wanted @ weight.T.astype(np.float64)) < 2e-2


def test_a_normalisation_that_others_read_too_stays(tmp_path: Path) -> None:
    x, weight = normal(9, 64), normal(64, 64, seed=1)
    g = recorder(w__weight=weight, norm__weight=np.ones(64, np.float32), norm__bias=np.zeros(64, np.float32))

    def layers(g: Graph, x: Value) -> Value:
        rows = nn.layer_norm(g, x, "norm", 1e-5)
        return g.Add(rows, nn.linear(g, rows, "w"))

    found = made(tmp_path, g, 64, layers, 64).run({"x": x})
    wanted = (x - x.mean(axis=1, keepdims=True)) / np.sqrt(x.var(axis=1, keepdims=True) + 1e-5)
    assert ops(tmp_path / "model.onnx") == {"LayerNormalization", "Linear", "Add", "Identity"}
    assert distance(found, wanted + wanted @ weight.T) < 1e-2


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize(("n", "n_in", "n_inner", "n_out"), [(1, 8, 5, 3), (50, 96, 257, 70), (1700, 64, 160, 64)])
def test_an_mlp_is_its_layers_one_after_the_other(
    gated: bool, n: int, n_in: int, n_inner: int, n_out: int, tmp_path: Path
) -> None:
    shapes = {"gate": (n_inner, n_in), "up": (n_inner, n_in), "down": (n_out, n_inner)}
    weights = {f"w_{name}__weight": normal(*shape, seed=i) for i, (name, shape) in enumerate(shapes.items())}
    biases = {f"w_{name}__bias": normal(shape[0], seed=9 + i) for i, (name, shape) in enumerate(shapes.items())}

    def whole(g: Graph, x: Value) -> Value:
        return nn.gated_mlp(g, x, "w", nn.silu) if gated else nn.mlp(g, x, "w_up", "w_down", nn.silu)

    def apart(g: Graph, x: Value) -> Value:
        inner = nn.linear(g, x, "w_up", None if gated else nn.silu)
        return nn.linear(g, g.Mul(nn.linear(g, x, "w_gate", nn.silu), inner) if gated else inner, "w_down")

    for name in ("one", "two", "threads"):
        (tmp_path / name).mkdir()
    x = normal(n, n_in, seed=5)
    one = made(tmp_path / "one", recorder(**weights, **biases), n_in, whole, n_out)
    two = made(tmp_path / "two", recorder(**weights, **biases), n_in, apart, n_out)
    found = one.run({"x": x})
    assert ops(tmp_path / "one/model.onnx") == {"Mlp", "Identity"}
    np.testing.assert_array_equal(found, two.run({"x": x}))
    np.testing.assert_array_equal(one.run({"x": x[-1:]}), found[-1:])
    threads = made(tmp_path / "threads", recorder(**weights, **biases), n_in, whole, n_out, threads=2)
    np.testing.assert_array_equal(threads.run({"x": x}), found)


@pytest.mark.parametrize("layered", [True, False])
def test_a_tap_waits_in_float16(layered: bool, tmp_path: Path) -> None:
    weights = {"w_up__weight": normal(80, 64), "w_down__weight": normal(70, 80, seed=1)}

    def layers(g: Graph, x: Value) -> Value:
        rows = nn.mlp(g, x, "w_up", "w_down", nn.silu)
        return rows if layered else g.Abs(rows)

    def tapped(g: Graph, x: Value) -> Value:
        return nn.tap(g, layers(g, x), 70)

    x, runs = normal(100, 64, seed=2), []
    x[7] *= 1e4  # some come out of float16's range
    for of in (layers, tapped):
        (tmp_path / of.__name__).mkdir()
        runs.append(made(tmp_path / of.__name__, recorder(**weights), 64, of, 70).run({"x": x}))
    wide, half = runs
    assert half.dtype == np.float16
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(half, wide.astype(np.float16))
    made_of = {"MlpToFloat16"} if layered else {"Mlp", "Abs", "Cast"}
    assert ops(tmp_path / "tapped/model.onnx") == {*made_of, "Identity"}


def test_what_something_is_added_to_stays_for_others_that_read_it(tmp_path: Path) -> None:
    """An operator may write to the place of what it adds to only where nobody reads that any more."""
    weights = {
        "w__weight": normal(64, 64) / 8,
        "up__weight": normal(80, 64, seed=1) / 8,
        "down__weight": normal(64, 80, seed=2) / 9,
    }

    def layers(g: Graph, x: Value, late: bool) -> Value:
        a = nn.linear(g, x, "w")
        b = nn.add(g, a, nn.linear(g, a, "w"))
        c = nn.add(g, b, nn.mlp(g, b, "up", "down", nn.silu))
        return nn.add(g, g.Add(c, g.Mul(g.Add(a, b), 3.0)) if late else c, nn.linear(g, c, "w"))

    def apart(g: Graph, x: Value, late: bool) -> Value:
        a = nn.linear(g, x, "w")
        b = g.Add(a, nn.linear(g, a, "w"))
        c = g.Add(b, nn.linear(g, nn.linear(g, b, "up", nn.silu), "down"))
        return g.Add(g.Add(c, g.Mul(g.Add(a, b), 3.0)) if late else c, nn.linear(g, c, "w"))

    x = normal(300, 64, seed=4)
    for late in (False, True):
        runs = []
        for name, of in (("one", layers), ("two", apart)):
            (tmp_path / f"{name}{late}").mkdir()
            g, folder = recorder(**weights), tmp_path / f"{name}{late}"
            runs.append(made(folder, g, 64, partial(of, late=late), 64).run({"x": x}))
        np.testing.assert_allclose(*runs, rtol=1e-6, atol=1e-6)
    assert ops(tmp_path / "oneFalse/model.onnx") == {"Linear", "Mlp", "Identity"}


def test_a_table_is_read_between_its_rows_and_not_beyond_it(tmp_path: Path) -> None:
    table, x = normal(9, 40), normal(700, 40, seed=1)
    taps, shares = np.random.default_rng(2).integers(0, 9, (700, 4)), normal(700, 4, seed=3)
    g = recorder(table__weight=table)
    given = g.input("taps", ("n", 4), np.int64), g.input("shares", ("n", 4))
    run = made(tmp_path, g, 40, lambda g, x: nn.interpolated(g, x, "table.weight", *given), 40, threads=2)
    found = run.run({"x": x, "taps": taps, "shares": shares})
    assert ops(tmp_path / "model.onnx") == {"Interpolated", "Identity"}
    np.testing.assert_allclose(found, x + np.einsum("nm,nmw->nw", shares, table[taps]), rtol=1e-5, atol=1e-5)
    for wrong in (9, -1):
        taps[500, 2] = wrong
        with pytest.raises(EngineError, match="taps are rows of the table"):
            run.run({"x": x, "taps": taps, "shares": shares})


def test_rows_come_from_attention_and_go_to_it_in_bfloat16(tmp_path: Path) -> None:
    """Between layers and attention no float32 is made; what comes out is what it is with casts."""
    names, weights = (
        ("q", "k", "v", "out"),
        {f"w_{name}__weight": normal(64, 64, seed=i) for i, name in enumerate(("q", "k", "v", "out"))},
    )

    def layers(g: Graph, x: Value, cut: bool) -> Value:
        spans = g.constant(np.array([[1, 40]]))
        q, k, v = (nn.linear(g, x, f"w_{name}") for name in names[:3])
        if cut:  # an operator between that the kernels see nothing through
            q, k, v = (g.Reshape(y, [-1, 64]) for y in (q, k, v))
        rows = nn.attention(g, q, k, v, spans, 2, 0.02)
        return nn.linear(g, g.Reshape(rows, [-1, 64]) if cut else rows, "w_out")

    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    x = normal(40, 64, seed=7)
    one = made(tmp_path / "one", recorder(**weights), 64, lambda g, x: layers(g, x, False), 64)
    two = made(tmp_path / "two", recorder(**weights), 64, lambda g, x: layers(g, x, True), 64)
    assert ops(tmp_path / "one/model.onnx") == {"LinearToBFloat16", "Attention", "Linear", "Identity"}
    assert ops(tmp_path / "two/model.onnx") == {"Linear", "Reshape", "Cast", "Attention", "Identity"}
    np.testing.assert_array_equal(one.run({"x": x}), two.run({"x": x}))


def test_a_sum_goes_to_attention_as_a_sum(tmp_path: Path) -> None:
    weights = {"w__weight": normal(64, 64) / 8}

    def layers(g: Graph, x: Value, cut: bool) -> Value:
        rows = nn.add(g, x, nn.linear(g, x, "w"))
        rows = g.Reshape(rows, [-1, 64]) if cut else rows
        return nn.attention(g, rows, rows, rows, g.constant(np.array([[1, 40]])), 2, 0.2)

    runs = []
    for cut in (False, True):
        (folder := tmp_path / str(cut)).mkdir()
        runs.append(made(folder, recorder(**weights), 64, partial(layers, cut=cut), 64).run({"x": normal(40, 64, seed=7)}))
    assert "LinearToBFloat16" in ops(tmp_path / "False/model.onnx")
    np.testing.assert_array_equal(*runs)


@pytest.mark.parametrize(
    ("n_head", "dim", "spans"), [(4, 80, [(1, 200)]), (2, 64, [(3, 64), (1, 7)]), (3, 6, [(1, 40)]), (1, 256, [(1, 9)])]
)
def test_attention_turns_queries_and_keys_by_their_angles(n_head: int, dim: int, spans: Spans, tmp_path: Path) -> None:
    n = sum(count * length for count, length in spans)
    angles = normal(n, dim // 2, seed=4) * 3
    feed = {**fed(n, n_head * dim, spans), "cos": np.cos(angles), "sin": np.sin(angles)}
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    one = attention(tmp_path / "one", n_head, n_head * dim, dim**-0.5, turned=True)
    two = attention(tmp_path / "two", n_head, n_head * dim, dim**-0.5, turned=True, kernels=frozenset())
    found, wanted = one.run(feed), two.run(feed)
    assert distance(found, wanted) < 8e-3, "rounded before and after they are turned"
    flat = attention(tmp_path, n_head, n_head * dim, dim**-0.5).run({name: feed[name] for name in ("q", "k", "v", "spans")})
    assert distance(flat, wanted) > 0.1


def test_keys_of_more_than_can_be_packed_at_once_are_taken_in_turns(tmp_path: Path) -> None:
    """32 MiB of keys and values are packed together, which is 1,638 segments of 64 rows of 80 numbers."""
    spans: Spans = [(2100, 64)]
    feed = fed(2100 * 64, 80, spans)
    found = attention(tmp_path, 1, 80, 0.1, threads=2).run(feed)
    for at in (0, 1637, 1638, 2099):
        rows = slice(at * 64, (at + 1) * 64)
        some = {**{name: feed[name][rows] for name in "qkv"}, "spans": np.array([[1, 64]])}
        assert distance(found[rows], exact(some, 1, 0.1)) < 6e-3


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_stays_none(wrong: float, tmp_path: Path) -> None:
    x = np.ones((3, 300), np.float32)
    x[1, 7] = wrong
    found = linear(tmp_path, np.ones((70, 300), np.float32), None).run({"x": x})
    assert not np.isfinite(found[1]).any()
    np.testing.assert_allclose(found[[0, 2]], 300, rtol=1e-5)


def test_zeros_and_no_rows(tmp_path: Path) -> None:
    bias = np.arange(70, dtype=np.float32)
    made = linear(tmp_path, np.ones((70, 300), np.float32), bias)
    np.testing.assert_array_equal(made.run({"x": np.zeros((2, 300), np.float32)}), [bias, bias])
    assert made.run({"x": np.zeros((0, 300), np.float32)}).shape == (0, 70)


@pytest.mark.parametrize(("n_in", "n_out"), [(9, 64), (8, 65)])
def test_weights_of_another_layer_are_refused(n_in: int, n_out: int, tmp_path: Path) -> None:
    g = Graph(Weights({}, {}), kernels=KERNELS)
    layer = (np.zeros((1, 2, 64, 4), np.int8), np.zeros(64, np.float32), np.zeros((1, 64), np.int32))
    rows, settings = (g.input("x", ("n", "in")), None, None), {"epsilon": 0.0, "out": n_out, "activation": "none"}
    (out,) = g.op("Linear", *rows, *layer, domain=DIPTYCH, **settings)
    g.output("out", out, ("n", n_out))
    with pytest.raises(EngineError, match="weights, scales and shift are not of this layer"):
        session(g, tmp_path).run({"x": np.zeros((1, n_in), np.float32)})


def test_an_activation_of_no_such_name_is_refused_when_the_graph_is_loaded(tmp_path: Path) -> None:
    g = Graph(Weights({}, {}), kernels=KERNELS)
    layer = (np.zeros((1, 2, 64, 4), np.int8), np.zeros(64, np.float32), np.zeros((1, 64), np.int32))
    rows, settings = (g.input("x", ("n", 8)), None, None), {"epsilon": 0.0, "out": 64, "activation": "relu"}
    (out,) = g.op("Linear", *rows, *layer, domain=DIPTYCH, **settings)
    g.output("out", out, ("n", 64))
    with pytest.raises(FileError, match="activation is none, gelu"):
        session(g, tmp_path)


def test_without_a_compiler_diptych_is_installed_without_the_kernels_and_with_one_with_them(tmp_path: Path) -> None:
    for name in ("kernels", "src/diptych/encoder"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)

    def wheel(**variables: str) -> tuple[Path, str]:
        command, environment = [sys.executable, "-m", "hatchling", "build", "-t", "wheel"], {**os.environ, **variables}
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        (made,) = (tmp_path / "dist").iterdir()
        return made.rename(tmp_path / made.name), done.stdout + done.stderr

    without, told = wheel(CXX="/nowhere/c++")
    assert without.name.endswith("-py3-none-any.whl")
    assert "installed without its kernels: " in told
    made, told = wheel()
    assert not made.name.endswith("-any.whl"), told
    inside = [set(ZipFile(path).namelist()) for path in (without, made)]
    assert inside[1] - inside[0] >= {"diptych/encoder/diptych_kernels.so"}


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="there is one core, and so one thread")
def test_a_session_leaves_threads_to_others_while_it_is_told_to(tmp_path: Path) -> None:
    weight, x = normal(1024, 1024), normal(2000, 1024, seed=1)
    run = linear(tmp_path, weight, None, threads=2).run
    wanted = run({"x": x})

    def others() -> float:
        """Of the CPU's time that some runs take, the part of other threads than this one."""
        start = time.process_time(), time.thread_time()
        for _ in range(10):
            np.testing.assert_array_equal(run({"x": x}), wanted)
        whole, own = time.process_time() - start[0], time.thread_time() - start[1]
        return (whole - own) / whole

    assert others() > 0.2
    with at_most(1):
        time.sleep(0.2)  # the others look for work a while
        assert others() < 0.1
    assert others() > 0.2


def test_without_the_library_nobody_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "LIBRARY", tmp_path / "none.so")
    kernels._use_threads.cache_clear()
    with at_most(1):
        pass
    kernels._use_threads.cache_clear()
