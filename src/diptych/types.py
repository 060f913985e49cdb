"""The nouns: what travels between the parts, from a request to its output. All frozen."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

MediaKind = Literal["image", "audio", "video"]
FinishReason = Literal["stop", "length", "abort", "error"]


@dataclass(frozen=True)
class Source:
    """A media part as the client sent it: bytes, or a path or URL (`data:` included), not yet fetched or decoded."""

    kind: MediaKind
    data: bytes | None = field(default=None, repr=False)
    url: str | None = None
    id: str | None = None


@dataclass(frozen=True)
class Message:
    """A turn of the chat; its parts are text and media in the order they were said."""

    role: str
    parts: tuple[str | Source, ...]


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. Names, meanings and defaults are llama.cpp's; temperature 0 is greedy."""

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    grammar: str | None = None  # GBNF, start symbol `root`
    json_schema: str | None = None  # a JSON schema as JSON text


@dataclass(frozen=True)
class MediaSettings:
    """What one request or deployment asks of preprocessing; None leaves it to the model.

    `sizes` are the (width, height) that an encoder of fixed sizes takes; without any it takes what the model asks for.
    """

    min_pixels: int | None = None
    max_pixels: int | None = None
    sizes: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Request:
    """One thing to answer. `max_tokens` None means until the context is full."""

    messages: tuple[Message, ...]
    sampling: Sampling = Sampling()
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    media: MediaSettings = MediaSettings()


@dataclass(frozen=True, eq=False)
class Media:
    """Input that was fetched. An image's data is (height, width, 3) uint8 RGB, decoded; that of audio the (n,) bytes of
    its file. `key` is a SHA-256 of the content."""

    kind: MediaKind
    data: NDArray[np.uint8]
    key: bytes = field(repr=False)


@dataclass(frozen=True)
class Grid:
    """The t × h × w lattice of a media chunk after the projector."""

    t: int
    h: int
    w: int


@dataclass(frozen=True, eq=False)
class Piece:
    """What the encoder takes in one go: a picture, a tile, an audio window. `grid` is its lattice of patches before any
    merging; `key` is that of content and settings."""

    kind: str
    inputs: Mapping[str, NDArray[np.float32]]
    grid: tuple[int, ...]
    key: bytes = field(repr=False)

    @property
    def n_patches(self) -> int:
        """How much of a run's patch budget it takes."""
        return math.prod(self.grid)


@dataclass(frozen=True)
class TextChunk:
    """Tokens that stand together."""

    tokens: tuple[int, ...]

    @property
    def n_tokens(self) -> int:
        return len(self.tokens)

    @cached_property
    def ids(self) -> NDArray[np.int64]:
        """(n_tokens,) the tokens."""
        return np.array(self.tokens, np.int64)


@dataclass(frozen=True, eq=False)
class MediaChunk:
    """The rows that one picture, clip or frame pair puts into the prompt in one run.

    `size` is (width, height) as given and `used` as the model sees it, in pixels. `ordinal` numbers the media part of the
    prompt that it is of, from 0: set when the prompt is built, and no part of the key.
    """

    kind: MediaKind
    n_tokens: int
    grid: Grid
    key: bytes = field(repr=False)
    pieces: tuple[Piece, ...] = field(repr=False)
    size: tuple[int, int] = (0, 0)
    used: tuple[int, int] = (0, 0)
    ordinal: int = 0

    @cached_property
    def ids(self) -> NDArray[np.int64]:
        """(n_tokens,) stand-ins: negative 63-bit integers made from the key, one a row, so a prompt is one array."""
        first = int.from_bytes(self.key[:8], "big") >> 1
        return -1 - ((first + np.arange(self.n_tokens, dtype=np.uint64)) & np.uint64(2**63 - 1)).astype(np.int64)


Chunk = TextChunk | MediaChunk


@dataclass(frozen=True, eq=False)
class Segment:
    """What one sequence puts into one batch: tokens (n,) or embedding rows (n, n_embd), at positions (n_pos, n).

    `wants_logits` asks for the logits of its last row.
    """

    seq_id: int
    positions: NDArray[np.int32]
    tokens: NDArray[np.int32] | None = None
    embeddings: NDArray[np.float32] | None = None
    wants_logits: bool = False

    @property
    def n_rows(self) -> int:
        return int(self.positions.shape[1])


@dataclass(frozen=True, eq=False)
class Batch:
    """One decode call: segments that all carry tokens or all carry embeddings. Not causal: one media chunk, alone."""

    segments: tuple[Segment, ...]
    causal: bool = True


@dataclass(frozen=True)
class Usage:
    """Tokens of a request. `prompt_tokens` counts the whole prompt, `media_tokens` those of it that are media rows."""

    prompt_tokens: int = 0
    media_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True)
class Timings:
    """Where the time of a request went, in milliseconds; `tokens_per_second` is of decoding alone."""

    preprocess_ms: float = 0.0
    encode_ms: float = 0.0
    prefill_ms: float = 0.0
    decode_ms: float = 0.0
    time_to_first_token_ms: float = 0.0
    tokens_per_second: float = 0.0


@dataclass(frozen=True)
class Output:
    """A piece of the answer. The last one of a request has a finish reason, and the usage and timings of the whole."""

    text: str
    tokens: tuple[int, ...] = ()
    finish_reason: FinishReason | None = None
    usage: Usage = Usage()
    timings: Timings = Timings()
