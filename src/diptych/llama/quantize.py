"""llama.cpp's own quantiser: a GGUF, of the text half or an mmproj, to a GGUF of another type."""

from __future__ import annotations

import ctypes
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from diptych.errors import FileError, InputError, OutputError
from diptych.files import check_output, whole_file
from diptych.weights import open_gguf

logger = logging.getLogger(__name__)

# name → llama_ftype; written out, so that a list of them costs no native library
TYPES = {
    "F32": 0, "F16": 1, "BF16": 32, "Q8_0": 7, "Q6_K": 18, "Q5_K": 17, "Q5_K_M": 17, "Q5_K_S": 16, "Q5_1": 9, "Q5_0": 8,
    "Q4_K": 15, "Q4_K_M": 15, "Q4_K_S": 14, "Q4_1": 3, "Q4_0": 2, "IQ4_NL": 25, "IQ4_XS": 30, "Q3_K": 12, "Q3_K_L": 13,
    "Q3_K_M": 12, "Q3_K_S": 11, "IQ3_M": 27, "IQ3_S": 26, "IQ3_XS": 22, "IQ3_XXS": 23, "Q2_K": 10, "Q2_K_S": 21, "IQ2_M": 29,
    "IQ2_S": 28, "IQ2_XS": 20, "IQ2_XXS": 19, "IQ1_M": 31, "IQ1_S": 24, "TQ2_0": 37, "TQ1_0": 36, "Q2_0": 41, "Q1_0": 40,
    "MXFP4_MOE": 38,
}  # fmt: skip

_HINTS = {
    "requantizing": "quantise from the f32, bf16 or f16 file",
    "imatrix": "choose a type that needs no importance matrix, Q2_K or larger",
    "importance matrix": "choose a type that needs no importance matrix, Q2_K or larger",
}
_ELSE = "choose another type, or convert the model again"
_CANNOT_WRITE = ("iostream", "basic_ios", "failed to open")  # how the C++ library puts it


def quantize(source: Path, out: Path, type: str, *, threads: int | None = None, force: bool = False) -> None:
    """Write `source` to `out` with its weights in `type`, a name of `TYPES` in any case. Whole file or nothing.

    Raises InputError listing the types for another name, FileError when the source is no whole GGUF or llama.cpp cannot
    quantise it, OutputError when the output may not or cannot be written.
    """
    name = type.upper()
    if name not in TYPES:
        raise InputError(f"the type is {type!r}, and one of these is expected: {', '.join(TYPES)}")
    check_output(out, force=force, inputs=[source])
    metadata = open_gguf(source).metadata  # llama.cpp's word on a damaged file says less
    # A mixture of types depends on the heads of a layer, which no mmproj states: llama.cpp aborts the process.
    pure = metadata.get("general.architecture") == "clip" and name.startswith(("IQ", "Q2_K"))
    with whole_file(out, force=force, inputs=[source]) as part:
        _run(source, out, part, name, pure, threads)


def _run(source: Path, out: Path, part: Path, name: str, pure: bool, threads: int | None) -> None:
    import llama_cpp

    from diptych.llama import log

    log.install()
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.pure, params.nthread = TYPES[name], pure, threads or 0
    with log.watch() as errors, _hushed(log.logger) as warnings:
        failed = llama_cpp.llama_model_quantize(os.fsencode(source), os.fsencode(part), ctypes.byref(params))
    if failed:
        reason = log.reason(errors[-1:]).rpartition("failed to quantize: ")[2]
        if any(words in reason for words in _CANNOT_WRITE):
            raise OutputError(f"cannot write {out}: {reason}; nothing was kept, free some space and run it again")
        hint = next((hint for words, hint in _HINTS.items() if words in reason), _ELSE)
        raise FileError(f"llama.cpp cannot quantise {source} to {name}: {reason}; {hint}")
    if other := sum("falling back" in line for line in warnings):
        logger.warning("%d tensors have rows that %s cannot hold, and took a type that can", other, name)


@contextmanager
def _hushed(noisy: logging.Logger) -> Iterator[list[str]]:
    """Keep what a logger says on this thread from being printed, and collect it."""
    me, lines = threading.get_ident(), list[str]()

    def keep(record: logging.LogRecord) -> bool:
        if record.thread == me:
            lines.append(record.getMessage())
        return record.thread != me

    noisy.addFilter(keep)
    try:
        yield lines
    finally:
        noisy.removeFilter(keep)
