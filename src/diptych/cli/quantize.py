"""`diptych quantize`: llama.cpp's quantiser."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from diptych.cli import console
from diptych.llama.quantize import TYPES, quantize


def command(
    source: Annotated[Path, typer.Argument(metavar="IN", help="The GGUF to read.")],
    output: Annotated[Path, typer.Argument(metavar="OUT", help="The GGUF to write.")],
    type: Annotated[str, typer.Argument(metavar="TYPE", help=f"One of {', '.join(TYPES)}.")],
    threads: Annotated[int | None, typer.Option("-t", "--threads", min=1, help="CPU threads.")] = None,
    force: console.Force = False,
) -> None:
    """Quantise a GGUF with llama.cpp's quantiser."""
    with console.err.status(f"quantising {source} to {type.upper()}"):
        quantize(source, output, type, threads=threads, force=force)
    before, after = source.stat().st_size, output.stat().st_size
    console.out.print(f"{output}  {after / 1e6:,.1f} MB, {after / before:.0%} of {source.name}")
