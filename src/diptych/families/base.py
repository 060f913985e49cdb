"""What a model family declares, and the one protocol that prompt, encoder and engine see of any media half.

A family is one file with one subclass of `Family`: which files it claims, how media become pieces, how the encoder's
graph is written, how pieces become rows, what text stands around them and at which positions. It sees GGUF tensor
names only, whatever the weights came from.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from diptych.errors import FileError
from diptych.positions import Positions, linear
from diptych.types import Media, MediaChunk, MediaKind, MediaSettings, Piece, TextChunk

if TYPE_CHECKING:
    from diptych.graph.graph import Graph
    from diptych.weights import Weights

Rows = NDArray[np.float32]  # (n_tokens, n_embd)
Part = str | TextChunk | MediaChunk
Table = Mapping[str, str | tuple[str, ...] | None]
MOST = 2**31 - 1  # of what is counted in metadata


@dataclass(frozen=True)
class Hparams:
    """The metadata of an mmproj file, typed. Names are llama.cpp's; see `clip.vision.*` in its converter."""

    projector: str
    n_embd: int  # width of the encoder
    n_ff: int
    n_layer: int
    n_head: int
    n_embd_out: int  # width of the rows the text half takes
    eps: float
    image_size: int
    patch_size: int
    n_merge: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    min_pixels: int | None
    max_pixels: int | None

    @classmethod
    def read(cls, metadata: Mapping[str, Any], kind: MediaKind = "image") -> Self:
        """Take the fields of one modality from GGUF metadata. Raises FileError naming a key that is missing or out of range."""
        side = "audio" if kind == "audio" else "vision"

        def get(name: str, default: object = ..., least: int = 1) -> int:
            return whole(metadata, f"clip.{side}.{name}", default, least)

        def limit(name: str) -> int | None:
            return get(name) if f"clip.{side}.{name}" in metadata else None

        return cls(
            projector=projector_type(metadata, kind) or "",
            n_embd=get("embedding_length"),
            n_ff=get("feed_forward_length", least=0),  # llama.cpp's older converters wrote 0
            n_layer=get("block_count"),
            n_head=get("attention.head_count"),
            n_embd_out=get("projection_dim"),
            eps=numbers(metadata, f"clip.{side}.attention.layer_norm_epsilon", 1, above=0.0)[0],
            image_size=get("image_size", 0, least=0),
            patch_size=get("patch_size", 0, least=0),
            n_merge=get("spatial_merge_size", get("projector.scale_factor", 1)),
            mean=numbers(metadata, f"clip.{side}.image_mean", 3) if f"clip.{side}.image_mean" in metadata else (),
            std=numbers(metadata, f"clip.{side}.image_std", 3, above=0.0) if f"clip.{side}.image_std" in metadata else (),
            min_pixels=limit("image_min_pixels"),
            max_pixels=limit("image_max_pixels"),
        )


def whole(metadata: Mapping[str, Any], key: str, default: object = ..., least: int = 0) -> int:
    """A whole number of a GGUF's metadata. Raises FileError when it is none, under `least`, or missing without a default."""
    value = metadata.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not least <= value <= MOST:
        raise FileError(
            f"the mmproj has {_shown(value)} for {key}, and a whole number from {least} is expected; convert the model again"
        )
    return int(value)


def numbers(metadata: Mapping[str, Any], key: str, n: int, above: float = -math.inf) -> tuple[float, ...]:
    """`n` numbers of a GGUF's metadata, each over `above`. Raises FileError when they are not that."""
    value = metadata.get(key, ...)
    found = value if isinstance(value, list | tuple | np.ndarray) else [value]
    good = [float(v) for v in found if isinstance(v, int | float | np.number) and math.isfinite(v) and v > above]
    if len(found) != n or len(good) != n:
        over = f" over {above:g}" if math.isfinite(above) else ""
        raise FileError(
            f"the mmproj has {_shown(value)} for {key}, and {n} number{'s' * (n > 1)}{over} expected; convert the model again"
        )
    return tuple(good)


def _shown(value: object) -> str:
    return "nothing" if value is ... else f"{value!r:.40}"


def projector_type(metadata: Mapping[str, Any], kind: MediaKind = "image") -> str | None:
    """The projector of one modality: `clip.projector_type`, or the per-modality key of files with two."""
    side = "audio" if kind == "audio" else "vision"
    return metadata.get("clip.projector_type") or metadata.get(f"clip.{side}.projector_type")


