"""What holds for all tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

# tests hold rows against references to the last digits; those of other precisions ask for them by name
os.environ.setdefault("DIPTYCH_PRECISION", "f32")
# a picture that one test has encoded is new to the next; those of the cache on disk ask for it by name
os.environ["DIPTYCH_ENCODE_DISK_MIB"] = "0"


@pytest.fixture(scope="session", autouse=True)
def diptych_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Diptych's own folder, apart from the user's."""
    folder = tmp_path_factory.mktemp("home")
    os.environ["DIPTYCH_HOME"] = str(folder)
    return folder


@pytest.fixture(scope="session", autouse=True)
def quiet_llama_cpp() -> Iterator[None]:
    """llama_cpp opens /dev/null twice when it is imported and leaves that to the interpreter's end, which warns."""
    yield
    from llama_cpp import _utils

    _utils.outnull_file.close()
    _utils.errnull_file.close()
