"""What holds for all tests."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

# tests hold rows against references to the last digits; those of other precisions ask for them by name
os.environ.setdefault("DIPTYCH_PRECISION", "f32")


@pytest.fixture(scope="session", autouse=True)
def quiet_llama_cpp() -> Iterator[None]:
    """llama_cpp opens /dev/null twice when it is imported and leaves that to the interpreter's end, which warns."""
    yield
    from llama_cpp import _utils

    _utils.outnull_file.close()
    _utils.errnull_file.close()
