"""A session: providers, threads, errors on one line, and the operators in a trace."""

from __future__ import annotations

import gc
import json
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType

from diptych.deploy.deployment import Provider
from diptych.encoder.ort import OrtSession, available_providers, settled
from diptych.encoder.profile import MAX_RUNS
from diptych.errors import EngineError, FileError
from diptych.graph.graph import Graph
from diptych.options import Options
from diptych.trace import open_trace
from diptych.weights import Tensor, Weights


def doubler() -> bytes:
    g = Graph(Weights({}, {}))
    g.output("y", g.Mul(g.input("x", ("n", 3)), 2.0), ("n", 3))
    return g.serialize({})


@pytest.mark.parametrize("threads", [None, 1, 3])
def test_a_graph_runs(threads: int | None) -> None:
    session = OrtSession(doubler(), Options(threads=threads))
    np.testing.assert_array_equal(session.run({"x": np.ones((2, 3), np.float32)}), np.full((2, 3), 2))
    session.close()


def test_a_provider_that_is_not_there_is_told_those_that_are() -> None:
    with pytest.raises(EngineError, match=r"'NoSuchProvider'.*CPUExecutionProvider"):
        OrtSession(doubler(), Options(providers=("NoSuchProvider",)))
    assert "CPUExecutionProvider" in available_providers()


def test_options_reach_their_provider() -> None:
    OrtSession(doubler(), Options(provider_options={"CPUExecutionProvider": {"use_arena": "1"}})).close()
    with pytest.raises(EngineError, match=r"provider_options.*'OtherProvider'"):
        OrtSession(doubler(), Options(provider_options={"OtherProvider": {}}))


def test_a_graph_that_is_none_is_refused_on_one_line() -> None:
    with pytest.raises(FileError) as caught:
        OrtSession(b"no graph", Options())
    assert "\n" not in str(caught.value)


def test_missing_external_data_is_refused_on_one_line(tmp_path: Path) -> None:
    weight = Tensor("w", (3, 4), GGMLQuantizationType.F32, lambda: np.zeros((3, 4), np.float32))
    g = Graph(Weights({}, {"w": weight}))
    g.output("y", g.MatMul(g.input("x", ("n", 3)), g.weight("w")), ("n", 4))
    with pytest.raises(FileError, match=r"gone\.data") as caught:
        OrtSession(g.serialize({"w": ("gone.data", 0)}), Options(), folder=tmp_path)
    assert "\n" not in str(caught.value)


def test_a_run_that_fails_is_an_error_on_one_line() -> None:
    session = OrtSession(doubler(), Options())
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
    session = OrtSession(tmp_path / "m.onnx", Options())
    one, two = session.outputs({"x": np.ones((2, 3), np.float32)}, ["y", "z"])
    np.testing.assert_array_equal(one, np.full((2, 4), 3))
    np.testing.assert_array_equal(two, np.full((2, 4), 6))
    np.testing.assert_array_equal(session.run({"x": np.ones((2, 3), np.float32)}), [[3] * 4 + [6] * 4] * 2)
    (tmp_path / "w.data").unlink()
    with pytest.raises(FileError, match=r"cannot load .*m\.onnx"):
        OrtSession(tmp_path / "m.onnx", Options())


def test_a_provider_of_the_configuration_that_is_not_installed_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    wanted = [Provider("NowhereExecutionProvider", {"a": "1"}), Provider("SilentExecutionProvider", {}, named=False)]
    for _ in range(2):
        options = settled(Options(), wanted)
        assert options.providers == ("CPUExecutionProvider",)
        OrtSession(doubler(), options).close()
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
        OrtSession(doubler(), Options(ep_libraries=(library,)))
    assert "\n" not in str(caught.value)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files go."""
    made = tmp_path / "tmp"
    made.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(made))
    return made


def heavy() -> bytes:
    """Three products of matrices, each far longer than what is around it."""
    g = Graph(Weights({}, {}))
    x = g.input("x", ("n", 512))
    with g.scope("blk.3"):
        for i in range(3):
            x = g.MatMul(x, np.full((512, 512), 1e-3 + i, np.float32))
    g.output("y", x, ("n", 512))
    return g.serialize({})


def spans(path: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The spans of runs, and those of operators."""
    events = json.loads(path.read_text())
    named = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    both = [[e for e in events if e["ph"] == "X" and named[e["tid"]] == lane] for lane in ("encoder", "encoder operators")]
    return both[0], both[1]


