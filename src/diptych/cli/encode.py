"""`diptych encode`: pictures and recordings to embeddings, in a file NumPy reads."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from diptych.backend import check_kinds, open_half
from diptych.cli import console, flags, model
from diptych.cli.flags import with_options
from diptych.encoder.half import encoded
from diptych.errors import InputError, OutputError
from diptych.families.base import MediaHalf, Rows
from diptych.files import check_output, whole_file
from diptych.media.access import Access
from diptych.media.load import load
from diptych.options import Options
from diptych.types import MediaChunk, Source


@with_options(*(name for name in flags.MEDIA if name != "warmup"), "threads")
def command(
    output: Annotated[Path, typer.Option("-o", "--output", help="The .npz file to write.")],
    deployment: model.Name = None,
    mmproj: model.Mmproj = None,
    smt_config_dir: model.Smt = None,
    hf: model.Hf = None,
    hf_revision: model.Revision = None,
    offline: model.Offline = False,
    image: Annotated[list[str] | None, typer.Option("--image", help="A picture (path or URL); repeatable.")] = None,
    audio: Annotated[
        list[str] | None, typer.Option("--audio", help="A recording (WAV, MP3 or FLAC; path or URL); repeatable.")
    ] = None,
    force: console.Force = False,
    as_json: console.Json = False,
    *,
    options: Options,
) -> None:
    """Turn pictures and recordings into embeddings, with positions and grid.

    For picture i the file holds embeddings_i (n_token, n_embd) float32, grid_i (t, h, w), positions_i (4 or 1, n_token)
    from 0 on, and pixels_i, what the graph was fed, where the backend tells; recordings are numbered behind the
    pictures. A warm-up at the same shapes runs first and is not timed.
    """
    if output.suffix != ".npz":
        raise OutputError(f"{output} does not end in .npz, which is what is written; name it so")
    sources = [*(Source("image", url=p) for p in image or ()), *(Source("audio", url=p) for p in audio or ())]
    if not sources:
        raise InputError("there is nothing to encode; give --image FILE or --audio FILE")
    files = model.chosen(
        deployment, mmproj=mmproj, smt=smt_config_dir, hf=hf, revision=hf_revision, offline=offline,
        absolute=options.allow_absolute_paths, text_needed=False,
    )  # fmt: skip
    inputs = [*files.media_files, *(Path(s.url) for s in sources if s.url and "://" not in s.url)]
    check_output(output, force=force, inputs=inputs)
    start = time.perf_counter()
    half = open_half(files, options)
    try:
        loaded = time.perf_counter()
        check_kinds((s.kind for s in sources), half)
        settings = options.media
        media = [half.preprocess(load(s, Access.local(options)), settings) for s in sources]
        prepared = time.perf_counter()
        encode(half, media)  # warm-up
        warm = time.perf_counter()
        rows = encode(half, media)
        done = time.perf_counter()
        with whole_file(output, force=force, inputs=inputs) as part, part.open("wb") as file:
            np.savez(file, **arrays(half, media, rows))  # type: ignore[arg-type]
    finally:
        half.close()
    timings = {"load_ms": (loaded - start) * 1e3, "preprocess_ms": (prepared - loaded) * 1e3, "encode_ms": (done - warm) * 1e3}
    console.tell_backend(options, half.backend)
    if as_json:
        console.print_json({"media_backend": half.backend, **told(media), "timings": timings})
    else:
        report(sources, media, timings, output)


def encode(half: MediaHalf, media: list[list[MediaChunk]]) -> list[list[Rows]]:
    """The rows of each chunk of each picture or recording."""
    rows = iter(encoded(half, [chunk for chunks in media for chunk in chunks]))
    return [[next(rows) for _ in chunks] for chunks in media]


def arrays(half: MediaHalf, media: list[list[MediaChunk]], rows: list[list[Rows]]) -> dict[str, np.ndarray[Any, Any]]:
    """Everything of each picture or recording by its name in the file; chunks and pieces are numbered where there are several."""
    out: dict[str, np.ndarray[Any, Any]] = {}
    for i, (chunks, parts) in enumerate(zip(media, rows, strict=True)):
        out[f"embeddings_{i}"] = np.concatenate(parts)
        grids = np.array([(c.grid.t, c.grid.h, c.grid.w) for c in chunks], np.int64)
        out[f"grid_{i}"] = grids[0] if len(chunks) == 1 else grids
        planes, start = [], 0
        for chunk in chunks:
            placed, start = half.positions(chunk, start)
            planes.append(placed)
        out[f"positions_{i}"] = np.concatenate(planes, 1)
        pieces = [piece for chunk in chunks for piece in chunk.pieces if piece.inputs]
        for j, piece in enumerate(pieces):
            out[f"pixels_{i}" if len(pieces) == 1 else f"pixels_{i}_{j}"] = next(iter(piece.inputs.values()))
    return out


def told(media: list[list[MediaChunk]]) -> dict[str, object]:
    """What is known of each picture and recording, for machines; a size that the backend does not tell is null."""
    images = [
        {"size_given": chunks[0].size, "size_used": chunks[0].used if any(chunks[0].used) else None, **counted(chunks)}
        for chunks in media
        if chunks[0].kind == "image"
    ]
    return {"images": images, "audio": [counted(chunks) for chunks in media if chunks[0].kind == "audio"]}


def counted(chunks: list[MediaChunk]) -> dict[str, object]:
    """The grid of one chunk or of each, and the rows of all."""
    grids = [(chunk.grid.t, chunk.grid.h, chunk.grid.w) for chunk in chunks]
    return {"grid": grids[0] if len(grids) == 1 else grids, "tokens": sum(chunk.n_tokens for chunk in chunks)}


def report(sources: list[Source], media: list[list[MediaChunk]], timings: dict[str, float], output: Path) -> None:
    """A table for people."""
    rows = [
        (
            Path(source.url or "").name,
            times(*chunks[0].size),
            times(*chunks[0].used),
            " + ".join(times(chunk.grid.t, chunk.grid.h, chunk.grid.w) for chunk in chunks),
            sum(chunk.n_tokens for chunk in chunks),
        )
        for source, chunks in zip(sources, media, strict=True)
    ]
    console.table(None, ("file", "size given", "size used", "grid t×h×w", "tokens"), rows)
    console.out.print(" · ".join(f"{name[:-3]} {value:.0f} ms" for name, value in timings.items()) + f" → {output}")


def times(*sides: int) -> str:
    return "×".join(map(str, sides)) if any(sides) else "-"