class Family(ABC):
    """One model family. Subclass it in a file of `diptych/families`; nothing else changes."""

    projectors: ClassVar[Mapping[MediaKind, tuple[str, ...]]]
    architectures: ClassVar[tuple[str, ...]]  # names in config.json
    placeholders: ClassVar[Mapping[MediaKind, tuple[str, ...]]]  # what chat templates print for a media part, longest first
    tensors: ClassVar[Table]
    """Checkpoint name, with {i} for the layer and without a leading `model.`, → GGUF name.

    Several names: the tensor is cut evenly along its first axis; a Conv3d kernel (out, in, t, h, w) along time, into
    kernels of four axes, the most GGUF has. None: the tensor is left out, and with a name that ends in a dot all below it.
    """

    wide: ClassVar[tuple[str, ...]] = ()  # beginnings of names of linear layers that are never int8
    learned: ClassVar[tuple[str, ...]] = ()  # tensors that `join` reads and no graph does: newlines, separators
    n_pos: ClassVar[int] = 1  # planes of positions, 4 for M-RoPE

    def __init__(self, weights: Weights, kind: MediaKind = "image") -> None:
        self.weights = weights
        self.kind = kind
        self.hp = Hparams.read(weights.metadata, kind)

    @property
    def n_embd(self) -> int:
        """Width of the rows the encoder gives."""
        return self.hp.n_embd_out

    @property
    def piece_kinds(self) -> tuple[str, ...]:
        """The kinds of pieces, each with a graph of its own."""
        return (self.kind,)

    @classmethod
    def table(cls, config: Mapping[str, Any]) -> Table:
        """`tensors` for a checkpoint with this config.json, for families whose names depend on it."""
        return cls.tensors

    @staticmethod
    @abstractmethod
    def metadata(config: Mapping[str, Any], processor: Mapping[str, Any]) -> dict[str, Any]:
        """config.json and preprocessor_config.json → the `clip.*` metadata of the mmproj.

        A Python int is written as uint32, a float as float32.
        """

    @abstractmethod
    def preprocess(self, media: Media, settings: MediaSettings) -> list[MediaChunk]:
        """Media → chunks with the pieces the encoder takes, equal to the Hugging Face processor."""

    @abstractmethod
    def layout(self, chunks: Sequence[MediaChunk]) -> list[Part]:
        """The text around and between the chunks of one media part; holds exactly the chunks it was given."""

    @abstractmethod
    def graph(self, g: Graph, kind: str) -> None:
        """Write the encoder of one kind of piece."""

    def explain(self) -> dict[str, str]:
        """What the graph's inputs and outputs hold, for those who run it without Diptych. Goes into exported files."""
        return {}

    def feed(self, pieces: Sequence[Piece]) -> dict[str, NDArray[Any]]:
        """Pieces of one `batch_key` → the graph's inputs. By default each input is stacked."""
        return {name: np.stack([p.inputs[name] for p in pieces]) for name in pieces[0].inputs}

    def batch_key(self, piece: Piece) -> Hashable:
        """Pieces with equal keys go into one run. By default those of one kind and shape."""
        return (piece.kind, *(a.shape for a in piece.inputs.values()))

    def split(self, pieces: Sequence[Piece], output: NDArray[np.float32]) -> list[Rows]:
        """The graph's output → one array a piece. By default along the first axis."""
        return list(output)

    def join(self, chunk: MediaChunk, arrays: Sequence[Rows]) -> Rows:
        """Arrays of a chunk's pieces → its (n_tokens, n_embd) rows. By default one after the other."""
        return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)

    def positions(self, chunk: MediaChunk, start: int) -> tuple[Positions, int]:
        """(n_pos, n_tokens) planes of a chunk that starts at `start`, and the next position."""
        return linear(chunk, start)

    def causal(self, chunk: MediaChunk) -> bool:
        """Whether the rows of a chunk see only the rows before them."""
        return True


class MediaHalf(Protocol):
    """A media half that can run: a family with its graph in a session, or an encoder made by others."""

    backend: str  # "onnx" or "mtmd"
    arithmetic: Mapping[str, str]  # what it computes in, and by what: precision, runtime, providers
    made_of: Sequence[str | Path]  # what rows depend on beside a chunk's key: settings, and files by content; empty: not known
    n_embd: int
    n_pos: int
    max_patches: int  # of several pieces in a run
    placeholders: Mapping[MediaKind, tuple[str, ...]]

    @property
    def family(self) -> Family | None: ...  # whose preprocessing it has, where that is one of ours
    def preprocess(self, media: Media, settings: MediaSettings) -> list[MediaChunk]: ...
    def layout(self, chunks: Sequence[MediaChunk]) -> list[Part]: ...
    def batch_key(self, piece: Piece) -> Hashable: ...
    def encode(self, pieces: Sequence[Piece]) -> list[Rows]: ...
    def join(self, chunk: MediaChunk, arrays: Sequence[Rows]) -> Rows: ...
    def positions(self, chunk: MediaChunk, start: int) -> tuple[Positions, int]: ...
    def causal(self, chunk: MediaChunk) -> bool: ...
    def close(self) -> None: ...