def test_operators_are_in_the_trace_at_their_times_and_make_up_most_of_a_run(tmp_path: Path, folder: Path) -> None:
    trace = open_trace(tmp_path / "trace.json", ops=True)
    session = OrtSession(heavy(), Options(threads=1), trace=trace)
    for _ in range(3):
        with trace.span("encode", "encoder"):
            session.run({"x": np.ones((2000, 512), np.float32)})
    session.close()
    trace.close()
    assert list(folder.iterdir()) == []
    runs, operators = spans(tmp_path / "trace.json")
    assert len(operators) == 9
    assert {e["name"] for e in operators} == {"MatMul"}
    assert all("blk.3" in e["args"]["node"] and e["args"]["provider"] == "CPUExecutionProvider" for e in operators)
    assert json.loads(operators[0]["args"]["output"]) == [{"float": [2000, 512]}]
    slack = 1000  # µs: the clocks are read one after the other
    for run, own in zip(runs, (operators[:3], operators[3:6], operators[6:]), strict=True):
        assert own[0]["ts"] > run["ts"] - slack
        assert own[-1]["ts"] + own[-1]["dur"] < run["ts"] + run["dur"] + slack
        assert sum(e["dur"] for e in own) > 0.6 * run["dur"]
    for one, two in pairwise(operators):
        assert one["ts"] + one["dur"] <= two["ts"] + 0.001


def test_operators_of_the_first_runs_alone_are_kept(tmp_path: Path, folder: Path) -> None:
    trace = open_trace(tmp_path / "trace.json", ops=True)
    session = OrtSession(doubler(), Options(threads=1), trace=trace)
    for _ in range(MAX_RUNS):
        session.run({"x": np.ones((1, 3), np.float32)})
    assert list(folder.iterdir()) == []
    np.testing.assert_array_equal(session.run({"x": np.ones((1, 3), np.float32)}), [[2, 2, 2]])
    session.close()
    trace.close()
    assert len(spans(tmp_path / "trace.json")[1]) == MAX_RUNS


def test_a_session_that_does_not_start_leaves_no_record(tmp_path: Path, folder: Path) -> None:
    trace = open_trace(tmp_path / "trace.json", ops=True)
    with pytest.raises(FileError):
        OrtSession(b"no graph", Options(), trace=trace)
    trace.close()
    gc.collect()
    assert list(folder.iterdir()) == []


def test_a_record_that_is_cut_off_is_told_and_nothing_is_lost(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    trace = open_trace(tmp_path / "trace.json", ops=True)
    session = OrtSession(doubler(), Options(threads=1), trace=trace)
    session.run({"x": np.ones((1, 3), np.float32)})
    end = session._session.end_profiling

    def cut() -> str:
        path = Path(end())
        path.write_bytes(path.read_bytes()[:-40])
        return str(path)

    monkeypatch.setattr(session._session, "end_profiling", cut)
    session.close()
    trace.close()
    json.loads((tmp_path / "trace.json").read_text())
    assert "no whole record" in caplog.text
    assert list(folder.iterdir()) == []


def test_a_trace_without_operators_records_none(tmp_path: Path, folder: Path) -> None:
    trace = open_trace(tmp_path / "trace.json")
    session = OrtSession(doubler(), Options(), trace=trace)
    session.run({"x": np.ones((1, 3), np.float32)})
    assert list(folder.iterdir()) == []
    session.close()
    trace.close()
    assert spans(tmp_path / "trace.json") == ([], [])
