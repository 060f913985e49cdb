"""A session: providers, threads, and errors on one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType

from diptych.encoder.session import Session, available_providers
from diptych.errors import EngineError, FileError
from diptych.graph.graph import Graph
from diptych.options import Options
from diptych.weights import Tensor, Weights


def doubler() -> bytes:
    g = Graph(Weights({}, {}))
    g.output("y", g.Mul(g.input("x", ("n", 3)), 2.0), ("n", 3))
    return g.serialize({})


@pytest.mark.parametrize("threads", [None, 1, 3])
def test_a_graph_runs(threads: int | None) -> None:
    session = Session(doubler(), Options(threads=threads))
    np.testing.assert_array_equal(session.run({"x": np.ones((2, 3), np.float32)}), np.full((2, 3), 2))
    session.close()


def test_a_provider_that_is_not_there_is_told_those_that_are() -> None:
    with pytest.raises(EngineError, match=r"'NoSuchProvider'.*CPUExecutionProvider"):
        Session(doubler(), Options(providers=("NoSuchProvider",)))
    assert "CPUExecutionProvider" in available_providers()


def test_options_reach_their_provider() -> None:
    Session(doubler(), Options(provider_options={"CPUExecutionProvider": {"use_arena": "1"}})).close()
    with pytest.raises(EngineError, match=r"provider_options.*'OtherProvider'"):
        Session(doubler(), Options(provider_options={"OtherProvider": {}}))


def test_a_graph_that_is_none_is_refused_on_one_line() -> None:
    with pytest.raises(FileError) as caught:
        Session(b"no graph", Options())
    assert "\n" not in str(caught.value)


def test_missing_external_data_is_refused_on_one_line(tmp_path: Path) -> None:
    weight = Tensor("w", (3, 4), GGMLQuantizationType.F32, lambda: np.zeros((3, 4), np.float32))
    g = Graph(Weights({}, {"w": weight}))
    g.output("y", g.MatMul(g.input("x", ("n", 3)), g.weight("w")), ("n", 4))
    with pytest.raises(FileError, match=r"gone\.data") as caught:
        Session(g.serialize({"w": ("gone.data", 0)}), Options(), folder=tmp_path)
    assert "\n" not in str(caught.value)


def test_a_run_that_fails_is_an_error_on_one_line() -> None:
    session = Session(doubler(), Options())
    with pytest.raises(EngineError, match="x") as caught:
        session.run({"x": np.ones((2, 4), np.float32)})
    assert "\n" not in str(caught.value)
