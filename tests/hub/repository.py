"""A repository as the tests of what comes from the hub have it, and looks into the caches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from diptych.deploy import Deployment
from diptych.errors import DiptychError, FileError
from diptych.hub import download as ours
from diptych.hub import record
from hub.stand_in import Content

NAME = "me/reader-GGUF"
TEXT, MMPROJ = bytes(range(256)) * 2000, b"mmproj" * 50_000
FILES: dict[str, Content] = {
    "reader-Q4_K_M.gguf": TEXT,
    "reader-Q8_0.gguf": TEXT[::-1],
    "mmproj-reader-F16.gguf": MMPROJ,
    "mmproj-reader-Q8_0.gguf": MMPROJ[::-1],
    "imatrix.gguf": b"no" * 1000,
    "README.md": b"read me",
    ".gitattributes": b"*.gguf filter=lfs",
}


def cache() -> Path:
    return Path(constants.HF_HUB_CACHE)


def contents(found: Deployment) -> tuple[bytes, bytes | None]:
    return found.text.read_bytes(), found.mmproj.read_bytes() if found.mmproj else None


def half_written() -> list[Path]:
    return list(cache().rglob("*.incomplete"))


def left() -> list[str]:
    """Everything that lies in the caches."""
    return sorted(p.name for folder in (cache(), record.home()) for p in folder.rglob("*") if p.is_file() or p.is_symlink())


def refused(match: str, name: str = NAME, error: type[DiptychError] = FileError, **asked: Any) -> None:
    """The call fails in one line, and leaves nothing behind."""
    before = left()
    with pytest.raises(error, match=match) as raised:
        ours.fetch(name, **asked)
    assert "\n" not in str(raised.value)
    assert left() == before
