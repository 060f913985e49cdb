"""Diptych's own operators for ONNX Runtime's CPU provider: linear layers in int8, attention in bfloat16.

They are the C++ of `kernels/`, compiled when Diptych is installed, for x86 CPUs with AVX-512 VNNI and BF16.
"""

from __future__ import annotations

from pathlib import Path

LIBRARY = Path(__file__).with_name("diptych_kernels.so")
FEATURES = frozenset({"avx512_vnni", "avx512_bf16"})  # of the CPU, by Linux's names


def built() -> bool:
    """Whether they came with this installation."""
    return LIBRARY.is_file()
