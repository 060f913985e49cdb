"""Layers of encoders: functions (g, x, name, …) → x where `name` is the prefix of the weights' names.

Activations of a packed graph are (n_patch, width), with the pictures of a run one after the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from diptych.graph import kernels

if TYPE_CHECKING:
    from diptych.graph.graph import Graph, Value

    Act = Callable[[Graph, Value], Value]

MICROSOFT = "com.microsoft"  # ONNX Runtime's own ops
_FLOAT, _INT64 = 1, 7  # ONNX's numbers of the types
_HIDDEN = -1e30  # what is added to the score of a key that is not to be seen; bfloat16 has it too
QUERY_BLOCK = 1024  # rows; at 5,476 patches as fast as all at once, in a third of the memory


def linear(g: Graph, x: Value, name: str, act: Act | None = None) -> Value:
    """x (n, in) → x Wᵀ + b (n, out), through `act` if there is one. The weight is read as it lies, (out, in); an absent bias
    is not added."""
    with g.scope(name):
        if kernels.has_layer(g, name):
            inside = _inside(act)
            rows = kernels.linear(g, x, name, inside or "none")
            return act(g, rows) if act and not inside else rows
        rows = _product(g, x, name, [g.weight(f"{name}.bias")] if g.has(f"{name}.bias") else [])
        return act(g, rows) if act else rows


def _product(g: Graph, x: Value, name: str, bias: list[Value]) -> Value:
    if columns := g.columns(f"{name}.weight"):
        (rows,) = g.op("DynamicQuantizeMatMul", x, *columns, None, *bias, domain=MICROSOFT)
        return rows
    weight = g.matrix(f"{name}.weight")
    if weight.dtype in (None, _FLOAT):
        return g.Gemm(x, weight, *bias, transB=1)
    # a Gemm would do, but OpenVINO then keeps the weights twice
    rows = g.Cast(g.MatMul(g.Cast(x, to=int(weight.dtype)), g.Transpose(weight, perm=[1, 0])), to=_FLOAT)
    return g.Add(rows, *bias) if bias else rows


def layer_norm(g: Graph, x: Value, name: str, eps: float) -> Value:
    """Normalise each row to mean 0 and variance 1, then scale and shift."""
    with g.scope(name):
        return g.LayerNormalization(x, g.weight(f"{name}.weight"), g.weight(f"{name}.bias"), axis=-1, epsilon=eps)


def rms_norm(g: Graph, x: Value, name: str, eps: float) -> Value:
    """Scale each row to a mean square of 1, then by the weight."""
    with g.scope(name):
        if g.kernels:
            return g.SimplifiedLayerNormalization(x, g.weight(f"{name}.weight"), axis=-1, epsilon=eps)
        mean = g.ReduceMean(g.Pow(x, 2.0), [-1], keepdims=1)  # ONNX Runtime fuses this form; the op needs opset 23
        return g.Mul(g.Div(x, g.Sqrt(g.Add(mean, eps))), g.weight(f"{name}.weight"))


def head_norm(g: Graph, x: Value, name: str, n_head: int, eps: float) -> Value:
    """RMSNorm of each head of x (n, n_head · d) by itself, with one weight (d,) for all."""
    heads = rms_norm(g, g.Reshape(x, [0, n_head, -1]), name, eps)
    return g.Flatten(heads, axis=1)


def gelu(g: Graph, x: Value) -> Value:
    """x Φ(x), with the error function. Other providers than the CPU's often know Erf and no Gelu (measured: ggml's)."""
    if not g.portable:
        return g.Gelu(x)
    return g.Mul(g.Mul(x, 0.5), g.Add(g.Erf(g.Mul(x, math.sqrt(0.5))), 1.0))


def gelu_tanh(g: Graph, x: Value) -> Value:
    """x Φ(x), Φ by tanh: 0.5 x (1 + tanh(√(2/π) (x + 0.044715 x³)))."""
    return g.Gelu(x, approximate="tanh")


def silu(g: Graph, x: Value) -> Value:
    """x σ(x)."""
    return g.Mul(x, g.Sigmoid(x))


def quick_gelu(g: Graph, x: Value) -> Value:
    """x σ(1.702 x)."""
    return g.Mul(x, g.Sigmoid(g.Mul(x, 1.702)))


def _inside(act: Act | None) -> str | None:
    """The name of an activation that Diptych's own operators have."""
    return act.__name__ if act in (gelu, gelu_tanh, quick_gelu, silu) else None


def add(g: Graph, x: Value, y: Value) -> Value:
    """x + y, a layer's rows and what the layer made of them."""
    out = kernels.added(g, x, y)
    return g.Add(x, y) if out is None else out


def tap(g: Graph, x: Value, width: int) -> Value:
    """Rows (n_token, width) of an early layer, which wait for the last one's to stand beside them in the output.

    With Diptych's kernels they wait in float16, which has more digits than what is made in int8.
    """
    return kernels.tap(g, x, width) if g.kernels else x


