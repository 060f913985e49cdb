"""`diptych demo`: the main job on the shipped reader and its example pictures, without network."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table

from diptych import reader
from diptych.cli import console
from diptych.engine import Engine
from diptych.options import Options
from diptych.types import Source


def command(as_json: console.Json = False) -> None:
    """Read the example pictures with the shipped reader."""
    with Engine.load("reader", options=Options()) as engine:
        results = [
            (picture, *engine.answer("Read the text.", [Source("image", url=str(picture))])) for picture in reader.examples()
        ]
        load_ms = engine.load_ms
    if as_json:
        pictures = [
            {"image": str(picture), "text": text, "encode_ms": last.timings.encode_ms, "total_ms": total(last.timings)}
            for picture, text, last in results
        ]
        console.print_json({"load_ms": load_ms, "pictures": pictures})
        return
    drawn = Table("picture", "text read", show_lines=True, header_style="bold")
    for name in ("tokens", "encode", "in all"):
        drawn.add_column(name, justify="right")
    for picture, text, last in results:
        drawn.add_row(
            picture.name, text, f"{last.usage.media_tokens}+{last.usage.completion_tokens}",
            f"{last.timings.encode_ms:.0f} ms", f"{total(last.timings):.0f} ms",
        )  # fmt: skip
    console.out.print(drawn)
    console.out.print(f"loaded both halves in {load_ms:.0f} ms; tokens are picture+answer\n")
    next_steps(results[0][0])


def next_steps(picture: Path) -> None:
    console.out.print("[bold]Next[/]")
    for line in (
        f"diptych run reader -p 'Read the text.' --image {picture}",
        f"diptych inspect --mmproj {reader.FOLDER / 'mmproj.gguf'} --image {picture} -o seen.png",
        "diptych convert CHECKPOINT -o DIR      # a Qwen2-VL checkpoint of your own",
        "diptych run DIR -p 'Describe it.' --image YOUR.png",
    ):
        console.out.print(f"  {line}", soft_wrap=True, markup=False)


def total(timings: object) -> float:
    """Milliseconds from the request to the end of the answer."""
    return float(getattr(timings, "time_to_first_token_ms")) + float(getattr(timings, "decode_ms"))  # noqa: B009
