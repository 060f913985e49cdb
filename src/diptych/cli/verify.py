"""`diptych verify`: both halves against libmtmd and transformers, before they are trusted."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from diptych.cli import console, flags, model
from diptych.cli.flags import with_options
from diptych.media.access import Access
from diptych.media.load import load
from diptych.options import Options
from diptych.types import Source
from diptych.verify import Line, made_pictures, verify
from diptych.verify.references import QUESTION

MARKS = {True: "[green]ok[/]", False: "[bold red]broken[/]", None: "[dim]not bound[/]"}


@with_options(*flags.TEXT, *(name for name in flags.MEDIA if name != "warmup"))
@model.with_model
def command(
    checkpoint: Annotated[
        Path | None, typer.Option("--checkpoint", help="The checkpoint's folder: compare with transformers too.")
    ] = None,
    image: Annotated[
        list[str] | None, typer.Option("--image", help="A picture (path or URL); repeatable. By default three are made.")
    ] = None,
    prompt: Annotated[str, typer.Option("-p", "--prompt", help="What is asked about each.")] = QUESTION,
    as_json: console.Json = False,
    *,
    named: model.Named,
    options: Options,
) -> None:
    """Compare both halves with libmtmd and transformers, before you trust them.

    The same mmproj runs in libmtmd. With --checkpoint (and PyTorch and transformers installed) the checkpoint that the
    halves were made of runs there too. Pixels, tokens, positions, embeddings and the first greedy tokens are compared.
    The exit code is 1 when a bound is broken.
    """
    files = named.find(absolute=options.allow_absolute_paths, text_needed=False)
    pictures = {p: load(Source("image", url=p), Access.local(options)) for p in image or ()}
    found = list(verify(files, pictures or made_pictures(), options, checkpoint=checkpoint, question=prompt))
    broken = sum(line.ok is False for line in found)
    if as_json:
        console.print_json({"ok": not broken, "lines": [asdict(line) for line in found]})
    else:
        _report(found, broken)
    raise typer.Exit(1 if broken else 0)


def _report(found: list[Line], broken: int) -> None:
    columns = ("picture", "against", "what", "found", "bound", "")
    console.table(None, columns, [(n.picture, n.against, n.what, n.found, n.bound, MARKS[n.ok]) for n in found])
    console.out.print(f"[bold red]{broken} of {len(found)} broken[/]" if broken else f"[green]all {len(found)} within bounds[/]")
