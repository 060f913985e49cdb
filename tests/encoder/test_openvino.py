"""OpenVINO: runs, outputs by name, errors on one line, threads, and its operators in a trace."""

from __future__ import annotations

import json
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

import onnx_files
from diptych.encoder.openvino import OpenVinoSession
from diptych.encoder.precision import BF16, F16, INT8, Precision, cpu_features
from diptych.encoder.prepared import DATA
from diptych.errors import EngineError, FileError, MissingExtra
from diptych.graph import nn
from diptych.graph.graph import Graph, Products
from diptych.options import Options
from diptych.trace import open_trace
from diptych.weights import Tensor, Weights

WIDTH = 64
FAR: dict[Precision, float] = {"f32": 1e-6, "bf16": 2e-2, "int8": 3e-2}  # of the largest value: each type's rounding
needs_bf16 = pytest.mark.skipif(not BF16 & cpu_features(), reason="the CPU has no products of bf16")


def matrix() -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal((WIDTH, WIDTH), np.float32) / 8


def rows(n: int) -> NDArray[np.float32]:
    return np.random.default_rng(n).standard_normal((n, WIDTH), np.float32)


def written(folder: Path, products: Products = "f32") -> Path:
    """A linear layer as `y`, and twice that as `twice`."""
    weight = Tensor("w.weight", (WIDTH, WIDTH), GGMLQuantizationType.F32, matrix)
    g = Graph(Weights({}, {"w.weight": weight}), portable=True, products=products)
    y = nn.linear(g, g.input("x", ("n", WIDTH)), "w")
    g.output("y", y, ("n", WIDTH))
    g.output("twice", g.Mul(y, 2.0), ("n", WIDTH))
    return onnx_files.stored(g, folder)


def session(model: Path, precision: Precision = "f32", **options: int) -> OpenVinoSession:
    return OpenVinoSession(model, Options(**options), precision)


@pytest.mark.parametrize("precision", ["f32", pytest.param("bf16", marks=needs_bf16), "int8"])
@pytest.mark.parametrize("threads", [None, 1, 2])
def test_a_graph_runs_at_any_size_in_each_precision(precision: Precision, threads: int | None, tmp_path: Path) -> None:
    opened = session(written(tmp_path, precision), precision, **({"threads": threads} if threads else {}))
    for n in (1, 7, 130, 7):
        wanted = rows(n) @ np.hstack([matrix().T, 2 * matrix().T])
        found = opened.run({"x": rows(n)})
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, wanted, rtol=0, atol=FAR[precision] * np.abs(wanted).max())
    opened.close()


@pytest.mark.skipif(not INT8 & cpu_features(), reason="the CPU has no products of int8")
def test_int8_is_coarser_than_f32_so_that_it_is_what_runs(tmp_path: Path) -> None:
    opened, wanted = session(written(tmp_path, "int8"), "int8"), rows(64) @ matrix().T
    assert np.abs(opened.outputs({"x": rows(64)}, ["y"])[0] - wanted).max() > 1e-3 * np.abs(wanted).max()
    opened.close()


def test_outputs_are_had_by_name_in_the_order_asked_for(tmp_path: Path) -> None:
    opened = session(written(tmp_path))
    twice, once = opened.outputs({"x": rows(3)}, ["twice", "y"])
    np.testing.assert_array_equal(twice, 2 * once)
    np.testing.assert_array_equal(np.hstack([once, twice]), opened.run({"x": rows(3)}))
    with pytest.raises(EngineError, match=r"no output 'z', but .*; name one of these"):
        opened.outputs({"x": rows(3)}, ["z"])
    opened.close()


def test_a_result_stays_what_it_was_when_the_next_run_comes(tmp_path: Path) -> None:
    opened = session(written(tmp_path))
    first = opened.run({"x": rows(3)})
    kept = first.copy()
    opened.run({"x": rows(3) + 1})
    np.testing.assert_array_equal(first, kept)
    opened.close()


def test_several_threads_get_their_own_rows(tmp_path: Path) -> None:
    opened, start = session(written(tmp_path), threads=1), threading.Barrier(4)
    wanted = {n: opened.run({"x": rows(n)}) for n in range(1, 5)}

    def run(n: int) -> list[NDArray[np.float32]]:
        start.wait()
        return [opened.run({"x": rows(n)}) for _ in range(50)]

    with ThreadPoolExecutor(4) as pool:
        for n, found in zip(wanted, pool.map(run, wanted), strict=True):
            for each in found:
                np.testing.assert_array_equal(each, wanted[n])
    opened.close()


@pytest.mark.parametrize("damage", ["empty", "nonsense", "cut off", "no weights", "short weights", "absent"])
def test_a_damaged_model_is_refused_on_one_line(damage: str, tmp_path: Path) -> None:
    model = written(tmp_path)
    whole, data = model.read_bytes(), tmp_path / DATA
    match damage:
        case "empty":
            model.write_bytes(b"")
        case "nonsense":
            model.write_bytes(b"no graph at all")
        case "cut off":
            model.write_bytes(whole[: len(whole) // 2])
        case "no weights":
            data.unlink()
        case "short weights":
            os.truncate(data, WIDTH)
        case _:
            model.unlink()
    with pytest.raises(FileError, match=r"^OpenVINO cannot load .+model.onnx: .+$") as caught:
        session(model)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "feed",
    [
        {},
        {"z": rows(3)},
        {"x": rows(3), "z": rows(3)},
        {"x": rows(3)[:, :5]},
        {"x": rows(3)[0]},
        {"x": rows(3).astype(np.int64)},
    ],
    ids=["nothing", "another", "one too many", "too narrow", "flat", "integers"],
)
def test_a_wrong_input_is_an_error_and_the_session_lives(feed: dict[str, NDArray[np.float32]], tmp_path: Path) -> None:
    opened = session(written(tmp_path))
    wanted = opened.run({"x": rows(3)})
    with pytest.raises(EngineError, match=r"^(OpenVINO could not run the media half: |the media half takes x).+$") as caught:
        opened.run(feed)
    assert "\n" not in str(caught.value)
    np.testing.assert_array_equal(opened.run({"x": rows(3)}), wanted)
    opened.close()


def test_a_closed_session_says_so_and_may_be_closed_twice(tmp_path: Path) -> None:
    opened = session(written(tmp_path))
    opened.close()
    opened.close()
    with pytest.raises(EngineError, match="the media half is closed; load it again"):
        opened.run({"x": rows(3)})


def test_without_openvino_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingExtra, match=r"pip install 'diptych\[openvino\]'"):
        session(written(tmp_path))


@pytest.mark.skipif(bool(F16 & cpu_features()), reason="the CPU computes in f16")
def test_an_arithmetic_that_the_cpu_lacks_is_refused_and_not_replaced(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"computes in \w+ where precision f16 needs f16; choose another --precision"):
        session(written(tmp_path), "f16")


def test_operators_are_in_a_trace_that_asks_for_them_those_of_the_first_runs_alone(tmp_path: Path) -> None:
    for ops in (True, False):
        path = tmp_path / f"{ops}.json"
        trace = open_trace(path, ops=ops)
        opened = OpenVinoSession(written(tmp_path), Options(), "f32", trace=trace)
        for _ in range(70):
            opened.run({"x": rows(300)})
        opened.close()
        trace.close()
        events = json.loads(path.read_text())
        products = [e for e in events if e["name"] in ("FullyConnected", "MatMul") and e["ph"] == "X"]
        assert len(products) == (64 if ops else 0)
        assert all(e["dur"] > 0 and e["args"]["kernel"] for e in products)
