"""Layers of encoders: functions (g, x, name, …) → x where `name` is the prefix of the weights' names.

Activations of a packed graph are (n_patch, width), with the pictures of a run one after the other.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diptych.graph.graph import Graph, Value

MICROSOFT = "com.microsoft"  # ONNX Runtime's own ops
QUERY_BLOCK = 1024  # rows; at 5,476 patches as fast as all at once, in a third of the memory


def linear(g: Graph, x: Value, name: str) -> Value:
    """x (n, in) → x Wᵀ + b (n, out). The weight is read as it lies, (out, in); an absent bias is not added."""
    with g.scope(name):
        bias = [g.weight(f"{name}.bias")] if g.has(f"{name}.bias") else []
        return g.Gemm(x, g.weight(f"{name}.weight"), *bias, transB=1)


def layer_norm(g: Graph, x: Value, name: str, eps: float) -> Value:
    """Normalise each row to mean 0 and variance 1, then scale and shift."""
    with g.scope(name):
        return g.LayerNormalization(x, g.weight(f"{name}.weight"), g.weight(f"{name}.bias"), axis=-1, epsilon=eps)


def gelu(g: Graph, x: Value) -> Value:
    """x Φ(x), with the error function."""
    return g.Gelu(x)


def quick_gelu(g: Graph, x: Value) -> Value:
    """x σ(1.702 x)."""
    return g.Mul(x, g.Sigmoid(g.Mul(x, 1.702)))


def mlp(g: Graph, x: Value, up: str, down: str, act: Callable[[Graph, Value], Value]) -> Value:
    """down(act(up(x)))."""
    return linear(g, act(g, linear(g, x, up)), down)


def qkv(g: Graph, x: Value, name: str) -> tuple[Value, Value, Value]:
    """Query, key and value, each (n, width), of weights that are fused (`attn_qkv`) or three."""
    if g.has(f"{name}.attn_qkv.weight"):
        q, k, v = g.op("Split", linear(g, x, f"{name}.attn_qkv"), axis=-1, num_outputs=3, n_out=3)
        return q, k, v
    return linear(g, x, f"{name}.attn_q"), linear(g, x, f"{name}.attn_k"), linear(g, x, f"{name}.attn_v")


def rotate(g: Graph, x: Value, n_head: int, cos: Value, sin: Value) -> Value:
    """Turn the pairs (j, j + d/2) of each head of x (n, n_head · d) by angles given as cos and sin (n, d/2)."""
    if not g.static:
        start = g.constant([0])
        (turned,) = g.op("RotaryEmbedding", g.Unsqueeze(x, [0]), start, cos, sin, domain=MICROSOFT, num_heads=n_head)
        return g.Squeeze(turned, [0])
    cos, sin = g.Unsqueeze(cos, [1]), g.Unsqueeze(sin, [1])  # (n, 1, d/2)
    a, b = g.op("Split", g.Reshape(x, [0, n_head, -1]), axis=-1, num_outputs=2, n_out=2)  # (n, n_head, d/2)
    turned = g.Concat(g.Sub(g.Mul(a, cos), g.Mul(b, sin)), g.Add(g.Mul(b, cos), g.Mul(a, sin)), axis=-1)
    return g.Flatten(turned, axis=1)


def attention(g: Graph, q: Value, k: Value, v: Value, bounds: Value, n_head: int, scale: float) -> Value:
    """softmax(scale · q kᵀ) v within each segment of the rows: none sees another picture's, and the cost is Σ nᵢ².

    q, k, v (n, n_head · d) and the segments' bounds (n_segment + 1,) int64 → (n, n_head · d).
    """
    with g.scope("attention"):
        if not g.static:
            return _each_segment(g, q, k, v, bounds, n_head, scale)
        known = g.known(bounds)
        if known is None:
            raise ValueError("a static graph has its segments fixed")
        parts = [_blocked(g, q, k, v, rows, n_head, scale) for rows in pairwise(known.tolist())]
        return g.Reshape(parts[0] if len(parts) == 1 else g.Concat(*parts, axis=0), g.Shape(q))


def _each_segment(g: Graph, q: Value, k: Value, v: Value, bounds: Value, n_head: int, scale: float) -> Value:
    """A loop over the segments; its results are gathered in a sequence, since they differ in length."""

    def step(i: Value, done: Value) -> Value:
        start, end = (g.Gather(bounds, g.Unsqueeze(at, [0])) for at in (i, g.Add(i, 1)))
        rows = [g.Unsqueeze(g.Slice(x, start, end, [0]), [0]) for x in (q, k, v)]  # (1, nᵢ, n_head · d)
        (out,) = g.op("MultiHeadAttention", *rows, domain=MICROSOFT, num_heads=n_head, scale=scale)
        return g.SequenceInsert(done, g.Squeeze(out, [0]))

    n = g.Sub(g.Squeeze(g.Shape(bounds)), 1)
    return g.ConcatFromSequence(g.loop(n, g.SequenceEmpty(), step), axis=0)


def _blocked(g: Graph, q: Value, k: Value, v: Value, rows: tuple[int, int], n_head: int, scale: float) -> Value:
    """One segment in ONNX's own ops → (n, n_head, d), by blocks of query rows so that the scores stay small."""
    q, k, v = (g.Reshape(g.Slice(x, [rows[0]], [rows[1]], [0]), [0, n_head, -1]) for x in (q, k, v))  # (n, n_head, d)
    q, k, v = g.Mul(g.Transpose(q, perm=[1, 0, 2]), scale), g.Transpose(k, perm=[1, 2, 0]), g.Transpose(v, perm=[1, 0, 2])
    parts = []
    for start in range(0, rows[1] - rows[0], QUERY_BLOCK):
        block = g.Slice(q, [start], [start + QUERY_BLOCK], [1])  # (n_head, n_block, d)
        parts.append(g.MatMul(g.Softmax(g.MatMul(block, k), axis=-1), v))
    return g.Transpose(parts[0] if len(parts) == 1 else g.Concat(*parts, axis=1), perm=[1, 0, 2])
