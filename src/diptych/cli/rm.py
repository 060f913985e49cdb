"""`diptych rm`: give back the room of a downloaded model."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from diptych.cli import console
from diptych.errors import InputError
from diptych.hub.record import Download, listed, remove


def command(
    name: Annotated[str, typer.Argument(help="A model as `diptych list` names it.")],
    yes: Annotated[bool, typer.Option("-y", "--yes", help="Remove without asking.")] = False,
    as_json: console.Json = False,
) -> None:
    """Remove a model that Diptych downloaded.

    It asks first. A file stays that another model here needs, or that another tool put into the hub's cache.
    """
    found = named(name)
    if not yes and not agreed(found):
        console.out.print("nothing was removed")
        return
    removed = [remove(download) for download in found]
    files, size = sum(r.files for r in removed), sum(r.size for r in removed)
    kept = [path for r in removed for path in r.kept]
    if as_json:
        console.print_json({"removed": [d.name for d in found], "files": files, "freed": size, "kept": kept})
        return
    console.out.print(
        f"removed {found[0].name}, {'1 file' if files == 1 else f'{files} files'}: {size / 1e6:,.1f} MB are free again"
    )
    for path in kept:
        console.out.print(f"kept {path}, which something else uses", soft_wrap=True, markup=False)


def named(name: str) -> list[Download]:
    """The downloads of a name, one for each revision; a name without its quantisation will do where there is one."""
    if name == "reader":
        raise InputError("reader ships with Diptych and takes 8.6 MB; there is nothing to remove")
    downloads = listed()
    found = [d for d in downloads if d.name.lower() == name.lower()] or [d for d in downloads if d.repo == name]
    names = sorted({d.name for d in found})
    if len(names) > 1:
        raise InputError(f"{name} is here as {', '.join(names)}; name one of them")
    if not found:
        here = ", ".join(sorted({d.name for d in downloads})) or "nothing"
        raise InputError(f"Diptych has not downloaded {name}; it has downloaded {here}")
    return found


def agreed(found: list[Download]) -> bool:
    """Ask. Raises InputError where nobody can answer."""
    if not sys.stdin.isatty():
        raise InputError(f"nobody is here to agree to removing {found[0].name}; add -y")
    size = sum(d.here for d in found)
    revisions = ", ".join(d.revision[:12] for d in found)
    return typer.confirm(f"Remove {found[0].name} at {revisions}, {size / 1e6:,.1f} MB, from {found[0].snapshot}?")
