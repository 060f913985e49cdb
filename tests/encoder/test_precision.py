"""The rule of --precision and --media-runtime, over CPUs and installations that are made up."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest

from diptych.cli import doctor
from diptych.encoder import precision
from diptych.encoder.precision import Choice, Machine, choose, cpu_features, this_machine
from diptych.errors import EngineError, MissingExtra
from diptych.options import Options

ZEN5 = frozenset({"avx2", "avx512f", "avx512_vnni", "avx512_bf16"})
XEON = frozenset({"avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "avx512_fp16"})
ICE_LAKE = frozenset({"avx2", "avx512f", "avx512_vnni"})
ALDER_LAKE = frozenset({"avx2", "avx_vnni"})
HASWELL = frozenset({"avx2"})
GRAVITON3 = frozenset({"asimd", "asimddp", "asimdhp", "sve", "i8mm", "bf16"})
UNKNOWN: frozenset[str] = frozenset()
RUNTIMES = ("openvino", "kernels")
CPUS = (ZEN5, XEON, ICE_LAKE, ALDER_LAKE, HASWELL, GRAVITON3, UNKNOWN)


def chosen(asked: str, features: frozenset[str], openvino: bool = True, runtime: str = "auto", kernels: bool = True) -> Choice:
    options = Options(precision=asked, media_runtime=runtime)  # type: ignore[arg-type]
    return choose(options, Machine(features, openvino, kernels))


@pytest.mark.parametrize(
    ("features", "openvino", "kernels", "runtime"),
    [
        (ZEN5, True, True, "kernels"),
        (ZEN5, False, True, "kernels"),
        (ZEN5, True, False, "openvino"),
        (XEON, True, True, "openvino"),  # it knows the matrix units
        (XEON, False, True, "kernels"),
        (GRAVITON3, True, False, "openvino"),
        (GRAVITON3, True, True, "openvino"),  # a library that is there and not for this CPU
    ],
)
def test_auto_takes_int8_where_the_cpu_has_products_of_int8_and_bf16(
    features: frozenset[str], openvino: bool, kernels: bool, runtime: str
) -> None:
    found = chosen("auto", features, openvino, kernels=kernels)
    assert (found.precision, found.runtime, found.rest) == ("int8", runtime, "bf16")


@pytest.mark.parametrize(
    ("features", "openvino", "kernels", "runtime", "why"),
    [
        (ICE_LAKE, True, False, "auto", "no products of bf16"),
        (ALDER_LAKE, True, True, "auto", "no products of bf16"),
        (HASWELL, True, True, "auto", "no products of int8 and bf16"),
        (UNKNOWN, True, True, "auto", "features are not known"),
        (ZEN5, False, False, "auto", "installed without its kernels, and OpenVINO, which would run int8, is not installed"),
        (GRAVITON3, False, True, "auto", "no avx512_vnni, which the kernels need, and OpenVINO, which would run int8, is not"),
        (ZEN5, True, True, "onnxruntime", "ONNX Runtime was asked for"),
    ],
)
def test_auto_is_f32_by_onnx_runtime_elsewhere_and_says_why(
    features: frozenset[str], openvino: bool, kernels: bool, runtime: str, why: str
) -> None:
    found = chosen("auto", features, openvino, runtime, kernels)
    assert (found.precision, found.runtime) == ("f32", "onnxruntime")
    assert why in found.why


@pytest.mark.parametrize("openvino", [True, False])
def test_where_the_kernels_have_no_attention_it_stays_float32(openvino: bool) -> None:
    assert chosen("auto", ICE_LAKE, openvino) == Choice("int8", "kernels", "f32", "the CPU has products of int8")


@pytest.mark.parametrize("asked", ["auto", "int8"])
def test_the_kernels_by_name_are_had_where_they_are_there_and_for_the_cpu(asked: str) -> None:
    for features in (ZEN5, XEON):
        assert chosen(asked, features, runtime="kernels") == Choice("int8", "kernels", "bf16", "asked for")
    with pytest.raises(EngineError, match="cannot be used: Diptych was installed without its kernels"):
        chosen(asked, ZEN5, runtime="kernels", kernels=False)
    for features in (ALDER_LAKE, GRAVITON3, UNKNOWN):
        with pytest.raises(EngineError, match=r"cannot be used: the CPU has no avx512_vnni.*use --media-runtime auto"):
            chosen(asked, features, runtime="kernels")


@pytest.mark.parametrize("asked", ["f32", "bf16", "f16"])
def test_the_kernels_compute_in_int8_alone(asked: str) -> None:
    with pytest.raises(EngineError, match=f"the kernels compute in int8, not in {asked}; use --media-runtime auto"):
        chosen(asked, XEON, runtime="kernels")


def test_auto_by_openvino_keeps_to_f32_on_a_cpu_without_small_products() -> None:
    found = chosen("auto", HASWELL, runtime="openvino")
    assert (found.precision, found.runtime) == ("f32", "openvino")


@pytest.mark.parametrize("features", CPUS)
@pytest.mark.parametrize("openvino", [True, False])
def test_f32_is_onnx_runtimes_on_every_machine(features: frozenset[str], openvino: bool) -> None:
    found = chosen("f32", features, openvino)
    assert (found.precision, found.runtime) == ("f32", "onnxruntime")


def test_int8_goes_to_the_kernels_then_to_openvino_and_without_it_to_onnx_runtime_which_says_so() -> None:
    assert chosen("int8", ZEN5) == Choice("int8", "kernels", "bf16", "asked for")
    assert chosen("int8", ZEN5, kernels=False) == Choice("int8", "openvino", "bf16", "asked for")
    assert chosen("int8", ICE_LAKE) == Choice("int8", "kernels", "f32", "asked for")
    assert chosen("int8", ALDER_LAKE) == Choice("int8", "openvino", "f32", "asked for")
    found = chosen("int8", ZEN5, openvino=False, kernels=False)
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
        machine = Machine(ZEN5, True, True)
        assert choose(Options(precision="auto", **given), machine).why == "execution providers were named"
        others = (
            {"precision": p, "media_runtime": r} for p, r in (("int8", "auto"), ("bf16", "auto"), *product(["auto"], RUNTIMES))
        )
        for more in others:
            with pytest.raises(EngineError, match="leave out one or the other"):
                choose(Options(**given, **more), machine)


def test_every_combination_gives_a_choice_or_one_line() -> None:
    precisions, runtimes = ("auto", "f32", "bf16", "f16", "int8"), ("auto", "onnxruntime", *RUNTIMES)
    lines: list[str] = []
    for asked, runtime, features, openvino, kernels in product(precisions, runtimes, CPUS, (True, False), (True, False)):
        try:
            found = chosen(asked, features, openvino, runtime, kernels)
        except (EngineError, MissingExtra) as error:
            lines.append(str(error))
            continue
        assert asked in ("auto", found.precision)
        assert runtime in ("auto", found.runtime)
        assert openvino or found.runtime != "openvino"
        assert kernels or found.runtime != "kernels"
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
    this_machine.cache_clear()
    assert not this_machine().openvino
    this_machine.cache_clear()


def test_doctor_says_what_was_chosen_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIPTYCH_PRECISION", "f32")
    assert doctor.runtime() == {"precision f32": "f32 by ONNX Runtime: asked for"}
    monkeypatch.setenv("DIPTYCH_PRECISION", "bf16")
    monkeypatch.setenv("DIPTYCH_MEDIA_RUNTIME", "onnxruntime")
    assert "use --media-runtime openvino" in doctor.runtime()["precision bf16"]
