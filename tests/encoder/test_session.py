"""A session: providers, threads, and errors on one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType

from diptych.deploy.deployment import Provider
from diptych.encoder.session import Session, available_providers, settled
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


def test_a_file_runs_with_its_data_beside_it_and_gives_all_outputs(tmp_path: Path) -> None:
    weight = Tensor("w", (3, 4), GGMLQuantizationType.F32, lambda: np.ones((3, 4), np.float32))
    g = Graph(Weights({}, {"w": weight}))
    y = g.MatMul(g.input("x", ("n", 3)), g.weight("w"))
    g.output("y", y, ("n", 4))
    g.output("z", g.Mul(y, 2.0), ("n", 4))
    (tmp_path / "w.data").write_bytes(np.ones((3, 4), np.float32).tobytes())
    (tmp_path / "m.onnx").write_bytes(g.serialize({"w": ("w.data", 0)}))
    session = Session(tmp_path / "m.onnx", Options())
    one, two = session.outputs({"x": np.ones((2, 3), np.float32)}, ["y", "z"])
    np.testing.assert_array_equal(one, np.full((2, 4), 3))
    np.testing.assert_array_equal(two, np.full((2, 4), 6))
    (tmp_path / "w.data").unlink()
    with pytest.raises(FileError, match=r"cannot load .*m\.onnx"):
        Session(tmp_path / "m.onnx", Options())


def test_a_provider_of_the_configuration_that_is_not_installed_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    wanted = [Provider("NowhereExecutionProvider", {"a": "1"}), Provider("SilentExecutionProvider", {}, named=False)]
    for _ in range(2):
        options = settled(Options(), wanted)
        assert options.providers == ("CPUExecutionProvider",)
        Session(doubler(), options).close()
    assert caplog.text.count("NowhereExecutionProvider") == 1
    assert "the CPU takes over" in caplog.text
    assert "Silent" not in caplog.text


def test_a_provider_of_the_configuration_goes_before_the_cpu_and_behind_what_is_asked() -> None:
    own = [Provider("AzureExecutionProvider", {"a": "1", "b": "2"})]
    taken = settled(Options(provider_options={"AzureExecutionProvider": {"a": "3"}}), own)
    assert taken.providers == ("AzureExecutionProvider", "CPUExecutionProvider")
    assert taken.provider_options == {"AzureExecutionProvider": {"a": "3"}}
    asked = settled(Options(providers=("CPUExecutionProvider",)), own)
    assert (asked.providers, asked.provider_options) == (("CPUExecutionProvider",), {})


@pytest.mark.parametrize(
    ("library", "words"),
    [
        ("nonsense", "is not NAME=PATH"),
        ("=x", "is not NAME=PATH"),
        ("Mine=/nowhere/lib.so", "Mine=/nowhere/lib.so: there is no such file"),
        (f"Mine={__file__}", "is no execution provider for this ONNX Runtime"),
    ],
)
def test_a_library_that_is_no_provider_is_refused_on_one_line(library: str, words: str) -> None:
    with pytest.raises(EngineError, match=words) as caught:
        Session(doubler(), Options(ep_libraries=(library,)))
    assert "\n" not in str(caught.value)
