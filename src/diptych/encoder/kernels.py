"""Diptych's own operators for ONNX Runtime's CPU provider: linear layers in int8, attention in bfloat16.

They are the C++ of `kernels/`, compiled when Diptych is installed, for x86 CPUs with AVX-512: linear layers for those that have
VNNI, attention for those that have BF16 too.
"""

from __future__ import annotations

from pathlib import Path

LIBRARY = Path(__file__).with_name("diptych_kernels.so")
LINEAR, ATTENTION = "avx512_vnni", "avx512_bf16"  # features of the CPU that they need, by Linux's names


def built() -> bool:
    """Whether they came with this installation."""
    return LIBRARY.is_file()
