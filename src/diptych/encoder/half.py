"""A family in a session: the media half that Diptych writes itself."""

from __future__ import annotations

import threading
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path

import numpy as np

from diptych import families
from diptych.encoder.identity import of_family
from diptych.encoder.limits import runs
from diptych.encoder.load import load
from diptych.encoder.mapped import trim
from diptych.encoder.memory import Budget, large
from diptych.encoder.precision import Choice, choose
from diptych.encoder.session import Session
from diptych.families.base import Family, MediaHalf, Part, Rows
from diptych.options import Options
from diptych.positions import Positions
from diptych.trace import OFF, Trace
from diptych.types import Media, MediaChunk, MediaKind, MediaSettings, Piece


def open_half(mmproj: Path, options: Options, trace: Trace = OFF) -> MediaHalf:
    """The media half of an mmproj file. Raises FileError, UnknownModel or EngineError when it cannot be had."""
    return FamilyHalf(families.open_family(mmproj), options, trace)


class FamilyHalf:
    """A family whose graph is loaded. Weights stay in the file they come from, mapped into memory."""

    backend = "onnx"

    def __init__(self, family: Family, options: Options, trace: Trace = OFF, choice: Choice | None = None) -> None:
        """It computes as chosen, by default by the options and what the machine has."""
        self.family = family
        self.n_embd = family.n_embd
        self.n_pos = family.n_pos
        self.placeholders: Mapping[MediaKind, tuple[str, ...]] = family.placeholders
        self.choice = choice or choose(options)
        providers = {"providers": ",".join(options.providers)} if self.choice.runtime == "onnxruntime" else {}
        self.arithmetic: Mapping[str, str] = {
            "precision": self.choice.precision, "runtime": self.choice.runtime, **providers,
        }  # fmt: skip
        self._options, self._trace = options, trace
        self._budget = Budget(family, self.choice, options.encode_memory)
        most = options.encode_max_patches
        self.max_patches = most if self._budget.max_patches is None else min(most, self._budget.max_patches)
        self.made_of: Sequence[str | Path] = of_family(family, {**self.arithmetic, "rest": self.choice.rest}, options)
        self._lock = threading.Lock()
        self._sessions: dict[tuple[str, bool], Session] = {}
        for kind in family.piece_kinds:
            self._session(kind, arena=True)
        trim()  # of a first start, which writes the weights
        if options.warmup or self.choice.runtime == "openvino":
            self.warm_up()  # OpenVINO rearranges the weights in the first run, which takes less memory with a small picture

    def preprocess(self, media: Media, settings: MediaSettings) -> list[MediaChunk]:
        """Media → chunks with their pieces. Raises MediaTooLarge for what `encode_memory` has no room for."""
        chunks = self.family.preprocess(media, settings)
        self._budget.check(piece for chunk in chunks for piece in chunk.pieces)
        return chunks

    def layout(self, chunks: Sequence[MediaChunk]) -> list[Part]:
        """The text around and between the chunks of one media part."""
        return self.family.layout(chunks)

    def batch_key(self, piece: Piece) -> Hashable:
        """Pieces with equal keys go into one run; a portable graph takes those of one lattice."""
        key = self.family.batch_key(piece)
        return (key, piece.grid) if self.choice.runtime == "openvino" else key

    def encode(self, pieces: Sequence[Piece]) -> list[Rows]:
        """The rows of each piece, all of one batch key, in runs of at most `encode_max_patches`, fewer where
        `encode_memory` asks for it; a larger piece goes alone.

        What a piece gets does not depend on what else is in its run: to the bit by the kernels and up to `load.PREPACK`
        weights, beyond that to float32's rounding. In int8 by ONNX Runtime alone, which has one scale for all of a run, it is
        within the precision's gate.
        Raises EngineError when a run fails.
        """
        return [rows for run in runs(pieces, self.max_patches) for rows in self._run(run)]

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
        self.encode(self.family.preprocess(blank, MediaSettings())[0].pieces)

    def close(self) -> None:
        """Free the graph and its memory."""
        for session in self._sessions.values():
            session.close()

    def _run(self, pieces: Sequence[Piece]) -> list[Rows]:
        with self._lock:  # a session may not be closed under a run
            session = self._session(pieces[0].kind, arena=not large(self.family, self.choice, pieces))
            return self.family.split(pieces, session.run(self.family.feed(pieces)))

    def _session(self, kind: str, *, arena: bool) -> Session:
        """The session of a kind, opened anew where the open one has an arena and none is wanted, or the other way round."""
        if (found := self._sessions.get((kind, arena))) is None:
            if other := self._sessions.pop((kind, not arena), None):
                other.close()  # before, for what it keeps
                trim()
            found = self._sessions[kind, arena] = load(self.family, kind, self._options, self.choice, self._trace, arena=arena)
        return found


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
