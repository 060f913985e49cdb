"""libmtmd as a media half: the `mtmd` backend, for every mmproj that llama.cpp knows, pictures and sound."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from diptych import families
from diptych.errors import MismatchedHalves, UnknownModel, UnsupportedMedia
from diptych.families.base import Part, Rows
from diptych.llama import mmproj
from diptych.llama.libmtmd import Limits, Mtmd, Prepared, WrongWidth
from diptych.llama.model import TextModel
from diptych.llama.stand_in import stand_in
from diptych.media import budget
from diptych.options import Options
from diptych.positions import Positions, linear
from diptych.types import Grid, Media, MediaChunk, MediaKind, MediaSettings, Piece, TextChunk

log = logging.getLogger(__name__)

# Its fourth plane counts the pictures of one call, and each is prepared in its own here.
_NUMBERED = "hunyuanvl"


@dataclass(frozen=True, eq=False)
class MtmdPiece(Piece):
    """A media chunk of libmtmd's: the `at`-th of all that it made of one media part."""

    prepared: Prepared
    at: int


class MtmdHalf:
    """An mmproj in libmtmd. `n_embd` is the width of the rows the text half takes, those of deepstack included."""

    backend = "mtmd"
    family = None

    def __init__(self, path: Path, options: Options, text: TextModel | None = None) -> None:
        """Load an mmproj file for a text half; where there is none, for a stand-in that is made here.

        Raises FileError when it is damaged or no mmproj, UnknownModel when libmtmd cannot run it, MismatchedHalves when
        its rows are of another width than the text half takes, InputError when the limits of the options exclude each other.
        """
        self._options, self._mmproj = options, mmproj.read(path)
        limits = self._limits()
        self.arithmetic: Mapping[str, str] = {"precision": "the file's", "runtime": "libmtmd"}
        told = (version("llama_cpp_python"), limits, options.flash_attn, options.n_gpu_layers != 0)
        self.made_of: Sequence[str | Path] = (repr(told), path)
        self._stand_in = None
        if text is None:
            text = self._stand_in = stand_in(self._mmproj.n_embd, self._mmproj.n_pos)
        try:
            self._mtmd = Mtmd(path, text, options, limits)
        except WrongWidth as error:
            if self._stand_in is None:
                raise
            self._stand_in.close()
            text = self._stand_in = stand_in(error.n_embd, text.n_pos)
            self._mtmd = Mtmd(path, text, options, limits)
        self.n_embd, self.n_pos = text.n_embd_inp, text.n_pos
        if options.encode_memory is not None:
            log.warning("what libmtmd takes is not known ahead; --encode-memory does not bound it")
        self.max_patches = options.encode_max_patches
        self.placeholders: Mapping[MediaKind, tuple[str, ...]] = {
            kind: _placeholders(kind, self._mmproj.projectors[kind]) for kind in self._mtmd.kinds
        }

    def preprocess(self, media: Media, settings: MediaSettings) -> list[MediaChunk]:
        """Media → chunks, a piece each. Raises MediaError and its kinds for what libmtmd cannot take, MismatchedHalves where
        the text half lacks a token that it sets around them."""
        if settings != self._options.media:
            log.warning("libmtmd takes limits of size when it is loaded; those of the request are not honoured")
        if media.kind == "video":
            raise UnsupportedMedia("libmtmd takes no video here; give its pictures one by one")
        prepared = self._mtmd.picture(media.data) if media.kind == "image" else self._mtmd.sound(media.data)
        if any(token < 0 for i in range(len(prepared)) for token in prepared.tokens(i)):
            raise MismatchedHalves(
                f"the text half has no token for what the projector {self._mmproj.projector!r} sets around media; "
                "load the one that the mmproj was made with"
            )
        return [self._chunk(media, prepared, i) for i in range(len(prepared)) if prepared.kind(i)]

    def layout(self, chunks: Sequence[MediaChunk]) -> list[Part]:
        """The tokens around and between the chunks of one media part."""
        parts: list[Part] = []
        given = {_piece(chunk).at: chunk for chunk in chunks}
        prepared = _piece(chunks[0]).prepared
        for i in range(len(prepared)):
            parts.append(given[i] if prepared.kind(i) else TextChunk(prepared.tokens(i)))
        return parts

    def batch_key(self, piece: Piece) -> Hashable:
        """Each piece goes alone."""
        return piece.key

    def encode(self, pieces: Sequence[Piece]) -> list[Rows]:
        """The rows of each piece. Raises EngineError when that fails."""
        return [self._mtmd.encode(p.prepared, p.at) for p in map(_own, pieces)]

    def join(self, chunk: MediaChunk, arrays: Sequence[Rows]) -> Rows:
        """The rows of a chunk's one piece."""
        return arrays[0]

    def positions(self, chunk: MediaChunk, start: int) -> tuple[Positions, int]:
        """(n_pos, n_tokens) planes of a chunk that starts at `start`, and the next position."""
        if self.n_pos == 1:
            return linear(chunk, start)
        planes, end = _piece(chunk).prepared.positions(_piece(chunk).at, start)
        if self._mmproj.projector == _NUMBERED:
            planes[3, 1:-1] = chunk.ordinal
        return planes, end

    def causal(self, chunk: MediaChunk) -> bool:
        """Whether the rows of a chunk see only the rows before them."""
        return self._mtmd.causal(_piece(chunk).prepared, _piece(chunk).at)

    def close(self) -> None:
        """Free the mmproj, and the stand-in where there is one; the text half that was given stays."""
        self._mtmd.close()
        if self._stand_in:
            self._stand_in.close()

    def _chunk(self, media: Media, prepared: Prepared, i: int) -> MediaChunk:
        key = hashlib.sha256(b"mtmd %d " % i + media.key).digest()
        n, (w, h) = prepared.n_tokens(i), prepared.grid(i)
        piece = MtmdPiece(media.kind, {}, (n,), key, prepared, i)
        if media.kind == "audio":
            return MediaChunk("audio", n, Grid(n, 1, 1), key, (piece,))
        size, side = (media.data.shape[1], media.data.shape[0]), self._mmproj.side
        used = (w * side, h * side) if self.n_pos == 4 and self._mmproj.limited else (0, 0)
        return MediaChunk("image", n, Grid(1, h, w), key, (piece,), size, used)

    def _limits(self) -> Limits:
        """The options' limits as rows. A cell of a picture is a row."""
        area = self._mmproj.side**2
        least, most = budget.pixels(self._options.media, area)
        if (least or most) and not self._mmproj.limited:
            log.warning("libmtmd has no limits of size for the projector %s; none is kept", self._mmproj.projector)
        return Limits(math.ceil(least / area) if least else None, max(1, most // area) if most else None)


def _placeholders(kind: MediaKind, projector: str) -> tuple[str, ...]:
    """What chat templates print for a family that is known. For others none: media stand where the message has them, as in
    llama.cpp."""
    try:
        return families.for_projector(projector, kind).placeholders.get(kind, ())
    except UnknownModel:
        return ()


def _piece(chunk: MediaChunk) -> MtmdPiece:
    return _own(chunk.pieces[0])


def _own(piece: Piece) -> MtmdPiece:
    assert isinstance(piece, MtmdPiece), "the chunk is of another media half"
    return piece
