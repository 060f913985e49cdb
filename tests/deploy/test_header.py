"""Headers of ONNX files: what they say is what the onnx package reads, and damage is told."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

import onnx_files
import tiny
from diptych import export
from diptych.deploy.header import read_header
from diptych.errors import FileError


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("header")
    export.export(tiny.qwen2vl(folder / "checkpoint"), folder / "out", sizes=[(56, 84)])
    export.export(folder / "checkpoint", folder / "out2")
    return folder


@pytest.mark.parametrize("name", ["out/encoder-56x84.onnx", "out2/encoder.onnx"])
def test_a_header_says_what_the_onnx_package_reads(exported: Path, name: str) -> None:
    header, model = read_header(exported / name), onnx.load(exported / name, load_external_data=False)
    for ports, values in ((header.inputs, model.graph.input), (header.outputs, model.graph.output)):
        assert [p.name for p in ports] == [v.name for v in values]
        for port, value in zip(ports, values, strict=True):
            dims = value.type.tensor_type.shape.dim
            assert port.shape == tuple(d.dim_value or d.dim_param for d in dims)
            assert port.type == np.dtype(helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)).name
    assert dict(header.metadata) == {p.key: p.value for p in model.metadata_props}
    assert header.files == {"encoder.data": (exported / name).with_name("encoder.data").stat().st_size}
    assert sum(header.types.values()) == len(model.graph.initializer)


def test_weights_inside_are_passed_over_and_are_no_inputs(tmp_path: Path) -> None:
    """Old files name their weights among the inputs."""
    weight = numpy_helper.from_array(np.ones((300, 4), np.float16), "w")
    inputs = [helper.make_tensor_value_info(n, t, s) for n, t, s in (("x", 1, ["n", 300]), ("w", 10, [300, 4]))]
    output = helper.make_tensor_value_info("y", 1, ["n", 4])
    nodes = [helper.make_node("Cast", ["w"], ["v"], to=1), helper.make_node("MatMul", ["x", "v"], ["y"])]
    graph = helper.make_graph(nodes, "g", inputs, [output], [weight])
    onnx.save(helper.make_model(graph), tmp_path / "m.onnx")
    header = read_header(tmp_path / "m.onnx")
    assert [str(p) for p in header.inputs] == ["float32 (n, 300)"]
    assert [str(p) for p in header.outputs] == ["float32 (n, 4)"]
    assert (header.types, header.files) == ({"float16": 1}, {})


def outside(path: Path, location: str, length: int | None = None) -> Path:
    tensor = TensorProto(name="w", data_type=TensorProto.BFLOAT16, dims=[10, 4], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", "16"), ("length", length)):
        if value is not None:
            tensor.external_data.add(key=key, value=str(value))
    ports = [helper.make_tensor_value_info(n, 1, ["n", 4]) for n in "xy"]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", ports[:1], ports[1:], [tensor])
    path.write_bytes(helper.make_model(graph).SerializeToString())
    return path


def test_a_file_of_weights_has_to_be_there_and_whole(tmp_path: Path) -> None:
    path = outside(tmp_path / "m.onnx", "m.data")
    with pytest.raises(FileError, match=r"m\.data, which is not beside it"):
        read_header(path)
    (tmp_path / "m.data").write_bytes(bytes(95))
    with pytest.raises(FileError, match=r"has 95 bytes, and m\.onnx needs 96"):
        read_header(path)
    (tmp_path / "m.data").write_bytes(bytes(96))
    assert read_header(path).files == {"m.data": 96}
    assert read_header(outside(path, "m.data", 20)).files == {"m.data": 36}


@pytest.mark.parametrize("location", ["../m.data", "/etc/passwd", "x/../../m.data"])
def test_weights_elsewhere_are_refused(tmp_path: Path, location: str) -> None:
    with pytest.raises(FileError, match="outside its folder"):
        read_header(outside(tmp_path / "m.onnx", location))


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    for path in (tmp_path / "no.onnx", tmp_path):
        with pytest.raises(FileError, match="cannot read"):
            read_header(path)


def test_a_file_cut_short_anywhere_is_told_or_has_lost_nothing_of_its_header(tmp_path: Path) -> None:
    whole = onnx_files.pixels(tmp_path / "m.onnx", (64, 64), 32)
    data, header = whole.read_bytes(), read_header(whole)
    told = 0
    for n in range(0, len(data), 7):
        whole.write_bytes(data[:n])
        found = None
        with suppress(FileError):
            found = read_header(whole)
        told += found is None
        assert found is None or found.inputs == header.inputs
    assert told > len(data) // 7 * 0.9


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_bytes_of_any_kind_are_no_crash(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.onnx"
    path.write_bytes(data)
    with pytest.raises(FileError):
        read_header(path)
