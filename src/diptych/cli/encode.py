"""`diptych encode`: pictures to embeddings, in a file NumPy reads."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from diptych.cli import console, flags
from diptych.cli.flags import with_options
from diptych.encoder.half import open_half
from diptych.errors import OutputError
from diptych.families.base import MediaHalf, Rows
from diptych.files import check_output, whole_file
from diptych.media.load import load
from diptych.options import Options
from diptych.types import MediaChunk, Source


@with_options(*(name for name in flags.MEDIA if name != "warmup"), "threads")
def command(
    mmproj: Annotated[Path, typer.Option("--mmproj", help="The media half, an mmproj GGUF.")],
    image: Annotated[list[str], typer.Option("--image", help="A picture (path or URL); repeatable.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The .npz file to write.")],
    force: console.Force = False,
    as_json: console.Json = False,
    *,
    options: Options,
) -> None:
    """Turn pictures into embeddings, with positions and grid.

    For picture i the file holds embeddings_i (n_token, n_embd) float32, grid_i (t, h, w), positions_i (4 or 1, n_token)
    from 0 on, and pixels_i, what the graph was fed. A warm-up at the same shapes runs first and is not timed.
    """
    if output.suffix != ".npz":
        raise OutputError(f"{output} does not end in .npz, which is what is written; name it so")
    inputs = [mmproj, *(Path(p) for p in image if "://" not in p)]
    check_output(output, force=force, inputs=inputs)
    start = time.perf_counter()
    half = open_half(mmproj, options)
    try:
        loaded = time.perf_counter()
        pictures = [
            half.preprocess(load(Source("image", url=p), max_pixels=options.media_max_pixels), flags.media_settings(options))
            for p in image
        ]
        prepared = time.perf_counter()
        encode(half, pictures)  # warm-up
        warm = time.perf_counter()
        rows = encode(half, pictures)
        done = time.perf_counter()
        with whole_file(output, force=force, inputs=inputs) as part, part.open("wb") as file:
            np.savez(file, **arrays(half, pictures, rows))  # type: ignore[arg-type]
    finally:
        half.close()
    timings = {"load_ms": (loaded - start) * 1e3, "preprocess_ms": (prepared - loaded) * 1e3, "encode_ms": (done - warm) * 1e3}
    report(image, pictures, timings, output, as_json)


def encode(half: MediaHalf, pictures: list[list[MediaChunk]]) -> list[list[Rows]]:
    """The rows of each chunk of each picture; pieces that fit together go in one run."""
    chunks = [chunk for picture in pictures for chunk in picture]
    groups: dict[Any, list[int]] = {}
    pieces = [piece for chunk in chunks for piece in chunk.pieces]
    for i, piece in enumerate(pieces):
        groups.setdefault(half.batch_key(piece), []).append(i)
    encoded: dict[int, Rows] = {}
    for group in groups.values():
        encoded.update(zip(group, half.encode([pieces[i] for i in group]), strict=True))
    numbered = iter(range(len(pieces)))
    return [[half.join(chunk, [encoded[next(numbered)] for _ in chunk.pieces]) for chunk in picture] for picture in pictures]


def arrays(half: MediaHalf, pictures: list[list[MediaChunk]], rows: list[list[Rows]]) -> dict[str, np.ndarray[Any, Any]]:
    """Everything of each picture by its name in the file; chunks and pieces are numbered where there are several."""
    out: dict[str, np.ndarray[Any, Any]] = {}
    for i, (chunks, parts) in enumerate(zip(pictures, rows, strict=True)):
        out[f"embeddings_{i}"] = np.concatenate(parts)
        grids = np.array([(c.grid.t, c.grid.h, c.grid.w) for c in chunks], np.int64)
        out[f"grid_{i}"] = grids[0] if len(chunks) == 1 else grids
        planes, start = [], 0
        for chunk in chunks:
            placed, start = half.positions(chunk, start)
            planes.append(placed)
        out[f"positions_{i}"] = np.concatenate(planes, 1)
        pieces = [piece for chunk in chunks for piece in chunk.pieces]
        for j, piece in enumerate(pieces):
            out[f"pixels_{i}" if len(pieces) == 1 else f"pixels_{i}_{j}"] = next(iter(piece.inputs.values()))
    return out


def report(names: list[str], pictures: list[list[MediaChunk]], timings: dict[str, float], output: Path, as_json: bool) -> None:
    """A table for people, or one object for machines."""
    grids = [[(chunk.grid.t, chunk.grid.h, chunk.grid.w) for chunk in chunks] for chunks in pictures]
    tokens = [sum(chunk.n_tokens for chunk in chunks) for chunks in pictures]
    if as_json:
        images = [
            {"size_given": chunks[0].size, "size_used": chunks[0].used, "grid": grid[0] if len(grid) == 1 else grid, "tokens": n}
            for chunks, grid, n in zip(pictures, grids, tokens, strict=True)
        ]
        console.print_json({"images": images, "timings": timings})
        return
    rows = [
        (Path(name).name, times(*chunks[0].size), times(*chunks[0].used), " + ".join(times(*g) for g in grid), n)
        for name, chunks, grid, n in zip(names, pictures, grids, tokens, strict=True)
    ]
    console.table(None, ("image", "size given", "size used", "grid t×h×w", "tokens"), rows)
    console.out.print(" · ".join(f"{name[:-3]} {value:.0f} ms" for name, value in timings.items()) + f" → {output}")


def times(*sides: int) -> str:
    return "×".join(map(str, sides))
