"""The rule of --precision and --media-runtime, over CPUs and installations that are made up."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest

from diptych.cli import doctor
from diptych.encoder import precision
from diptych.encoder.precision import Choice, choose, cpu_features
from diptych.errors import EngineError, MissingExtra
from diptych.options import Options

ZEN5 = frozenset({"avx2", "avx512f", "avx512_vnni", "avx512_bf16"})
XEON = frozenset({"avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "avx512_fp16"})
ICE_LAKE = frozenset({"avx2", "avx512f", "avx512_vnni"})
HASWELL = frozenset({"avx2"})
GRAVITON3 = frozenset({"asimd", "asimddp", "asimdhp", "sve", "i8mm", "bf16"})
UNKNOWN: frozenset[str] = frozenset()
CPUS = (ZEN5, XEON, ICE_LAKE, HASWELL, GRAVITON3, UNKNOWN)


def chosen(asked: str, features: frozenset[str], openvino: bool = True, runtime: str = "auto") -> Choice:
    return choose(Options(precision=asked, media_runtime=runtime), features, openvino)  # type: ignore[arg-type]


@pytest.mark.parametrize("features", [ZEN5, XEON, GRAVITON3])
def test_auto_takes_int8_by_openvino_where_the_cpu_has_products_of_int8_and_bf16(features: frozenset[str]) -> None:
    found = chosen("auto", features)
    assert (found.precision, found.runtime, found.rest) == ("int8", "openvino", "bf16")


@pytest.mark.parametrize(
    ("features", "openvino", "runtime", "why"),
    [
        (ICE_LAKE, True, "auto", "no products of bf16"),
        (HASWELL, True, "auto", "no products of int8 and bf16"),
        (UNKNOWN, True, "auto", "features are not known"),
        (ZEN5, False, "auto", "OpenVINO, which would run int8, is not installed"),
        (ZEN5, True, "onnxruntime", "ONNX Runtime was asked for"),
    ],
)
def test_auto_is_f32_by_onnx_runtime_elsewhere_and_says_why(
    features: frozenset[str], openvino: bool, runtime: str, why: str
) -> None:
    found = chosen("auto", features, openvino, runtime)
    assert (found.precision, found.runtime) == ("f32", "onnxruntime")
    assert why in found.why


def test_auto_by_openvino_keeps_to_f32_on_a_cpu_without_small_products() -> None:
    found = chosen("auto", HASWELL, runtime="openvino")
    assert (found.precision, found.runtime) == ("f32", "openvino")


@pytest.mark.parametrize("features", CPUS)
@pytest.mark.parametrize("openvino", [True, False])
def test_f32_is_onnx_runtimes_on_every_machine(features: frozenset[str], openvino: bool) -> None:
    found = chosen("f32", features, openvino)
    assert (found.precision, found.runtime) == ("f32", "onnxruntime")


def test_int8_goes_to_openvino_and_without_it_to_onnx_runtime_which_says_so() -> None:
    assert chosen("int8", ZEN5) == Choice("int8", "openvino", "bf16", "asked for")
    assert chosen("int8", ICE_LAKE).rest == "f32"
    found = chosen("int8", ZEN5, openvino=False)
    assert (found.precision, found.runtime, found.rest) == ("int8", "onnxruntime", "f32")
    assert "not installed" in found.why
    assert chosen("int8", ZEN5, runtime="onnxruntime") == Choice("int8", "onnxruntime", "f32", "asked for")


@pytest.mark.parametrize(("asked", "having"), [("bf16", (ZEN5, XEON, GRAVITON3)), ("f16", (XEON, GRAVITON3))])
def test_bf16_and_f16_need_a_cpu_that_has_them(asked: str, having: tuple[frozenset[str], ...]) -> None:
    for features in CPUS:
        if features in having or not features:  # where nothing is known OpenVINO is asked, which knows
            assert chosen(asked, features) == Choice(asked, "openvino", asked, "asked for")  # type: ignore[arg-type]
        else:
            with pytest.raises(EngineError, match=rf"no {asked} arithmetic \(.*use --precision auto, f32 or int8"):
                chosen(asked, features)


@pytest.mark.parametrize("asked", ["bf16", "f16"])
def test_onnx_runtime_has_no_half_floats(asked: str) -> None:
    with pytest.raises(EngineError, match=f"does not compute in {asked}; use --media-runtime openvino"):
        chosen(asked, XEON, runtime="onnxruntime")


@pytest.mark.parametrize(("asked", "runtime"), [("bf16", "auto"), ("f16", "auto"), ("auto", "openvino"), ("int8", "openvino")])
def test_what_openvino_alone_can_do_names_the_extra_where_it_is_missing(asked: str, runtime: str) -> None:
    with pytest.raises(MissingExtra, match=r"pip install 'diptych\[openvino\]'"):
        chosen(asked, XEON, openvino=False, runtime=runtime)


def test_named_execution_providers_run_in_f32_and_nothing_else_goes_with_them() -> None:
    for given in ({"providers": ("VitisAI",)}, {"ep_libraries": ("mine=/x.so",)}):
        assert choose(Options(precision="auto", **given), ZEN5, True).why == "execution providers were named"
        for more in ({"precision": "int8"}, {"precision": "bf16"}, {"precision": "auto", "media_runtime": "openvino"}):
            with pytest.raises(EngineError, match="leave out one or the other"):
                choose(Options(**given, **more), ZEN5, True)


def test_every_combination_gives_a_choice_or_one_line() -> None:
    precisions, runtimes = ("auto", "f32", "bf16", "f16", "int8"), ("auto", "onnxruntime", "openvino")
    lines: list[str] = []
    for asked, runtime, features, openvino in product(precisions, runtimes, CPUS, (True, False)):
        try:
            found = chosen(asked, features, openvino, runtime)
        except (EngineError, MissingExtra) as error:
            lines.append(str(error))
            continue
        assert asked in ("auto", found.precision)
        assert runtime in ("auto", found.runtime)
        assert openvino or found.runtime == "onnxruntime"
        assert found.why
    assert lines
    assert not any("\n" in line for line in lines)


@pytest.mark.parametrize(
    ("text", "features"),
    [
        (
            "processor\t: 0\nflags\t\t: fpu avx2 avx512_vnni avx512_bf16 sse\nflags\t\t: fpu\n",
            {"avx2", "avx512_vnni", "avx512_bf16"},
        ),
        ("processor\t: 0\nFeatures\t: fp asimd asimdhp i8mm bf16\n", {"asimd", "asimdhp", "i8mm", "bf16"}),
        ("processor\t: 0\nisa\t\t: rv64imafdcv\n", set()),
        ("", set()),
    ],
)
def test_features_are_read_of_x86_and_arm(text: str, features: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text(text)
    monkeypatch.setattr(precision, "Path", lambda _name: info)
    assert cpu_features.__wrapped__() == features


def test_a_folder_called_openvino_is_not_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "openvino").mkdir()
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    monkeypatch.delitem(__import__("sys").modules, "openvino", raising=False)
    assert choose(Options(precision="auto"), ZEN5).precision == "f32"


def test_doctor_says_what_was_chosen_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIPTYCH_PRECISION", "f32")
    assert doctor.runtime() == {"precision f32": "f32 by ONNX Runtime: asked for"}
    monkeypatch.setenv("DIPTYCH_PRECISION", "bf16")
    monkeypatch.setenv("DIPTYCH_MEDIA_RUNTIME", "onnxruntime")
    assert "use --media-runtime openvino" in doctor.runtime()["precision bf16"]
