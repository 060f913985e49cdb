"""What commands share in talking to people and machines: consoles, progress, tables, JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from diptych.options import Options

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite files that exist.")]

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


def print_json(value: dict[str, Any]) -> None:
    """Print one JSON object on standard output, on one line."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False) + "\n")


def tell_backend(options: Options, backend: str | None) -> None:
    """Say on standard error which media backend was taken, where the choice was left to us and there was one to make."""
    if options.media_backend == "auto" and backend:
        err.print(f"[dim]media backend: {backend}[/]")


def table(title: str | None, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table; columns whose cells are all numbers stand to the right."""
    drawn = Table(title=title, title_justify="left", title_style="bold", header_style="bold")
    for i, name in enumerate(columns):
        numbers = all(isinstance(row[i], int | float) for row in rows)
        drawn.add_column(name, justify="right" if numbers else "left", overflow="fold")
    for row in rows:
        drawn.add_row(*(f"{cell:.1f}" if isinstance(cell, float) else str(cell) for cell in row))
    out.print(drawn)


def facts(title: str, found: Mapping[str, str]) -> None:
    """Print facts under a title, their names in a column."""
    drawn = Table.grid(padding=(0, 2))
    for name, value in found.items():
        drawn.add_row(f"  [dim]{name}[/]", value)
    out.print(f"[bold]{title}[/]")
    out.print(drawn)


@contextmanager
def bytes_progress(label: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on standard error for work counted in bytes; gives the function (done, total) that moves it."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as progress:
        task = progress.add_task(label, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
