"""Diptych's own operators for ONNX Runtime's CPU provider: linear layers in int8, attention in bfloat16.

They are the C++ of `kernels/`, compiled when Diptych is installed, for x86 CPUs with AVX-512: linear layers for those that have
VNNI, attention for those that have BF16 too.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import cast

LIBRARY = Path(__file__).with_name("diptych_kernels.so")
LINEAR, ATTENTION = "avx512_vnni", "avx512_bf16"  # features of the CPU that they need, by Linux's names


@contextmanager
def at_most(n_threads: int) -> Iterator[None]:
    """Inside the block the operators compute on so many threads at most, in all sessions of this process. What one has begun
    goes on with fewer at once, and with more when its next step begins."""
    use_threads = _use_threads()
    use_threads(n_threads)
    try:
        yield
    finally:
        use_threads(0)


@cache
def _use_threads() -> Callable[[int], object]:
    """The library's function; where there is none, nobody is to be told."""
    try:
        found = ctypes.CDLL(str(LIBRARY)).diptych_use_threads
    except (AttributeError, OSError):
        return lambda _: None
    found.argtypes, found.restype = [ctypes.c_size_t], None
    return cast("Callable[[int], object]", found)


def built() -> bool:
    """Whether they came with this installation."""
    return LIBRARY.is_file()
