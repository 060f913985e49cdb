"""`diptych list`: what is here to run."""

from __future__ import annotations

from datetime import datetime
from importlib.metadata import version
from typing import Any

from diptych import reader
from diptych.cli import console
from diptych.hub.record import Download, listed


def command(as_json: console.Json = False) -> None:
    """List the models that were downloaded, and the shipped reader."""
    rows = [shipped(), *map(row, listed())]
    if as_json:
        console.print_json({"models": rows})
        return
    columns = ("name", "MB", "revision", "downloaded")
    console.table(None, columns, [(r["name"], r["size"] / 1e6, r["revision"][:12], when(r)) for r in rows])


def shipped() -> dict[str, Any]:
    """The row of the reader, which nothing downloads and nothing removes."""
    size = sum(p.stat().st_size for p in reader.FOLDER.glob("*.gguf"))
    return {
        "name": "reader", "quant": "", "size": size, "here": size, "complete": True, "revision": version("diptych"), "when": "",
        "text": str(reader.FOLDER / "text.gguf"), "mmproj": str(reader.FOLDER / "mmproj.gguf"), "folder": str(reader.FOLDER),
    }  # fmt: skip


def row(download: Download) -> dict[str, Any]:
    """What there is to say of a download; a deployment of its own is named by its folder."""
    halves = {"text": download.text, "mmproj": download.mmproj}
    return {
        "name": download.name, "quant": download.quant, "size": download.size, "here": download.here,
        "complete": download.whole, "revision": download.revision, "when": download.when,
        **{half: str(download.path(path)) if path else None for half, path in halves.items()}, "folder": download.snapshot,
    }  # fmt: skip


def when(row: dict[str, Any]) -> str:
    """When a model came, as people read it, or how much of it."""
    if not row["complete"]:
        return f"{row['here'] / max(row['size'], 1):.0%}, not whole"
    return datetime.fromisoformat(row["when"]).astimezone().strftime("%Y-%m-%d %H:%M") if row["when"] else "with Diptych"
