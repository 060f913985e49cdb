"""Draw results: a pair of panels for each measure, time or rate on the left and memory on the right, a bar for each side."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from diptych.bench.results import Results, Row
from diptych.errors import InputError, MissingExtra
from diptych.files import whole_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMATS = (".png", ".svg")
# Okabe and Ito's colours, told apart by those who see few; black and yellow, which are hard to read beside text, left out
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
_INK, _FAINT = "#222222", "#777777"
_BAR, _GAP, _HEAD = 0.34, 0.5, 1.0  # inches: a bar with its space, what stands between panels, and above all
_WIDTH = 10.0  # inches
_LEGEND = ", lines from first to third quartile · peak memory of the process"
RATED = ("prefill", "decode")  # told as tokens in a second


def check(path: Path) -> None:
    """Raise InputError for a file of another format, MissingExtra where matplotlib is not installed."""
    if path.suffix.lower() not in FORMATS:
        raise InputError(f"--plot {path}: the name must end in .png or .svg, the formats that are written")
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MissingExtra("--plot draws with matplotlib, which is not installed: pip install 'diptych[plot]'") from error


def draw(results: Results, path: Path, *, force: bool = False) -> None:
    """Write the picture of results. Raises InputError where there is nothing to draw, OutputError, and as `check`."""
    check(path)
    if not results.rows:
        raise InputError("there is nothing to draw: no row was measured")
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    groups = [results.like(title) for title in results.titles]
    heights = [_BAR * len(rows) + 0.1 for rows in groups]
    height = sum(heights) + _GAP * len(groups) + _HEAD
    with rc_context(
        {"font.family": "DejaVu Sans", "font.size": 9.5, "text.color": _INK, "svg.hashsalt": "diptych", "text.parse_math": False}
    ):
        figure = Figure(figsize=(_WIDTH, height))
        left = 0.14 + 0.068 * max(len(row.side) for row in results.rows)  # inches that labels take
        grid = figure.add_gridspec(
            len(groups), 2, width_ratios=(3, 2), height_ratios=heights, wspace=0.08, hspace=_GAP / (sum(heights) / len(heights)),
            left=left / _WIDTH + 0.02, right=0.98, top=1 - _HEAD / height, bottom=0.16 / height,
        )  # fmt: skip
        figure.text(0.02, 1 - 0.28 / height, f"diptych bench · {results.model}", fontsize=13, fontweight="bold", va="center")
        figure.text(0.02, 1 - 0.52 / height, f"{results.conditions}{_LEGEND}", fontsize=8.5, color=_FAINT, va="center")
        colours = _colours(results)
        for i, rows in enumerate(groups):
            tint = [colours[row.side] for row in rows]
            _time(figure.add_subplot(grid[i, 0]), results, rows, tint)
            _memory(figure.add_subplot(grid[i, 1]), results, rows, tint)
        with warnings.catch_warnings(), whole_file(path, force=force) as part:
            warnings.simplefilter("ignore")  # a letter of a file's name that the font lacks
            figure.savefig(part, format=path.suffix[1:].lower(), dpi=160, facecolor="white")


def _colours(results: Results) -> dict[str, str]:
    """One for each side, the same in all panels."""
    sides = list(dict.fromkeys(row.side for row in results.rows))
    return {side: _COLOURS[i % len(_COLOURS)] for i, side in enumerate(sides)}


def _time(axes: Axes, results: Results, rows: Sequence[Row], tint: Sequence[str]) -> None:
    rated = rows[0].measure in RATED
    values = [row.tokens / row.median if rated else row.median for row in rows]
    spread = [[row.tokens / q for q in reversed(row.quartiles)] if rated else list(row.quartiles) for row in rows]
    labels = [rate(value) if rated else duration(value) for value in values]
    ratios = [results.speed(row) for row in rows]
    _bars(axes, values, _compared(labels, ratios, " as fast"), tint, [max(line) for line in spread])
    for y, line in enumerate(spread):
        axes.plot(line, [y, y], color=_INK, linewidth=1.2, solid_capstyle="butt")
    axes.set_yticks(range(len(rows)), [row.side for row in rows])
    better = "more is better" if rated else "less is better"
    _title(axes, f"{rows[0].title}, {rows[0].tokens:,} tokens", better)


def _memory(axes: Axes, results: Results, rows: Sequence[Row], tint: Sequence[str]) -> None:
    values = [row.peak_bytes for row in rows]
    _bars(axes, values, _compared([amount(v) for v in values], [results.memory(row) for row in rows]), tint, values)
    axes.set_yticks([])
    _title(axes, "memory", "less is better")


def _bars(axes: Axes, values: Sequence[float], labels: Sequence[str], tint: Sequence[str], ends: Sequence[float]) -> None:
    """Bars from above to below, each with its label behind where it ends."""
    axes.barh(range(len(values)), values, height=0.66, color=tint)
    for y, (end, label) in enumerate(zip(ends, labels, strict=True)):
        axes.annotate(label, (end, y), xytext=(7, 0), textcoords="offset points", va="center", fontsize=9.5)
    axes.set_xlim(0, max(ends) * 1.7)  # room for the labels
    axes.set_ylim(len(values) - 0.5, -0.5)
    axes.set_xticks([])
    axes.tick_params(axis="y", length=0)
    for side in ("top", "right", "bottom"):
        axes.spines[side].set_visible(False)
    axes.spines["left"].set_color("#bbbbbb")


def _title(axes: Axes, what: str, better: str) -> None:
    axes.set_title(what, loc="left", fontsize=10.5, fontweight="bold", pad=5)
    axes.set_title(better, loc="right", fontsize=8.5, color=_FAINT, pad=5)


def _compared(labels: Sequence[str], ratios: Sequence[float], what: str = "") -> list[str]:
    """The labels, all but the first with the ratio to it."""
    return [f"{label} · {ratio:.2f}×{what}" if i else label for i, (label, ratio) in enumerate(zip(labels, ratios, strict=True))]


def duration(seconds: float) -> str:
    """Seconds, or milliseconds where they are few, with three digits that count."""
    value, unit = (seconds, "s") if seconds >= 1 else (seconds * 1e3, "ms")
    return f"{value:,.{2 if value < 10 else 1 if value < 100 else 0}f} {unit}"


def rate(tokens_per_second: float, unit: str = " tokens/s") -> str:
    """Tokens in a second, with one decimal where they are few."""
    return f"{tokens_per_second:,.{0 if tokens_per_second >= 100 else 1}f}{unit}"


def amount(size: int) -> str:
    """Bytes as MB, or GB where they are many."""
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"