def mlp(g: Graph, x: Value, up: str, down: str, act: Act) -> Value:
    """down(act(up(x)))."""
    if (inside := _inside(act)) and kernels.has_layer(g, up) and kernels.has_layer(g, down):
        with g.scope(up):
            return kernels.mlp(g, x, up, down, inside)
    return linear(g, linear(g, x, up, act), down)


def gated_mlp(g: Graph, x: Value, name: str, act: Act) -> Value:
    """down(act(gate(x)) · up(x)), the weights `name` with _gate, _up and _down behind it."""
    gate, up, down = (f"{name}_{part}" for part in ("gate", "up", "down"))
    if (inside := _inside(act)) and all(kernels.has_layer(g, layer) for layer in (gate, up, down)):
        with g.scope(name):
            return kernels.mlp(g, x, up, down, inside, gate)
    return linear(g, g.Mul(linear(g, x, gate, act), linear(g, x, up)), down)


def interpolated(g: Graph, x: Value, table: str, taps: Value, shares: Value) -> Value:
    """x (n, width), to its row i Σⱼ shares[i, j] · table[taps[i, j]] added: a learned table (rows, width), a weight by its
    name, read between its rows.

    taps (n, m) int64 and shares (n, m), m = 4 for a bilinear table of two axes; for more taps there is `resampled`.
    """
    if g.kernels:
        return kernels.interpolated(g, x, table, taps, shares)
    read = g.Gather(g.weight(table), taps, axis=0)
    return g.Add(x, g.Squeeze(g.MatMul(g.Unsqueeze(shares, [1]), read), [1]))


def resampled(g: Graph, table: Value, down: Value, across: Value) -> Value:
    """(n, width): row i is Σ down[i, y] · across[i, x] · table[y · n_x + x], a learned lattice read between its points.

    table (n_y · n_x, width), down (n, n_y) and across (n, n_x) with mostly zeros. At 20,000 rows of 1,536 the 16 taps of a
    bicubic table take 4.1 GB when gathered; this takes 0.2 GB and is as fast.
    """
    shares = g.Mul(g.Unsqueeze(down, [2]), g.Unsqueeze(across, [1]))  # (n, n_y, n_x)
    return g.MatMul(g.Flatten(shares, axis=1), table)


def rotate(g: Graph, x: Value, n_head: int, cos: Value, sin: Value) -> Value:
    """Turn the pairs (j, j + d/2) of each head of x (n, n_head · d) by angles given as cos and sin (n, d/2)."""
    if not g.portable:
        start = g.constant([0])
        (turned,) = g.op("RotaryEmbedding", g.Unsqueeze(x, [0]), start, cos, sin, domain=MICROSOFT, num_heads=n_head)
        return g.Squeeze(turned, [0])
    cos, sin = g.Unsqueeze(cos, [1]), g.Unsqueeze(sin, [1])  # (n, 1, d/2)
    a, b = g.op("Split", g.Reshape(x, [0, n_head, -1]), axis=-1, num_outputs=2, n_out=2)  # (n, n_head, d/2)
    turned = g.Concat(g.Sub(g.Mul(a, cos), g.Mul(b, sin)), g.Add(g.Mul(b, cos), g.Mul(a, sin)), axis=-1)
    return g.Flatten(turned, axis=1)


def attention(
    g: Graph,
    q: Value,
    k: Value,
    v: Value,
    spans: Value,
    n_head: int,
    scale: float,
    *,
    angles: tuple[Value, Value] | None = None,
    even: bool = False,
) -> Value:
    """softmax(scale · q kᵀ) v within each segment of the rows: none sees another's, and the cost is Σ nᵢ².

    q, k, v (n, n_head · d) → (n, n_head · d); q and k are turned by their angles before, cos and sin as `rotate` has them. A
    row (count, length) of spans (n_span, 2) int64 stands for the next `count` segments of `length` rows each, which are
    computed at once: the windows of a picture, or a whole picture. A portable graph that is not static wants to know when
    there is one row of spans: `even`.
    """
    with g.scope("attention"):
        if "attention" in g.kernels:
            return kernels.attention(g, q, k, v, spans, n_head, scale, angles)
        if angles:
            q, k = (rotate(g, x, n_head, *angles) for x in (q, k))
        if not g.portable:
            return _each_span(g, q, k, v, spans, n_head, scale)
        if not g.static:
            return (_even if even else _padded)(g, q, k, v, spans, n_head, scale)
        known = g.known(spans)
        if known is None:
            raise ValueError("a static graph has its spans fixed")
        parts, start = [], 0
        for count, length in known.tolist():
            parts.append(_blocked(g, q, k, v, start, (count, length), n_head, scale))
            start += count * length
        return g.Reshape(parts[0] if len(parts) == 1 else g.Concat(*parts, axis=0), g.Shape(q))


