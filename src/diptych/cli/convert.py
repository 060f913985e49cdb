"""`diptych convert`: a Hugging Face checkpoint to two GGUF files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from diptych.cli import console
from diptych.convert import convert


def command(
    checkpoint: Annotated[Path, typer.Argument(help="The checkpoint's directory.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Directory for text.gguf and mmproj.gguf.")],
    outtype: Annotated[Literal["f32", "f16", "bf16", "q8_0"], typer.Option("--outtype", help="Type of the weights.")] = "f16",
    force: console.Force = False,
) -> None:
    """Turn a Hugging Face checkpoint into text.gguf and mmproj.gguf.

    Tensors are read and written one at a time. `diptych run OUT` runs the result, `diptych quantize` makes it smaller.
    """
    with console.bytes_progress("converting") as progress:
        convert(checkpoint, output, outtype=outtype, force=force, progress=progress)
    for name in ("text.gguf", "mmproj.gguf"):
        console.out.print(f"{output / name}  {(output / name).stat().st_size / 1e6:,.1f} MB")
