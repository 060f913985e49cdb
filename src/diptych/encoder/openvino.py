"""OpenVINO behind one call. The only place that imports it.

It has what ONNX Runtime's CPU provider lacks: arithmetic in bfloat16 and float16, and int8 products whose activations are
quantised in small groups while the graph runs.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from diptych.encoder.mapped import released
from diptych.encoder.precision import EXTRA, Precision
from diptych.encoder.prepared import DATA
from diptych.encoder.rows import beside
from diptych.errors import EngineError, FileError, MissingExtra
from diptych.options import Options
from diptych.trace import OFF, Trace

if TYPE_CHECKING:
    import openvino

GROUP = 128  # activations to a scale in int8 products; the fastest at 675 million weights, see docs/performance.md
_SHAPES = "64"  # kernels kept for the shapes they were made for; with OpenVINO's 5,000 a size of picture takes 1 MB for good
_PRIMITIVES = "128"  # the same in oneDNN, which does OpenVINO's products; 1,024 by default
_MAX_RUNS = 64  # whose operators a trace gets
_LANE = "encoder operators"


class OpenVinoSession:
    """An ONNX file, with its external data beside it, ready to run on the CPU.

    Its arithmetic is that of `precision`; with int8, which is that of the products of linear layers alone, all else is
    in `rest`. A trace with `ops` gets the operators of the first runs; OpenVINO tells how long each took, not when.
    """

    def __init__(self, model: Path, options: Options, precision: Precision, rest: Precision = "f32", trace: Trace = OFF) -> None:
        """Raises MissingExtra without OpenVINO, FileError when the graph cannot be loaded, EngineError when the CPU lacks the
        arithmetic."""
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", _PRIMITIVES)  # read when the library first needs it
        try:
            import openvino
        except ImportError as error:
            raise MissingExtra(EXTRA) from error
        asked = rest if precision == "int8" else precision
        try:
            core = openvino.Core()
            compiled = core.compile_model(core.read_model(model), "CPU", _settings(options, precision, asked, trace))
            self._request: openvino.InferRequest | None = compiled.create_infer_request()
        except Exception as error:  # OpenVINO's have no common class but this
            raise FileError(f"OpenVINO cannot load {model}: {_line(error)}") from error
        found = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        if found != asked:
            raise EngineError(
                f"this CPU computes in {found} where precision {precision} needs {asked}; choose another --precision"
            )
        self._weights = model.with_name(DATA).resolve()
        self._outputs = {name: i for i, port in enumerate(compiled.outputs) for name in port.names}
        self._inputs = {port.any_name: port.element_type.to_dtype() for port in compiled.inputs}
        self._lock = threading.Lock()
        self._packed = False  # weights are rearranged in the first run, into memory of OpenVINO's own
        self._trace, self._runs_left = trace, _MAX_RUNS if trace.ops else 0

    def run(self, feed: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """The outputs for these inputs, beside each other. Raises EngineError when OpenVINO fails."""
        return beside(self._run(feed, sorted(set(self._outputs.values()))))

    def outputs(self, feed: Mapping[str, NDArray[Any]], names: Sequence[str]) -> list[NDArray[np.float32]]:
        """The outputs of these names. Raises EngineError when OpenVINO fails."""
        if missing := [name for name in names if name not in self._outputs]:
            raise EngineError(f"the media half has no output {missing[0]!r}, but {', '.join(self._outputs)}; name one of these")
        return self._run(feed, [self._outputs[name] for name in names])

    def close(self) -> None:
        """Free the graph and its memory."""
        with self._lock:
            self._request = None

    def _run(self, feed: Mapping[str, NDArray[Any]], outputs: Sequence[int]) -> list[NDArray[np.float32]]:
        # an input that is left out would be that of the last run, and one of another type would be converted
        if (given := {name: array.dtype for name, array in feed.items()}) != self._inputs:
            raise EngineError(f"the media half takes {_told(self._inputs)}, and was given {_told(given)}")
        with self._lock:  # a request holds the inputs and outputs of one run
            if self._request is None:
                raise EngineError("the media half is closed; load it again before using it")
            start = time.perf_counter()
            try:
                with nullcontext() if self._packed else released(self._weights):
                    self._request.infer(dict(feed), share_inputs=True)
                self._packed = True
                found = [np.array(self._request.get_output_tensor(i).data, np.float32) for i in outputs]
            except Exception as error:
                raise EngineError(f"OpenVINO could not run the media half: {_line(error)}") from error
            if self._runs_left:
                self._runs_left -= 1
                self._tell(start)
            return found

    def _tell(self, start: float) -> None:
        """Put the operators of the last run into the trace, one behind the other."""
        assert self._request is not None
        for node in self._request.profiling_info:
            if seconds := node.real_time.total_seconds():
                args = {"node": node.node_name, "kernel": node.exec_type}
                self._trace.complete(node.node_type, _LANE, start, start + seconds, **args)
                start += seconds


def _settings(options: Options, precision: Precision, arithmetic: Precision, trace: Trace) -> dict[str, Any]:
    out: dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": arithmetic,
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": GROUP if precision == "int8" else 0,
        "PERF_COUNT": trace.ops,
        "CPU_RUNTIME_CACHE_CAPACITY": _SHAPES,
    }
    if options.threads:
        out["INFERENCE_NUM_THREADS"] = options.threads
    return out


def _told(inputs: Mapping[str, np.dtype[Any]]) -> str:
    return ", ".join(f"{name} ({dtype})" for name, dtype in inputs.items()) or "nothing"


def _line(error: Exception) -> str:
    """The part of OpenVINO's message that says what is wrong, on one line; before it stand the places in its source."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if not line.startswith(("Exception from", "Check '"))]
    return (told or lines or [type(error).__name__])[-1]
