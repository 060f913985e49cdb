"""Layers against NumPy, in the dynamic graph's ops and in the portable ones of static graphs."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from test_graph import run, tensor, weights

from diptych.graph import nn
from diptych.graph.graph import Graph

N, N_HEAD, D = 2300, 3, 16  # more rows than two blocks of queries
RNG = np.random.default_rng(0)
Q, K, V = RNG.standard_normal((3, N, N_HEAD * D), np.float32)
ANGLES = RNG.standard_normal((N, D // 2), np.float32)


def graph(static: bool, spans: NDArray[np.int64]) -> tuple[Graph, dict[str, NDArray[Any]]]:
    feed: dict[str, NDArray[Any]] = {"q": Q, "k": K, "v": V, "cos": np.cos(ANGLES), "sin": np.sin(ANGLES), "spans": spans}
    if not static:
        return Graph(weights()), feed
    fixed = {n: a if n in ("cos", "sin", "spans") else a.shape for n, a in feed.items()}
    return Graph(weights(), fixed), {n: feed[n] for n in "qkv"}


def attended(q: NDArray[Any], k: NDArray[Any], v: NDArray[Any]) -> NDArray[Any]:
    q, k, v = (x.astype(np.float64).reshape(len(x), N_HEAD, D).transpose(1, 0, 2) for x in (q, k, v))
    scores = q @ k.transpose(0, 2, 1) / math.sqrt(D)
    scores = np.exp(scores - scores.max(-1, keepdims=True))
    return (scores / scores.sum(-1, keepdims=True) @ v).transpose(1, 0, 2).reshape(-1, N_HEAD * D)


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize(
    "spans", [[(1, N)], [(1, 4), (1, 1300), (1, 996)], [(1, 1), (1, N - 1)], [(20, 64), (3, 32), (1, N - 1376)]]
)
def test_attention_keeps_within_its_segments(static: bool, spans: list[tuple[int, int]]) -> None:
    g, feed = graph(static, np.array(spans))
    q, k, v = (g.input(n, ("n", N_HEAD * D)) for n in "qkv")
    out = nn.attention(g, q, k, v, g.input("spans", ("m", 2), np.int64), N_HEAD, D**-0.5)
    g.output("y", out, ("n", N_HEAD * D))
    bounds = np.cumsum([0, *(length for count, length in spans for _ in range(count))])
    wanted = np.concatenate([attended(Q[a:b], K[a:b], V[a:b]) for a, b in pairwise(bounds)])
    np.testing.assert_allclose(run(g, **feed if static else {n: feed[n] for n in ("q", "k", "v", "spans")}), wanted, atol=2e-6)


@pytest.mark.parametrize("static", [False, True])
def test_rotation_turns_each_pair_by_its_angle(static: bool) -> None:
    g, feed = graph(static, np.array([[1, N]]))
    x, cos, sin = g.input("q", ("n", N_HEAD * D)), g.input("cos", ("n", D // 2)), g.input("sin", ("n", D // 2))
    g.output("y", nn.rotate(g, x, N_HEAD, cos, sin), ("n", N_HEAD * D))
    heads = Q.reshape(N, N_HEAD, 2, D // 2)
    turned = (heads[:, :, 0] + 1j * heads[:, :, 1]) * np.exp(1j * ANGLES)[:, None]
    wanted = np.stack([turned.real, turned.imag], axis=2).reshape(N, N_HEAD * D)
    np.testing.assert_allclose(run(g, **{n: a for n, a in feed.items() if n in ("q", "cos", "sin")}), wanted, atol=2e-6)


@pytest.mark.parametrize("bias", [False, True])
def test_a_linear_layer_adds_its_bias_where_there_is_one(bias: bool) -> None:
    w, b = RNG.standard_normal((7, 48), np.float32), RNG.standard_normal(7, np.float32)
    g = Graph(weights(tensor("mm.weight", w), *([tensor("mm.bias", b)] if bias else [])))
    g.output("y", nn.linear(g, g.input("q", ("n", 48)), "mm"), ("n", 7))
    np.testing.assert_allclose(run(g, q=Q), Q @ w.T + b * bias, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("portable", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_layer_in_int8_is_that_of_the_rounded_numbers(bias: bool, portable: bool) -> None:
    """Each row of the matrix has a scale of its own; one of zeros gives zeros. ONNX Runtime's op rounds what goes in too."""
    matrix = RNG.standard_normal((40, 48), np.float32) * np.logspace(-3, 1, 40, dtype=np.float32)[:, None]
    matrix[7] = 0
    given = [tensor("w.weight", matrix), *([tensor("w.bias", np.arange(40, dtype=np.float32))] if bias else [])]
    x, g = RNG.standard_normal((5, 48), np.float32), Graph(weights(*given), portable=portable, products="int8")
    g.output("y", nn.linear(g, g.input("x", ("n", 48)), "w"), ("n", 40))
    scales = np.abs(matrix).max(1, keepdims=True) / 127
    scales[7] = 1
    wanted = x @ (np.rint(matrix / scales) * scales).T + (np.arange(40) if bias else 0)
    step = 0 if portable else (x.max() - x.min()) / 255 / 2  # of what goes in, at most half a step off
    slack = step * np.abs(matrix).sum(1) + 1e-4
    assert {s.element_type for n, s in g.stored.items() if n == "w.weight"} == {3}
    assert (np.abs(run(g, x=x) - wanted) <= slack).all()


