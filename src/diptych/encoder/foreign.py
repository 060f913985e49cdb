"""A media half over ONNX files: of our export, of SMT deployments, and made by others. It needs no mmproj's weights.

A picture goes to the graph of its size, of a ladder or of any size. A graph with several inputs is fed what its family
feeds, many pictures in a run; one with one input takes pictures one by one.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diptych.deploy.contract import Form
from diptych.deploy.deployment import OnnxHalf
from diptych.encoder.identity import of_onnx
from diptych.encoder.limits import runs
from diptych.encoder.load import PREPACK
from diptych.encoder.ort import OrtSession, check_providers, settled
from diptych.encoder.plan import Graph, plan
from diptych.encoder.rows import beside
from diptych.encoder.session import Session
from diptych.errors import EngineError
from diptych.families.base import Family, Part, Rows
from diptych.families.packed import Packed
from diptych.options import Options
from diptych.positions import Positions
from diptych.trace import OFF, Trace
from diptych.types import Media, MediaChunk, MediaKind, MediaSettings, Piece

log = logging.getLogger(__name__)

MAX_SESSIONS = 3  # kept open: each has the weights unpacked for itself
_RGB = 3


class ForeignHalf:
    """A media half over ONNX files. Sessions are opened when a picture first needs them, the last few are kept."""

    backend = "onnx"

    def __init__(
        self, half: OnnxHalf, options: Options, is_token: Callable[[str], bool] | None = None, trace: Trace = OFF
    ) -> None:
        """Raises FileError as `plan` does or when the only graph cannot be loaded, EngineError for options that cannot be met."""
        self._plan = plan(half, is_token)
        self._pictures = self._plan.pictures
        self.family = self._pictures if isinstance(self._pictures, Family) else None
        self._options = settled(options, half.providers)
        self._trace = trace
        self._sessions: OrderedDict[Graph, Session] = OrderedDict()
        self.n_embd = self._pictures.n_embd
        self.n_pos = self._pictures.n_pos
        self.placeholders: Mapping[MediaKind, tuple[str, ...]] = self._pictures.placeholders
        if options.precision not in ("auto", "f32") or options.media_runtime not in ("auto", "onnxruntime"):
            raise EngineError(
                f"{half.config} brings ONNX files, which ONNX Runtime runs as they are; leave --precision and --media-runtime out"
            )
        if options.encode_memory is not None:
            log.warning("what ONNX files made by others take is not known ahead; --encode-memory does not bound it")
        self.arithmetic: Mapping[str, str] = {
            "precision": "f32",
            "runtime": "onnxruntime",
            "providers": ",".join(self._options.providers),
        }
        self.made_of: Sequence[str | Path] = of_onnx(half, self._plan, self.arithmetic, self._options)
        self.max_patches = options.encode_max_patches
        check_providers(self._options)
        if len(self._plan.graphs) == 1:
            self._session(next(iter(self._plan.graphs.values())))

    def preprocess(self, media: Media, settings: MediaSettings) -> list[MediaChunk]:
        """Media → chunks with their pieces, at a size there is a graph for."""
        return self._pictures.preprocess(media, replace(settings, sizes=self._plan.sizes))

    def layout(self, chunks: Sequence[MediaChunk]) -> list[Part]:
        """The text around and between the chunks of one media part."""
        return self._pictures.layout(chunks)

    def batch_key(self, piece: Piece) -> Hashable:
        """Pieces with equal keys go in one run of one graph; a graph with one input takes each alone."""
        graph = self._graph(piece)
        own = self._pictures.batch_key(piece) if graph.form is None and isinstance(self._pictures, Family) else piece.key
        return graph.encoder, own

    def encode(self, pieces: Sequence[Piece]) -> list[Rows]:
        """The rows of each piece, all of one batch key.

        Raises EngineError when a run fails, FileError when a graph cannot be loaded.
        """
        graph = self._graph(pieces[0])
        if graph.form is None:
            return [rows for run in runs(pieces, self.max_patches) for rows in self._packed(graph, run)]
        return [self._single(graph, graph.form, piece) for piece in pieces]

    def join(self, chunk: MediaChunk, arrays: Sequence[Rows]) -> Rows:
        """Arrays of a chunk's pieces → its (n_tokens, n_embd) rows. Raises EngineError when the graph gave others."""
        rows = self._pictures.join(chunk, arrays)
        if rows.shape != (chunk.n_tokens, self.n_embd):
            raise EngineError(
                f"the media half gave rows {rows.shape} for a picture of {chunk.used[0]}x{chunk.used[1]}, and "
                f"{(chunk.n_tokens, self.n_embd)} were expected; the ONNX file is of another model than its configuration"
            )
        return rows

    def positions(self, chunk: MediaChunk, start: int) -> tuple[Positions, int]:
        """(n_pos, n_tokens) planes of a chunk that starts at `start`, and the next position."""
        return self._pictures.positions(chunk, start)

    def causal(self, chunk: MediaChunk) -> bool:
        """Whether the rows of a chunk see only the rows before them."""
        return self._pictures.causal(chunk)

    def warm_up(self) -> None:
        """Encode the smallest picture, so that the weights are in memory when the first request comes."""
        blank = Media("image", np.zeros((1, 1, 3), np.uint8), b"")
        self.encode(self.preprocess(blank, MediaSettings())[0].pieces)

    def close(self) -> None:
        """Free the graphs and their memory."""
        while self._sessions:
            self._sessions.popitem()[1].close()

    def _graph(self, piece: Piece) -> Graph:
        graphs = self._plan.graphs
        graph = graphs.get((piece.kind, piece.grid)) or graphs.get((piece.kind, None))
        if graph is None:
            raise EngineError(f"the media half has no graph for {piece.kind} of {'×'.join(map(str, piece.grid))} patches")
        return graph

    def _session(self, graph: Graph) -> Session:
        """The session of a graph; the one that was not used for longest makes room."""
        if graph not in self._sessions:
            while len(self._sessions) >= MAX_SESSIONS:
                self._sessions.popitem(last=False)[1].close()
            small = sum(graph.header.files.values()) <= 2 * PREPACK  # bytes, two a weight as most files have them
            self._sessions[graph] = OrtSession(graph.encoder.path, self._options, prepack=small, trace=self._trace)
        self._sessions.move_to_end(graph)
        return self._sessions[graph]

    def _packed(self, graph: Graph, pieces: Sequence[Piece]) -> list[Rows]:
        assert isinstance(self._pictures, Family)
        (rows,) = self._session(graph).outputs(self._pictures.feed(pieces), [graph.header.outputs[0].name])
        return self._pictures.split(pieces, rows)

    def _single(self, graph: Graph, form: Form, piece: Piece) -> Rows:
        """The rows of one piece by a graph of one input; its outputs stand beside each other where they are joined."""
        array = next(iter(piece.inputs.values()))
        if form.row is None and isinstance(self._pictures, Packed):
            hp = self._pictures.hp
            array = pixels(array, piece.grid, hp.patch_size, hp.n_merge, self._pictures.n_frames)
        lead = (1,) * (len(form.shape) - array.ndim)
        outputs = self._session(graph).outputs({form.input: array.reshape(*lead, *array.shape)}, form.outputs)
        rows = [np.asarray(output).reshape(-1, output.shape[-1]) for output in outputs]
        return beside(rows) if graph.joined else rows[0]


def open_foreign(
    half: OnnxHalf, options: Options, is_token: Callable[[str], bool] | None = None, trace: Trace = OFF
) -> ForeignHalf:
    """A media half of ONNX files. Raises FileError or UnknownModel when it cannot be had, EngineError for its options."""
    out = ForeignHalf(half, options, is_token, trace)
    if options.warmup:
        out.warm_up()
    return out


def pixels(rows: NDArray[np.float32], grid: Sequence[int], patch: int, merge: int, n_frames: int) -> NDArray[np.float32]:
    """Patch rows (n_patch, 3 · n_frames · patch²) of a (t, h, w) lattice → the picture (3, height, width) they were cut from."""
    _, h, w = grid
    frame = rows.reshape(h // merge, w // merge, merge, merge, _RGB, n_frames, patch, patch)[:, :, :, :, :, 0]
    return np.ascontiguousarray(frame.transpose(4, 0, 2, 5, 1, 3, 6).reshape(_RGB, h * patch, w * patch))
