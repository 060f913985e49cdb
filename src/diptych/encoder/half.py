"""A family in a session: the media half that Diptych writes itself."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diptych import families
from diptych.encoder.session import Session
from diptych.families.base import Family, MediaHalf, Part, Rows
from diptych.graph.graph import Graph, Place, Stored
from diptych.options import Options
from diptych.positions import Positions
from diptych.trace import OFF, Trace
from diptych.types import Media, MediaChunk, MediaKind, MediaSettings, Piece

PREPACK = 100_000_000  # weights; at 675 million it costs 8 s of loading and 0.2 GB, and runs are no faster for it


def open_half(mmproj: Path, options: Options, trace: Trace = OFF) -> MediaHalf:
    """The media half of an mmproj file. Raises FileError, UnknownModel or EngineError when it cannot be had."""
    half = FamilyHalf(families.open_family(mmproj), options, trace)
    if options.warmup:
        half.warm_up()
    return half


class FamilyHalf:
    """A family whose graph is loaded. Weights stay in the file they come from, mapped into memory."""

    backend = "onnx"

    def __init__(self, family: Family, options: Options, trace: Trace = OFF) -> None:
        self.family = family
        self.n_embd = family.n_embd
        self.n_pos = family.n_pos
        self.placeholders: Mapping[MediaKind, tuple[str, ...]] = family.placeholders
        self._max_patches = options.encode_max_patches
        self._sessions = {kind: load(family, kind, options, trace) for kind in family.piece_kinds}

    def preprocess(self, media: Media, settings: MediaSettings) -> list[MediaChunk]:
        """Media → chunks with their pieces."""
        return self.family.preprocess(media, settings)

    def layout(self, chunks: Sequence[MediaChunk]) -> list[Part]:
        """The text around and between the chunks of one media part."""
        return self.family.layout(chunks)

    def batch_key(self, piece: Piece) -> Hashable:
        """Pieces with equal keys go into one run."""
        return self.family.batch_key(piece)

    def encode(self, pieces: Sequence[Piece]) -> list[Rows]:
        """The rows of each piece, all of one batch key, in runs of at most `encode_max_patches`; a larger piece goes alone.

        What a piece gets does not depend on what else is in its run: to the bit up to PREPACK weights, beyond that to
        float32's rounding. Raises EngineError when a run fails.
        """
        return [rows for run in runs(pieces, self._max_patches) for rows in self._run(run)]

    def join(self, chunk: MediaChunk, arrays: Sequence[Rows]) -> Rows:
        """Arrays of a chunk's pieces → its (n_tokens, n_embd) rows."""
        return self.family.join(chunk, arrays)

    def positions(self, chunk: MediaChunk, start: int) -> tuple[Positions, int]:
        """(n_pos, n_tokens) planes of a chunk that starts at `start`, and the next position."""
        return self.family.positions(chunk, start)

    def causal(self, chunk: MediaChunk) -> bool:
        """Whether the rows of a chunk see only the rows before them."""
        return self.family.causal(chunk)

    def warm_up(self) -> None:
        """Encode the smallest picture, so that the weights are in memory when the first request comes."""
        blank = Media("image", np.zeros((1, 1, 3), np.uint8), b"")
        self.encode(self.preprocess(blank, MediaSettings())[0].pieces)

    def close(self) -> None:
        """Free the graph and its memory."""
        for session in self._sessions.values():
            session.close()

    def _run(self, pieces: Sequence[Piece]) -> list[Rows]:
        return self.family.split(pieces, self._sessions[pieces[0].kind].run(self.family.feed(pieces)))


def encoded(half: MediaHalf, chunks: Sequence[MediaChunk]) -> list[Rows]:
    """The rows of each chunk; pieces that fit together go in one run, whatever chunks they are of."""
    pieces = [piece for chunk in chunks for piece in chunk.pieces]
    groups: dict[Hashable, list[int]] = {}
    for i, piece in enumerate(pieces):
        groups.setdefault(half.batch_key(piece), []).append(i)
    made: dict[int, Rows] = {}
    for group in groups.values():
        made.update(zip(group, half.encode([pieces[i] for i in group]), strict=True))
    numbered = iter(range(len(pieces)))
    return [half.join(chunk, [made[next(numbered)] for _ in chunk.pieces]) for chunk in chunks]


def runs(pieces: Sequence[Piece], max_patches: int) -> Iterator[list[Piece]]:
    """Cut pieces, in order, into runs of at most `max_patches` patches; a larger piece goes alone."""
    run: list[Piece] = []
    total = 0
    for piece in pieces:
        if run and total + piece.n_patches > max_patches:
            yield run
            run, total = [], 0
        run.append(piece)
        total += piece.n_patches
    if run:
        yield run


def load(family: Family, kind: str, options: Options, trace: Trace = OFF) -> Session:
    """Write a family's graph for one kind of piece and open a session over it."""
    graph = Graph(family.weights, unpack=True)
    family.graph(graph, kind)
    folder = next((s.tensor.place[0].resolve().parent for s in graph.stored.values() if s.tensor and s.tensor.place), None)
    places: dict[str, Place] = {}
    arrays: dict[str, tuple[NDArray[Any], int]] = {}
    for name, stored in graph.stored.items():
        place = _place(stored, folder)
        places[name] = place or ("elsewhere", 0)
        if place is None:
            arrays[name] = stored.read(), stored.element_type
    n_weights = sum(math.prod(s.shape) for s in graph.stored.values())
    return Session(graph.serialize(places), options, folder=folder, arrays=arrays, prepack=n_weights <= PREPACK, trace=trace)


def _place(stored: Stored, folder: Path | None) -> Place | None:
    """Where a weight's bytes lie in `folder` as they are, if they do. Links are followed: ONNX Runtime refuses them."""
    if stored.tensor is None or stored.tensor.place is None:
        return None
    file, offset, _ = stored.tensor.place
    file = file.resolve()
    return (file.name, offset) if file.parent == folder else None
