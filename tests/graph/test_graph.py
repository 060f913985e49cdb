"""The recorder, its graphs run in ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from gguf import GGMLQuantizationType as Type
from gguf.quants import dequantize, quantize
from numpy.typing import NDArray

from diptych.errors import FileError
from diptych.graph.graph import Graph
from diptych.weights import Tensor, Weights


def tensor(name: str, array: NDArray[Any], type: Type = Type.F32) -> Tensor:
    raw = quantize(array, type) if type == Type.Q8_0 else array
    return Tensor(name, array.shape, type, lambda: raw)


def weights(*tensors: Tensor) -> Weights:
    return Weights({}, {t.name: t for t in tensors})


def run(g: Graph, **feed: NDArray[Any]) -> NDArray[Any]:
    """The one output, with the stored weights handed over."""
    data = g.serialize(dict.fromkeys(g.stored, ("nowhere", 0)))
    settings = ort.SessionOptions()
    settings.log_severity_level = 3
    values = {n: ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(s.read())) for n, s in g.stored.items()}
    if values:
        settings.add_external_initializers(list(values), list(values.values()))
    return ort.InferenceSession(data, settings, providers=["CPUExecutionProvider"]).run(None, feed)[0]


X = np.random.default_rng(0).standard_normal((5, 64), np.float32)
W = np.random.default_rng(1).standard_normal((32, 64), np.float32)


@pytest.mark.parametrize(("type", "as_stored"), [(Type.F32, W), (Type.F16, W.astype(np.float16))])
def test_a_weight_keeps_its_type_and_is_used_as_float32(type: Type, as_stored: NDArray[Any]) -> None:
    g = Graph(weights(tensor("w", as_stored, type)))
    g.output("y", g.Gemm(g.input("x", ("n", 64)), g.weight("w"), transB=1), ("n", 32))
    assert g.stored["w"].n_bytes == as_stored.nbytes
    np.testing.assert_allclose(run(g, x=X), X @ as_stored.astype(np.float32).T, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("unpack", [False, True])
def test_a_q8_0_weight_gives_the_values_gguf_gives(unpack: bool) -> None:
    g = Graph(weights(tensor("w", W, Type.Q8_0)), unpack=unpack)
    g.output("y", g.Identity(g.weight("w")), (32, 64))
    assert sum(s.n_bytes for s in g.stored.values()) == (W.nbytes if unpack else W.size * 34 // 32)
    np.testing.assert_array_equal(run(g), dequantize(quantize(W, Type.Q8_0), Type.Q8_0))


def test_a_missing_tensor_is_named() -> None:
    with pytest.raises(FileError, match=r"no tensor mm\.0\.weight"):
        Graph(weights()).weight("mm.0.weight")


def test_equal_constants_and_weights_are_made_once_and_nodes_carry_their_scope() -> None:
    g = Graph(weights(tensor("w", W.astype(np.float16), Type.F16)))
    x = g.input("x", ("n", 64))
    with g.scope("v.blk.0"), g.scope("attention"):
        y = g.Mul(g.Add(x, 2.0), 2.0)
    g.output("y", g.Add(g.Gemm(y, g.weight("w"), transB=1), g.Gemm(x, g.weight("w"), transB=1)), ("n", 32))
    graph = onnx.load_from_string(g.serialize({"w": ("w.data", 0)})).graph
    assert len(graph.initializer) == 2
    names = [n.name for n in graph.node]
    assert names == list(dict.fromkeys(names))
    assert {"v.blk.0/attention/Add", "v.blk.0/attention/Mul", "w/Cast", "Gemm", "Gemm.1"} < set(names)


def test_integers_and_floats_of_one_value_are_different_constants() -> None:
    g = Graph(weights())
    x = g.input("x", (2,))
    g.output("y", g.Add(g.Add(x, 1.0), g.Cast(g.constant(1), to=1)), (2,))
    np.testing.assert_array_equal(run(g, x=np.zeros(2, np.float32)), [2, 2])


def test_a_static_graph_folds_what_is_fixed_and_leaves_out_what_is_not_used() -> None:
    g = Graph(weights(), {"x": (5, 64), "table": X, "unused": W})
    x, table, _ = g.input("x", ("n", 64)), g.input("table", ("n", 64)), g.input("unused", ("n", 64))
    g.output("y", g.Add(x, table), (5, 64))
    known = g.known(table)
    assert known is not None
    np.testing.assert_array_equal(known, X)
    assert g.known(x) is None
    assert g.signature() == ({"x": "float32 (5, 64)"}, {"y": "float32 (5, 64)"})
    data = g.serialize({})
    assert [i.name for i in onnx.load_from_string(data).graph.input] == ["x"]
    assert len(onnx.load_from_string(data).graph.initializer) == 1


def test_a_loop_gathers_parts_of_different_lengths() -> None:
    g = Graph(weights())
    x, bounds = g.input("x", ("n", 64)), g.input("bounds", ("m",), np.int64)

    def step(i: Any, done: Any) -> Any:
        part = g.Slice(x, g.Gather(bounds, g.Unsqueeze(i, [0])), g.Gather(bounds, g.Unsqueeze(g.Add(i, 1), [0])), [0])
        return g.SequenceInsert(done, g.Sub(part, g.ReduceMean(part, [0], keepdims=1)))

    n = g.Sub(g.Squeeze(g.Shape(bounds)), 1)
    g.output("y", g.ConcatFromSequence(g.loop(n, g.SequenceEmpty(), step), axis=0), ("n", 64))
    wanted = np.concatenate([X[:2] - X[:2].mean(0), X[2:] - X[2:].mean(0)])
    np.testing.assert_allclose(run(g, x=X, bounds=np.array([0, 2, 5])), wanted, atol=1e-6)


def test_what_is_no_op_is_no_attribute() -> None:
    with pytest.raises(AttributeError):
        _ = Graph(weights()).gemm
