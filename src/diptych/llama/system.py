"""What llama.cpp was built with."""

from __future__ import annotations

import re

import llama_cpp.llama_cpp as lib


def features() -> list[str]:
    """The instruction sets and libraries it uses, as it names them: AVX2, AVX512_VNNI, …"""
    text = lib.llama_print_system_info().decode(errors="replace")
    return re.findall(r"(\w+) = 1\b", text)


def gpu() -> bool:
    """Whether it can put layers on a GPU."""
    return bool(lib.llama_supports_gpu_offload())
