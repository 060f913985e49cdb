"""Which arithmetic a media half computes in, and what does it: a rule over what the machine has.

    f32   ONNX Runtime, on any machine: equal to the reference up to rounding
    bf16  OpenVINO, on CPUs with bfloat16 products
    f16   OpenVINO, on CPUs with float16 arithmetic
    int8  the linear layers in int8: ONNX Runtime with Diptych's kernels on CPUs they are for (AVX-512 VNNI), else OpenVINO, or
          ONNX Runtime alone where that is not installed. CPUs with matrix units (AMX) are OpenVINO's, which knows these
    auto  int8 by the kernels, or by OpenVINO on CPUs that have products of int8 and of bfloat16, else f32

Where a machine tells no features of its CPU (Windows, a Mac of Intel's), auto is f32, and OpenVINO itself says whether it
can do what is asked for. Execution providers that the user names, and ONNX files made by others, are run as they are, in
f32.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, cast

from diptych.encoder import kernels
from diptych.errors import EngineError, MissingExtra
from diptych.options import Options

Precision = Literal["f32", "bf16", "f16", "int8"]
Runtime = Literal["onnxruntime", "openvino", "kernels"]  # "kernels" is ONNX Runtime with Diptych's own

# names of /proc/cpuinfo, of x86 and of Arm
INT8 = frozenset({"avx512_vnni", "avx_vnni", "amx_int8", "i8mm"})
BF16 = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
F16 = frozenset({"avx512_fp16", "amx_fp16", "asimdhp"})
AMX = frozenset({"amx_int8", "amx_bf16"})
WATCHED = ("avx2", "avx512f", *sorted(INT8), *sorted(BF16), *sorted(F16), "asimd", "asimddp", "sve")
EXTRA = "OpenVINO runs the media half in bf16, f16 and int8, and is not installed: pip install 'diptych[openvino]'"
_CPU = ("CPUExecutionProvider",)


@dataclass(frozen=True)
class Choice:
    """What a media half computes in, and by what. `rest` is what an int8 half's attention is in, and by OpenVINO all else
    beside the linear layers; `why` says in a few words what decided."""

    precision: Precision
    runtime: Runtime
    rest: Precision
    why: str


@dataclass(frozen=True)
class Machine:
    """What decides: the features of the CPU, by Linux's names, and what is installed."""

    features: frozenset[str]
    openvino: bool
    kernels: bool

    @property
    def runs_kernels(self) -> bool:
        """Whether the kernels are there, and for this CPU."""
        return self.kernels and kernels.LINEAR in self.features


def choose(options: Options, machine: Machine | None = None) -> Choice:
    """The arithmetic and the runtime of a media half, by the options and what a machine has (by default this one).

    Raises EngineError for what the machine or the runtime cannot do, MissingExtra for what OpenVINO could.
    """
    machine = machine or this_machine()
    choice = _chosen(options, machine)
    if choice.runtime == "openvino" and not machine.openvino:
        raise MissingExtra(EXTRA)
    if choice.runtime == "kernels" and not machine.runs_kernels:
        raise EngineError(f"the kernels cannot be used: {_against_kernels(machine)}; use --media-runtime auto")
    return choice


def _chosen(options: Options, machine: Machine) -> Choice:
    asked, runtime = options.precision, options.media_runtime
    if options.providers != _CPU or options.ep_libraries:
        if asked not in ("auto", "f32") or runtime not in ("auto", "onnxruntime"):
            raise EngineError(
                f"execution providers are ONNX Runtime's, and graphs run there in f32; --precision {asked} with --media-runtime "
                f"{runtime} was asked for: leave out one or the other"
            )
        return Choice("f32", "onnxruntime", "f32", "execution providers were named")
    if asked == "auto":
        return _auto(runtime, machine)
    if asked == "int8":
        return _int8(runtime, machine)
    if runtime == "kernels":
        raise EngineError(f"the kernels compute in int8, not in {asked}; use --media-runtime auto, or --precision int8")
    if asked == "f32":
        return Choice("f32", runtime if runtime == "openvino" else "onnxruntime", "f32", "asked for")
    return _half(asked, runtime, machine.features)


def _auto(runtime: str, machine: Machine) -> Choice:
    if runtime == "onnxruntime":
        return Choice("f32", "onnxruntime", "f32", "ONNX Runtime was asked for")
    if runtime == "kernels":
        return _int8(runtime, machine)
    if why := _against_int8(runtime, machine):
        return Choice("f32", "openvino" if runtime == "openvino" else "onnxruntime", "f32", why)
    found = _int8(runtime, machine)
    return replace(found, why=f"the CPU has products of int8{' and bf16' if found.rest == 'bf16' else ''}")


def _against_int8(runtime: str, machine: Machine) -> str:
    """Why int8 is not what a machine is best at, or nothing."""
    if runtime == "auto" and machine.runs_kernels:
        return ""
    if not machine.features:
        return "the CPU's features are not known"
    lacking = [name for name, there in (("int8", INT8 & machine.features), ("bf16", BF16 & machine.features)) if not there]
    if lacking:
        return f"the CPU has no products of {' and '.join(lacking)}"
    if runtime == "auto" and not machine.openvino:
        return f"{_against_kernels(machine)}, and OpenVINO, which would run int8, is not installed"
    return ""


def _int8(runtime: str, machine: Machine) -> Choice:
    why = "asked for"
    if runtime == "auto":
        if machine.runs_kernels and not (machine.openvino and AMX & machine.features):
            runtime = "kernels"
        elif machine.openvino:
            runtime = "openvino"
        else:
            runtime, why = "onnxruntime", "asked for; OpenVINO, which is faster, is not installed"
    bf16 = {"kernels": frozenset({kernels.ATTENTION}), "openvino": BF16}.get(runtime, frozenset())
    return Choice("int8", cast("Runtime", runtime), "bf16" if bf16 & machine.features else "f32", why)


def _half(asked: Literal["bf16", "f16"], runtime: str, features: frozenset[str]) -> Choice:
    if runtime == "onnxruntime":
        raise EngineError(
            f"ONNX Runtime's CPU provider does not compute in {asked}; use --media-runtime openvino, or f32 or int8"
        )
    needed = BF16 if asked == "bf16" else F16
    if features and not needed & features:
        raise EngineError(f"this CPU has no {asked} arithmetic ({', '.join(sorted(needed))}); use --precision auto, f32 or int8")
    return Choice(asked, "openvino", asked, "asked for")


def _against_kernels(machine: Machine) -> str:
    if not machine.kernels:
        return "Diptych was installed without its kernels"
    return f"the CPU has no {kernels.LINEAR}, which the kernels need"


@cache
def this_machine() -> Machine:
    """What this machine has."""
    return Machine(cpu_features(), _has_openvino(), kernels.built())


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
