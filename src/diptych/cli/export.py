"""`diptych export`: a deployment, with the media half as ONNX files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

import typer

from diptych import export
from diptych.cli import console
from diptych.errors import InputError


def command(
    output: Annotated[Path, typer.Option("-o", "--output", help="Directory to write to.")],
    source: Annotated[
        Path | None, typer.Argument(help="A checkpoint's directory, a deployment's (`reader`), or an mmproj GGUF.")
    ] = None,
    text: Annotated[Path | None, typer.Option("-m", "--model", help="The text half, a GGUF.")] = None,
    mmproj: Annotated[Path | None, typer.Option("--mmproj", help="The media half, an mmproj GGUF.")] = None,
    size: Annotated[
        list[str] | None,
        typer.Option("--size", help="Write a static graph for this many pixels a side, or WIDTHxHEIGHT; repeatable."),
    ] = None,
    any_size: Annotated[
        bool, typer.Option("--any-size", help="Beside --size, write the graph for pictures of any size.")
    ] = False,
    gguf: Annotated[bool, typer.Option("--gguf", help="Keep the media half as an mmproj; write no ONNX.")] = False,
    outtype: Annotated[
        Literal["f32", "f16", "bf16", "q8_0"] | None,
        typer.Option("--outtype", help="Type of a checkpoint's weights; without it text is f16, and media stays as it is."),
    ] = None,
    link: Annotated[bool, typer.Option("--link", help="Link GGUFs into the directory instead of copying them.")] = False,
    force: console.Force = False,
) -> None:
    """Write a deployment: both halves of a model, and a config.json that binds them.

    `diptych run DIR` needs nothing else. The media half becomes ONNX, which runs without Diptych too: without --size one
    graph takes pictures of any size; with sizes each gets a static graph with one float32 input, all sharing one file of
    weights, and a picture goes to the size that suits it best. Of an mmproj alone only the media half is written.
    """
    sizes = [parse_size(written) for written in size or ()]
    made = export.open_source(source, model=text, mmproj=mmproj, outtype=outtype)
    with console.bytes_progress("exporting") as progress:
        written = export.deploy(
            made, output, sizes=sizes, any_size=any_size, gguf=gguf, link=link, force=force, progress=progress
        )
    for file in written:
        console.out.print(f"{file}  {file.stat().st_size / 1e6:,.1f} MB", soft_wrap=True)


def parse_size(text: str) -> tuple[int, int]:
    """`504` → (504, 504), `1008x504` → (1008, 504), as (width, height) in pixels."""
    match = re.fullmatch(r"(\d{1,6})(?:[x×](\d{1,6}))?", text.strip().lower())
    if match is None:
        raise InputError(f"--size {text!r} is not a size; give pixels such as 504, or WIDTHxHEIGHT such as 1008x504")
    width = int(match[1])
    return width, int(match[2] or width)
