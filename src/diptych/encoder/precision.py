"""Which arithmetic a media half computes in, and which runtime does it: a rule over what the machine has.

    f32   ONNX Runtime, on any machine: equal to the reference up to rounding
    bf16  OpenVINO, on CPUs with bfloat16 products
    f16   OpenVINO, on CPUs with float16 arithmetic
    int8  OpenVINO, or ONNX Runtime where that is not installed: weights and the products of linear layers in int8
    auto  int8 by OpenVINO on CPUs that have products of int8 and of bfloat16, else f32

Where a machine tells no features of its CPU (Windows, a Mac of Intel's), auto is f32, and OpenVINO itself says whether it
can do what is asked for. Execution providers that the user names, and ONNX files made by others, are run as they are, in
f32.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from diptych.errors import EngineError, MissingExtra
from diptych.options import Options

Precision = Literal["f32", "bf16", "f16", "int8"]
Runtime = Literal["onnxruntime", "openvino"]

# names of /proc/cpuinfo, of x86 and of Arm
INT8 = frozenset({"avx512_vnni", "avx_vnni", "amx_int8", "i8mm"})
BF16 = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
F16 = frozenset({"avx512_fp16", "amx_fp16", "asimdhp"})
WATCHED = ("avx2", "avx512f", *sorted(INT8), *sorted(BF16), *sorted(F16), "asimd", "asimddp", "sve")
EXTRA = "OpenVINO runs the media half in bf16, f16 and, fastest, int8, and is not installed: pip install 'diptych[openvino]'"
_CPU = ("CPUExecutionProvider",)


@dataclass(frozen=True)
class Choice:
    """What a media half computes in, and by what. `rest` is what an int8 half computes in beside the linear layers; `why`
    says in a few words what decided."""

    precision: Precision
    runtime: Runtime
    rest: Precision
    why: str


def choose(options: Options, features: frozenset[str] | None = None, has_openvino: bool | None = None) -> Choice:
    """The arithmetic and the runtime of a media half, by the options and what the machine has (by default this one).

    Raises EngineError for what the machine or the runtime cannot do, MissingExtra for what OpenVINO could.
    """
    features = cpu_features() if features is None else features
    has_openvino = _has_openvino() if has_openvino is None else has_openvino
    choice = _chosen(options, features, has_openvino)
    if choice.runtime == "openvino" and not has_openvino:
        raise MissingExtra(EXTRA)
    return choice


def _chosen(options: Options, features: frozenset[str], has_openvino: bool) -> Choice:
    asked, runtime = options.precision, options.media_runtime
    if options.providers != _CPU or options.ep_libraries:
        if asked not in ("auto", "f32") or runtime == "openvino":
            raise EngineError(
                f"execution providers are ONNX Runtime's, and graphs run there in f32; --precision {asked} with --media-runtime "
                f"{runtime} was asked for: leave out one or the other"
            )
        return Choice("f32", "onnxruntime", "f32", "execution providers were named")
    if asked == "auto":
        return _auto(runtime, features, has_openvino)
    if asked in ("bf16", "f16"):
        return _half(asked, runtime, features)
    if asked == "int8" and runtime != "onnxruntime" and (has_openvino or runtime == "openvino"):
        return Choice("int8", "openvino", _rest(features), "asked for")
    if runtime == "openvino":
        return Choice("f32", "openvino", "f32", "asked for")
    why = "asked for" if asked == "f32" or runtime == "onnxruntime" else "asked for; OpenVINO, which is faster, is not installed"
    return Choice(asked, "onnxruntime", "f32", why)


def _auto(runtime: str, features: frozenset[str], has_openvino: bool) -> Choice:
    if runtime == "onnxruntime":
        return Choice("f32", "onnxruntime", "f32", "ONNX Runtime was asked for")
    if not features:
        return Choice("f32", "openvino" if runtime == "openvino" else "onnxruntime", "f32", "the CPU's features are not known")
    lacking = [name for name, there in (("int8", INT8 & features), ("bf16", BF16 & features)) if not there]
    if lacking:
        why = f"the CPU has no products of {' and '.join(lacking)}"
    elif not has_openvino and runtime == "auto":
        why = "OpenVINO, which would run int8, is not installed"
    else:
        return Choice("int8", "openvino", "bf16", "the CPU has products of int8 and bf16")
    return Choice("f32", "openvino" if runtime == "openvino" else "onnxruntime", "f32", why)


def _half(asked: Literal["bf16", "f16"], runtime: str, features: frozenset[str]) -> Choice:
    if runtime == "onnxruntime":
        raise EngineError(
            f"ONNX Runtime's CPU provider does not compute in {asked}; use --media-runtime openvino, or f32 or int8"
        )
    needed = BF16 if asked == "bf16" else F16
    if features and not needed & features:
        raise EngineError(f"this CPU has no {asked} arithmetic ({', '.join(sorted(needed))}); use --precision auto, f32 or int8")
    return Choice(asked, "openvino", asked, "asked for")


def _rest(features: frozenset[str]) -> Precision:
    return "bf16" if BF16 & features else "f32"


def _has_openvino() -> bool:
    spec = find_spec("openvino")
    return spec is not None and spec.origin is not None  # a folder of that name that the command was started beside has none


@cache
def cpu_features() -> frozenset[str]:
    """Those features of this machine's processor that matter for speed here, by Linux's names; none where it tells none."""
    info = Path("/proc/cpuinfo")
    if not info.is_file():
        return frozenset({"asimd", "asimddp", "asimdhp"} if platform.machine() == "arm64" else ())
    lines = info.read_text().splitlines()
    flags = next((line.split() for line in lines if line.lower().startswith(("flags", "features"))), [])
    return frozenset(flags) & frozenset(WATCHED)
