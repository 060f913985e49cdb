"""The small model that ships with Diptych: it reads short printed text, so that everything runs offline."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent


def examples() -> list[Path]:
    """The example pictures, in order."""
    return sorted((FOLDER / "examples").glob("*.png"))