def _each_span(g: Graph, q: Value, k: Value, v: Value, spans: Value, n_head: int, scale: float) -> Value:
    """A loop over the spans; its results are gathered in a sequence, since they differ in length."""
    n_rows = g.ReduceProd(spans, [1], keepdims=0)
    ends = g.CumSum(n_rows, 0)
    starts = g.Sub(ends, n_rows)

    def step(i: Value, done: Value) -> Value:
        at = g.Unsqueeze(i, [0])
        start, end = g.Gather(starts, at), g.Gather(ends, at)
        shape = g.Concat(g.Gather(spans, i), [-1], axis=0)
        rows = [g.Reshape(g.Slice(x, start, end, [0]), shape) for x in (q, k, v)]  # (count, length, n_head · d)
        (out,) = g.op("MultiHeadAttention", *rows, domain=MICROSOFT, num_heads=n_head, scale=scale)
        return g.SequenceInsert(done, g.Flatten(out, axis=2))

    return g.ConcatFromSequence(g.loop(g.Squeeze(g.Shape(n_rows)), g.SequenceEmpty(), step), axis=0)


def _even(g: Graph, q: Value, k: Value, v: Value, spans: Value, n_head: int, scale: float) -> Value:
    """All segments have one length, so that they stand beside each other as they are."""
    (shape,) = g.once(("even", spans), lambda: (g.Concat(g.Reshape(spans, [2]), [n_head, -1], axis=0),))
    q_heads, k_heads, v_heads = (g.Transpose(g.Reshape(x, shape), perm=[0, 2, 1, 3]) for x in (q, k, v))
    return g.Reshape(_heads(g, q_heads, k_heads, v_heads, scale), g.Shape(q))


def _padded(g: Graph, q: Value, k: Value, v: Value, spans: Value, n_head: int, scale: float) -> Value:
    """Segments are filled up to the longest one, and a mask over keys alone, (n_segment, 1, 1, length), hides what is filled."""
    places, mask, back = g.once(("padded", spans), lambda: _places(g, spans))
    rows = [g.Gather(x, places, axis=0) for x in (q, k, v)]  # (n_segment, length, n_head · d)
    q_heads, k_heads, v_heads = (g.Transpose(g.Reshape(x, [0, 0, n_head, -1]), perm=[0, 2, 1, 3]) for x in rows)
    seen = _heads(g, q_heads, k_heads, v_heads, scale, mask)
    return g.Gather(g.Reshape(seen, g.Concat([-1], g.Slice(g.Shape(q), [1], [2]), axis=0)), back, axis=0)


def _heads(g: Graph, q: Value, k: Value, v: Value, scale: float, mask: Value | None = None) -> Value:
    """(count, n_head, length, d) each → (count, length, n_head, d); runtimes know this form and fuse it."""
    scores = g.MatMul(g.Mul(q, scale), g.Transpose(k, perm=[0, 1, 3, 2]))
    shares = g.Softmax(scores if mask is None else g.Add(scores, mask), axis=-1)
    return g.Transpose(g.MatMul(shares, v), perm=[0, 2, 1, 3])


def _places(g: Graph, spans: Value) -> tuple[Value, Value, Value]:
    """Of segments side by side: which row stands where (n_segment, length), the mask, and where each row went (n,).

    A place that is filled up holds the last row of its segment.
    """
    counts, lengths = (g.Gather(spans, i, axis=1) for i in (0, 1))
    segment = g.Unsqueeze(g.Range(0, g.ReduceSum(counts, keepdims=0), 1), [1])  # (n_segment, 1)
    span = g.ReduceSum(g.Cast(g.GreaterOrEqual(segment, g.CumSum(counts, 0)), to=_INT64), [1], keepdims=1)
    length = g.Gather(lengths, span)  # (n_segment, 1)
    start = g.Sub(g.CumSum(length, 0), length)
    column = g.Unsqueeze(g.Range(0, g.ReduceMax(lengths, keepdims=0), 1), [0])  # (1, length)
    held = g.Less(column, length)
    places = g.Add(start, g.Min(column, g.Sub(length, 1)))
    mask = g.Unsqueeze(g.Where(held, 0.0, _HIDDEN), [1, 2])
    return places, mask, g.Squeeze(g.NonZero(g.Reshape(held, [-1])), [0])


def _blocked(g: Graph, q: Value, k: Value, v: Value, start: int, span: tuple[int, int], n_head: int, scale: float) -> Value:
    """One span in ONNX's own ops → (count, length, n_head, d), by blocks of query rows so that the scores stay small."""
    end, shape = start + span[0] * span[1], [*span, n_head, -1]
    q, k, v = (g.Reshape(g.Slice(x, [start], [end], [0]), shape) for x in (q, k, v))
    q = g.Mul(g.Transpose(q, perm=[0, 2, 1, 3]), scale)  # (count, n_head, length, d)
    k, v = g.Transpose(k, perm=[0, 2, 3, 1]), g.Transpose(v, perm=[0, 2, 1, 3])
    parts = []
    for row in range(0, span[1], QUERY_BLOCK):
        block = g.Slice(q, [row], [row + QUERY_BLOCK], [2])
        parts.append(g.MatMul(g.Softmax(g.MatMul(block, k), axis=-1), v))
    rows = g.Transpose(parts[0] if len(parts) == 1 else g.Concat(*parts, axis=2), perm=[0, 2, 1, 3])
    return g.Reshape(rows, [end - start, n_head, -1])
