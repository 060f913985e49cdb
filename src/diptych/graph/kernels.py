"""Layers in Diptych's own operators (`kernels/`): what stands before a layer and behind it goes inside.

Values between layers are float32 for whoever writes a graph. What an operator makes of them is found by what they were made
by: a normalisation goes into the layer that reads it, a layer whose rows go to attention gives them in bfloat16. What nobody
reads then is left out when the graph is written.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diptych.graph.graph import Graph, Operand, Value

DIPTYCH = "diptych"  # the operators' domain
_FLOAT, _FLOAT16, _BFLOAT16 = 1, 10, 16  # ONNX's numbers of the types
_NORMS = ("LayerNormalization", "SimplifiedLayerNormalization")

Angles = tuple["Value", "Value"]  # cos and sin


def has_layer(g: Graph, name: str) -> bool:
    """Whether the linear layer of that name is one that the operators have."""
    return g.panels(f"{name}.weight") is not None


def linear(g: Graph, x: Value, name: str, activation: str = "none") -> Value:
    """activation(x Wᵀ + b), of a layer that the operators have."""
    rows, eps = _rows(x)
    settings: dict[str, Any] = {"epsilon": eps, "out": _n_out(g, name), "activation": activation}
    (out,) = g.op("Linear", *rows, *_layer(g, name), None, domain=DIPTYCH, **settings)
    return out


def mlp(g: Graph, x: Value, up: str, down: str, activation: str, gate: str | None = None) -> Value:
    """down(activation(up(x))), or down(activation(gate(x)) · up(x)), of layers that the operators have; what is between them is
    never there for all rows."""
    rows, eps = _rows(x)
    layers = [*_layer(g, up), *(_layer(g, gate) if gate else [None] * 4), *_layer(g, down)]
    settings: dict[str, Any] = {"epsilon": eps, "inner": _n_out(g, up), "out": _n_out(g, down), "activation": activation}
    (out,) = g.op("Mlp", *rows, *layers, domain=DIPTYCH, add=0, **settings)
    return out


def added(g: Graph, x: Value, y: Value) -> Value | None:
    """x + y (n_patch, width) inside the operator that makes y, so that it may stand where x stood; None where none can."""
    made = y.producer()
    if made is None or made.domain != DIPTYCH:
        return None
    if made.op_type == "Mlp" and made.inputs[0] is x:
        (out,) = g.op("Mlp", *made.inputs, domain=DIPTYCH, **{**_settings(made), "add": 1})
    elif made.op_type == "Linear":
        (out,) = g.op("Linear", *made.inputs[:-1], x, domain=DIPTYCH, **_settings(made))
    else:
        return None
    _alike(g, out, x, made.attributes["out"].as_int(), _FLOAT)
    return out


def attention(g: Graph, q: Value, k: Value, v: Value, spans: Value, n_head: int, scale: float, angles: Angles | None) -> Value:
    """softmax(scale · q kᵀ) v within each segment, q and k turned by their angles before."""
    q, k, v = (_narrow(g, x) for x in (q, k, v))
    (out,) = g.op("Attention", q, k, v, spans, *(angles or ()), domain=DIPTYCH, num_heads=n_head, scale=scale)
    if (made := q.producer()) is not None and made.domain == DIPTYCH:
        _alike(g, out, q, made.attributes["out"].as_int(), _BFLOAT16)
    return g.Cast(out, to=_FLOAT)


def tap(g: Graph, x: Value, width: int) -> Value:
    """Rows (n_token, width) in float16, by the MLP itself where they come of one."""
    made = x.producer()
    if made is not None and (made.domain, made.op_type) == (DIPTYCH, "Mlp"):
        (rows,) = g.op("MlpToFloat16", *made.inputs, domain=DIPTYCH, **_settings(made))
    else:
        rows = g.Cast(x, to=_FLOAT16)
    g.shaped(rows, ("n_token", width), _FLOAT16)
    return rows


def interpolated(g: Graph, x: Value, table: str, taps: Value, shares: Value) -> Value:
    """x + Σⱼ shares[:, j] · table[taps[:, j]], where x stood."""
    (out,) = g.op("Interpolated", x, g.weight(table), taps, shares, domain=DIPTYCH)
    _alike(g, out, x, g.shape(table)[1], _FLOAT)
    return out


def _layer(g: Graph, name: str) -> list[Operand]:
    """Weights, scales, shift and bias."""
    panels = g.panels(f"{name}.weight")
    assert panels is not None, "asked for by has_layer"
    return [*panels, g.weight(f"{name}.bias") if g.has(f"{name}.bias") else None]


def _n_out(g: Graph, name: str) -> int:
    return g.shape(f"{name}.weight")[0]


def _rows(x: Value) -> tuple[list[Operand], float]:
    """Rows as a layer takes them, with the weight and the bias of the normalisation before it, and its epsilon."""
    made = x.producer()
    if made is not None and made.op_type in _NORMS:
        before, weight, *bias = made.inputs
        return [before, weight, bias[0] if bias else None], made.attributes["epsilon"].as_float()
    if made is not None and made.op_type == "Cast" and made.inputs[0] is not None:
        source = made.inputs[0].producer()
        if source is not None and source.domain == DIPTYCH:
            return [made.inputs[0], None, None], 0.0
    return [x, None, None], 0.0


def _narrow(g: Graph, x: Value) -> Value:
    """Rows in bfloat16, by the layer itself where they come of one."""
    made = x.producer()
    if made is not None and (made.domain, made.op_type) == (DIPTYCH, "Linear"):
        (rows,) = g.op("LinearToBFloat16", *made.inputs, domain=DIPTYCH, **_settings(made))
        return rows
    return g.Cast(x, to=_BFLOAT16)


def _settings(node: Any) -> dict[str, Any]:  # noqa: ANN401 (onnx_ir's, which graph.py alone imports)
    return {name: attribute.value for name, attribute in node.attributes.items()}


def _alike(g: Graph, out: Value, x: Value, width: int, element_type: int) -> None:
    """Say that an operator's output has the shape of an input, a row a patch, so that ONNX Runtime has it stand where that
    stood if nobody else is to read that.

    The rows have a name of their own: ONNX Runtime plans arrays of one shape into one place, and would keep that of the
    embedded patches for what comes last, through all layers.
    """
    for value in (x, out):
        g.shaped(value, ("n_row", width), element_type)
