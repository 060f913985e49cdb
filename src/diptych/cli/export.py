"""`diptych export`: the media half as ONNX files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from diptych import export
from diptych.cli import console
from diptych.errors import InputError


def command(
    source: Annotated[Path, typer.Argument(help="An mmproj GGUF, or a checkpoint's directory.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Directory to write to.")],
    size: Annotated[
        list[str] | None,
        typer.Option("--size", help="Write a static graph for this many pixels a side, or WIDTHxHEIGHT; repeatable."),
    ] = None,
    force: console.Force = False,
) -> None:
    """Write the media half as ONNX.

    Without --size one graph takes pictures of any size. With sizes, each gets a static graph: one float32 input, one
    output, all sharing one file of weights.
    """
    sizes = [parse_size(text) for text in size or ()]
    with console.bytes_progress("exporting") as progress:
        written = export.export(source, output, sizes=sizes, force=force, progress=progress)
    for file in written:
        console.out.print(f"{file}  {file.stat().st_size / 1e6:,.1f} MB")


def parse_size(text: str) -> tuple[int, int]:
    """`504` → (504, 504), `1008x504` → (1008, 504), as (width, height) in pixels."""
    match = re.fullmatch(r"(\d{1,6})(?:[x×](\d{1,6}))?", text.strip().lower())
    if match is None:
        raise InputError(f"--size {text!r} is not a size; give pixels such as 504, or WIDTHxHEIGHT such as 1008x504")
    width = int(match[1])
    return width, int(match[2] or width)
