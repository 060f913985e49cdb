"""`diptych bench`: how fast a model is on this machine, and what each backend and precision makes of it."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import psutil
import typer
from rich import box
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from diptych import families
from diptych.bench import chart, results, turns
from diptych.bench.job import Amounts, Picture, Side, jobs, measures_of, sides_of, size_of
from diptych.bench.results import Results, Row
from diptych.cli import console, flags, model
from diptych.cli.doctor import installed, processor
from diptych.cli.flags import with_options
from diptych.deploy import Deployment
from diptych.errors import InputError, UnknownModel
from diptych.files import check_output
from diptych.llama.context import default_threads
from diptych.media.access import Access
from diptych.media.load import load
from diptych.options import Options
from diptych.types import Media, Source

SIDE = 504  # pixels a side of the picture measured where none is named
_OWN = ("media_backend", "precision", "warmup")  # of the options: given in another way here, or no matter


Measures = Annotated[
    str | None, typer.Option("--measure", help="What to measure, of encode,text,first-token; by default all that the model has.")
]
Sizes = Annotated[
    list[str] | None,
    typer.Option("--size", help="Measure a picture of this many pixels a side, or WIDTHxHEIGHT; repeatable."),
]
Images = Annotated[list[str] | None, typer.Option("--image", help="Measure a picture of your own (a path); repeatable.")]
Backends = Annotated[
    str | None,
    typer.Option("--media-backend", "--vision-backend", help="Backends to compare, such as mtmd,onnx; ratios are to the first."),
]
Precisions = Annotated[str | None, typer.Option("--precision", help="Precisions to compare in each of them, such as f32,int8.")]
Rounds = Annotated[int, typer.Option("--rounds", min=1, help="Processes of each side; the sides take turns.")]
Runs = Annotated[int, typer.Option("--runs", min=1, help="Timed runs in each, behind one to warm up.")]
PromptTokens = Annotated[int, typer.Option("--prompt-tokens", min=1, help="Tokens of the prompt that the text half is given.")]
Tokens = Annotated[int, typer.Option("-n", "--tokens", min=1, help="Tokens decoded behind it.")]
Plot = Annotated[Path | None, typer.Option("--plot", help="Draw the results in this file, .png or .svg.")]
From = Annotated[Path | None, typer.Option("--from", help="Show or draw what --json printed before, and measure nothing.")]


@with_options(*flags.TEXT, *(name for name in flags.MEDIA if name not in _OWN))
@model.with_model
def command(
    measure: Measures = None,
    size: Sizes = None,
    image: Images = None,
    media_backend: Backends = None,
    precision: Precisions = None,
    rounds: Rounds = 2,
    runs: Runs = 3,
    prompt_tokens: PromptTokens = 512,
    tokens: Tokens = 64,
    plot: Plot = None,
    given: From = None,
    force: console.Force = False,
    as_json: console.Json = False,
    *,
    named: model.Named,
    options: Options,
) -> None:
    """Measure how fast a model is on this machine, and compare backends and precisions.

    `encode` is the media half alone, `text` the text half alone (a prompt, then tokens behind it), `first-token` the time
    from a request with a picture to its first token: of a picture that is new, and of one whose rows are cached, each in
    a new conversation. With several backends and precisions each combination is a side. Sides take turns, each
    measurement in a process of its own whose peak memory is told; ratios are to the first side.
    """
    if plot:
        chart.check(plot)
        check_output(plot, force=force, inputs=[given] if given else [])
    if given:
        if named.any:
            raise InputError(f"--from {given} shows what was measured before, and {named.any} would be measured; leave one out")
        return show(results.read(given), plot, force=force, as_json=as_json)
    files = named.find(absolute=options.allow_absolute_paths, text_needed=False)
    # no picture is to be found on disk from an earlier time
    options = options.model_copy(update={"threads": options.threads or default_threads(), "encode_disk_mib": 0})
    sides, pictures = compared(files, media_backend, precision, size or [], image or [], options)
    wanted = jobs(measures_of(measure, files), files, options, Amounts(rounds, runs, prompt_tokens, tokens), sides, pictures)
    with progress() as tell:
        rows, failures = turns.run(wanted, tell)
    name, on = name_of(files, named.deployment or named.hf), machine(options)
    found = Results(name, on, versions(), rounds, runs, tuple(rows), tuple(failures))
    show(results.with_notes(found), plot, force=force, as_json=as_json)


def compared(
    files: Deployment,
    media_backend: str | None,
    precision: str | None,
    sizes: Sequence[str],
    images: Sequence[str],
    options: Options,
) -> tuple[list[Side], list[Picture]]:
    """The sides, and the pictures they are measured with; none without a media half. Raises InputError where one is asked for
    all the same, and as `sides_of` and `pictures_of` do."""
    if files.media_files:
        sides = sides_of(media_backend or options.media_backend, precision or options.precision, options)
        return sides, pictures_of(files, sizes, images, options)
    if asked := [*sizes, *images, *filter(None, (media_backend, precision))]:
        raise InputError(f"{asked[0]} is for the media half, and none is named; add --mmproj")
    return [], []


def pictures_of(files: Deployment, sizes: Sequence[str], images: Sequence[str], options: Options) -> list[Picture]:
    """The pictures named, or one of a size that the model takes as it is. Raises InputError for a size that the model
    would see at another, MediaError for a file that is no picture."""
    out: list[Picture] = []
    for width, height in dict.fromkeys(map(size_of, sizes)):
        used = seen_at(files, width, height, options.model_copy(update={"min_pixels": 1, "max_pixels": 4 * width * height}))
        if used != (width, height):
            raise InputError(
                f"--size {width}x{height}: the model would see it at {used[0]}×{used[1]}; give --size {used[0]}x{used[1]}"
            )
        out.append(Picture(f"{width}×{height}", (width, height), exact=True))
    for path in dict.fromkeys(images):
        load(Source("image", url=path), Access.local(options))
        out.append(Picture(Path(path).name, path=Path(path).absolute()))
    if not out:
        width, height = seen_at(files, SIDE, SIDE, options)
        out.append(Picture(f"{width}×{height}", (width, height), exact=files.onnx is None))
    return out


def seen_at(files: Deployment, width: int, height: int, options: Options) -> tuple[int, int]:
    """The size at which the family of an mmproj sees a picture; that given where none is known."""
    if files.mmproj is None or files.onnx:
        return width, height
    try:
        family = families.open_family(files.mmproj)
    except UnknownModel:
        return width, height
    import numpy as np

    blank = Media("image", np.zeros((height, width, 3), np.uint8), b"")
    return family.preprocess(blank, options.media)[0].used


def show(found: Results, plot: Path | None, *, force: bool, as_json: bool) -> None:
    """Print results, draw them where asked; with what failed the exit code is 2."""
    drawn = plot if found.rows or not found.failures else None
    if drawn:
        chart.draw(found, drawn, force=force)
    if as_json:
        console.print_json(found.to_json())
    else:
        report(found)
        if drawn:
            console.out.print(f"drawn in {drawn}", soft_wrap=True, markup=False)
    for failure in found.failures:
        console.err.print("[bold red]error:[/]", end=" ")
        console.err.print(f"{failure.measure}, {failure.side}: {failure.message}", soft_wrap=True, markup=False)
    if found.failures:
        raise typer.Exit(2)


def report(found: Results) -> None:
    """A table for each thing that was measured, under the model's name, and what it was measured on."""
    console.out.print(f"[bold]{escape(found.model)}[/]")
    widths = max((len(row.side) for row in found.rows), default=0)
    for title in found.titles:
        rows = found.like(title)
        console.out.print(f"\n{escape(title)}, {rows[0].tokens:,} tokens")
        drawn = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=0)
        drawn.add_column("side", min_width=max(widths, 10))
        for name, width in (("median", 14), ("quartiles", 17), ("speed", 6), ("memory", 7), ("load", 7)):
            drawn.add_column(name, justify="right", min_width=width)
        for row in rows:
            drawn.add_row(*cells(found, row))
        console.out.print(drawn)
    console.out.print()
    facts = ", ".join(f"{name} {value}" for name, value in found.versions.items())
    console.out.print(f"[dim]{escape(f'{found.conditions}; {facts}')}[/]", soft_wrap=True)
    for note in found.notes:
        console.out.print(f"[yellow]![/] {escape(note)}", soft_wrap=True)