@pytest.mark.parametrize("portable", [True, False])
def test_layers_that_stay_wide_are_those_of_float32(portable: bool) -> None:
    matrix, x = RNG.standard_normal((40, 48), np.float32), RNG.standard_normal((5, 48), np.float32)
    stored = weights(tensor("mm.0.weight", matrix))
    g = Graph(stored, portable=portable, products="int8", wide=("mm.",))
    g.output("y", nn.linear(g, g.input("x", ("n", 48)), "mm.0"), ("n", 40))
    np.testing.assert_allclose(run(g, x=x), x @ matrix.T, rtol=1e-4, atol=1e-4)


def test_activations_and_norm_are_those_of_the_books() -> None:
    x = np.linspace(-6, 6, 96, dtype=np.float32).reshape(2, 48)
    scale, shift = RNG.standard_normal((2, 48), np.float32)
    stored = weights(tensor("ln.weight", scale), tensor("ln.bias", shift))
    erf = np.vectorize(math.erf)
    centred = x - x.mean(1, keepdims=True)
    cases = [
        (nn.gelu, x * (1 + erf(x / math.sqrt(2))) / 2),
        (nn.quick_gelu, x / (1 + np.exp(-1.702 * x))),
        (nn.gelu_tanh, x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2),
        (nn.silu, x / (1 + np.exp(-x))),
        (lambda g, v: nn.rms_norm(g, v, "ln", 1e-3), x / np.sqrt((x**2).mean(1, keepdims=True) + 1e-3) * scale),
        (lambda g, v: nn.layer_norm(g, v, "ln", 1e-3), centred / np.sqrt(x.var(1, keepdims=True) + 1e-3) * scale + shift),
    ]
    for layer, wanted in cases:
        for fixed in (None, {"x": (2, 48)}):  # a static graph has other ops
            g = Graph(stored, fixed)
            g.output("y", layer(g, g.input("x", ("n", 48))), ("n", 48))
            np.testing.assert_allclose(run(g, x=x), wanted, atol=2e-6)


def test_each_head_is_normalised_by_itself() -> None:
    scale = RNG.standard_normal(D, np.float32)
    g = Graph(weights(tensor("q_norm.weight", scale)))
    g.output("y", nn.head_norm(g, g.input("q", ("n", N_HEAD * D)), "q_norm", N_HEAD, 1e-3), ("n", N_HEAD * D))
    heads = Q.reshape(N, N_HEAD, D)
    wanted = heads / np.sqrt((heads**2).mean(-1, keepdims=True) + 1e-3) * scale
    np.testing.assert_allclose(run(g, q=Q), wanted.reshape(N, -1), atol=2e-6)


def test_a_gated_mlp_multiplies_the_gate_into_the_way_up() -> None:
    gate, up, down = (RNG.standard_normal(s, np.float32) / 8 for s in ((32, 48), (32, 48), (48, 32)))
    g = Graph(weights(*(tensor(f"ffn_{n}.weight", w) for n, w in (("gate", gate), ("up", up), ("down", down)))))
    g.output("y", nn.gated_mlp(g, g.input("q", ("n", 48)), "ffn", nn.silu), ("n", 48))
    through = Q @ gate.T
    np.testing.assert_allclose(run(g, q=Q), (through / (1 + np.exp(-through)) * (Q @ up.T)) @ down.T, rtol=1e-4, atol=1e-4)


def test_a_table_is_read_between_its_rows() -> None:
    table, taps = RNG.standard_normal((9, 48), np.float32), RNG.integers(0, 9, (7, 4))
    shares = RNG.random((7, 4), np.float32)
    g = Graph(weights(tensor("table.weight", table)))
    x, taps_in, shares_in = g.input("q", ("n", 48)), g.input("taps", ("n", 4), np.int64), g.input("shares", ("n", 4))
    g.output("y", nn.interpolated(g, x, "table.weight", taps_in, shares_in), ("n", 48))
    wanted = Q[:7] + np.einsum("nm,nmw->nw", shares, table[taps])
    np.testing.assert_allclose(run(g, q=Q[:7], taps=taps, shares=shares), wanted, atol=2e-6)


def test_a_lattice_is_read_between_its_points() -> None:
    table, down, across = (RNG.standard_normal(s, np.float32) for s in ((15, 48), (7, 3), (7, 5)))
    g = Graph(weights(tensor("table.weight", table)))
    g.output("y", nn.resampled(g, g.weight("table.weight"), g.input("down", ("n", 3)), g.input("across", ("n", 5))), ("n", 48))
    wanted = np.einsum("ny,nx,yxw->nw", down, across, table.reshape(3, 5, 48))
    np.testing.assert_allclose(run(g, down=down, across=across), wanted, atol=1e-5)


def test_a_static_graph_has_onnx_ops_alone() -> None:
    g, _ = graph(True, np.array([[1, N]]))
    q = nn.rotate(g, g.input("q", (N, N_HEAD * D)), N_HEAD, g.input("cos", ()), g.input("sin", ()))
    g.output("y", nn.attention(g, q, q, q, g.input("spans", ()), N_HEAD, 1.0), (N, N_HEAD * D))
    model = onnx.load_from_string(g.serialize({}))
    assert {n.domain for n in model.graph.node} == {""}
    onnx.checker.check_model(model, full_check=True)