def cells(found: Results, row: Row) -> tuple[str, ...]:
    """A row of a table; what is best told as a rate is."""
    rated = row.measure in chart.RATED
    first, third = row.quartiles
    median = chart.rate(row.tokens / row.median) if rated else chart.duration(row.median)
    spread = (
        f"{row.tokens / third:,.1f} – {row.tokens / first:,.1f}"
        if rated
        else f"{chart.duration(first)} – {chart.duration(third)}"
    )
    return row.side, median, spread, f"{found.speed(row):.2f}×", chart.amount(row.peak_bytes), chart.duration(row.load_s)


@contextmanager
def progress() -> Iterator[turns.Tell]:
    """A bar on standard error that says what is being measured."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"), TimeElapsedColumn())
    with Progress(*columns, console=console.err, transient=True, disable=not console.err.is_terminal) as bar:
        task = bar.add_task("", total=None)
        yield lambda what, done, total: bar.update(task, description=what, completed=done, total=total)


def name_of(files: Deployment, given: str | None) -> str:
    """What the model is called where results are shown."""
    paths = [*([files.text] if files.text else []), *files.media_files]
    return given or " + ".join(path.name for path in paths[:2])


def machine(options: Options) -> dict[str, str]:
    """What the times depend on."""
    return {
        "name": platform.node(),
        "system": platform.platform(),
        "processor": processor(),
        "cores": f"{psutil.cpu_count(logical=False)} physical, {psutil.cpu_count()} logical",
        "memory": f"{psutil.virtual_memory().total / 1e9:.1f} GB",
        "threads": str(options.threads),
    }


def versions() -> dict[str, str]:
    """Of all that computes."""
    found = {name: installed(name) for name in ("diptych", "llama-cpp-python", "onnxruntime", "openvino")}
    return {name: version for name, version in found.items() if version}
