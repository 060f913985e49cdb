"""The nouns: what travels between the parts, from a request to its output. All frozen."""

from __future__ import annotations

import math
from collections.abc import Mapping
from collections.abc import Sequence as List
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

MediaKind = Literal["image", "audio", "video"]
MediaOrigin = Literal["encoder", "cache", "disk", "kv", "client"]
FinishReason = Literal["stop", "length", "abort", "error"]
Json = None | bool | int | float | str | List["Json"] | Mapping[str, "Json"]


@dataclass(frozen=True)
class Source:
    """A media part as the client sent it: bytes, or a path or URL (`data:` included), not yet fetched or decoded.

    `id` is the client's own name for it: with it alone an item is meant that was sent before (see `Request.scope`).
    `chunks` are those of a part that the client has encoded already; each has its rows. `encoded` is such a part in JSON,
    not yet checked.
    """

    kind: MediaKind
    data: bytes | None = field(default=None, repr=False)
    url: str | None = None
    id: str | None = None
    chunks: tuple[MediaChunk, ...] = field(default=(), repr=False)
    encoded: Json = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class ToolCall:
    """A function that the model asks to be called; `arguments` are JSON text."""

    name: str
    arguments: str
    id: str = ""


@dataclass(frozen=True)
class Message:
    """A turn of the chat; its parts are text and media in the order they were said.

    An assistant's turn may hold the calls it made and its `reasoning`; a tool's turn names the call it answers.
    """

    role: str
    parts: tuple[str | Source, ...]
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None
    reasoning: str | None = None


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. Names, meanings and defaults are llama.cpp's; temperature 0 is greedy.

    Those of vLLM and transformers that mean something else have a name of their own: `repetition_penalty` counts the
    whole prompt and answer, `repeat_penalty` the last `repeat_last_n` tokens.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    typical_p: float = 1.0
    top_n_sigma: float = -1.0
    min_keep: int = 0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    dynatemp_range: float = 0.0
    dynatemp_exponent: float = 1.0
    mirostat: int = 0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = 64
    dry_sequence_breakers: tuple[str, ...] = ("\n", ":", '"', "*")
    no_repeat_ngram_size: int = 0  # 0: n-grams may repeat
    samplers: tuple[str, ...] | None = None  # llama.cpp's names, in the order they are applied
    logit_bias: tuple[tuple[int | str, float], ...] = ()  # by token, or by text for each of its tokens; -inf forbids
    ignore_eos: bool = False
    min_tokens: int = 0  # before the answer may end
    seed: int | None = None
    grammar: str | None = None  # GBNF, start symbol `root`
    json_schema: str | None = None  # a JSON schema as JSON text
    grammar_triggers: tuple[str, ...] = ()  # regular expressions; the grammar holds from the first text that matches one


@dataclass(frozen=True)
class MediaSettings:
    """What one request or deployment asks of preprocessing; None leaves it to the model. Tokens go before pixels.

    `sizes` are the (width, height) that an encoder of fixed sizes takes; without any it takes what the model asks for.
    """

    min_pixels: int | None = None
    max_pixels: int | None = None
    min_tokens: int | None = None
    max_tokens: int | None = None
    sizes: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Request:
    """One thing to answer: messages, or a `prompt` of texts, tokens and media that no template touches.

    `max_tokens` None means until the context is full, `logprobs` how many likeliest tokens to report beside each chosen
    one. `max_seconds` is when to give up, counted from its coming; `max_predict_seconds` counts from the first token, and ends
    an answer that has come to a new line. `tools` are functions in OpenAI's form, `template` further variables of the chat
    template. `scope` keeps the media ids of one client from another's.
    """

    messages: tuple[Message, ...] = ()
    sampling: Sampling = Sampling()
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    media: MediaSettings = MediaSettings()
    prompt: tuple[str | int | Source, ...] | None = None
    stop_tokens: tuple[int, ...] = ()
    tools: tuple[Mapping[str, Json], ...] = ()
    template: Mapping[str, Json] = field(default_factory=dict)
    add_generation_prompt: bool = True
    continue_final: bool = False  # the answer goes on where the last message ends
    logprobs: int | None = None
    keep_special: bool = False  # the text of special tokens is part of the answer
    special_texts: tuple[str, ...] = ()  # where not all are, those that are
    probs_after_chain: bool = False  # logprobs of the candidates that sampling left, not of the whole vocabulary
    cache_prompt: bool = True
    slot: int | None = None
    progress: bool = False  # tell how far the prompt is
    max_seconds: float | None = None
    max_predict_seconds: float | None = None
    scope: str = ""
    id: str = ""


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
    prompt that it is of, from 0: set when the prompt is built, and no part of the key. `rows` (n_tokens, n_embd) are
    there where the chunk need not be encoded.
    """

    kind: MediaKind
    n_tokens: int
    grid: Grid
    key: bytes = field(repr=False)
    pieces: tuple[Piece, ...] = field(repr=False)
    size: tuple[int, int] = (0, 0)
    used: tuple[int, int] = (0, 0)
    ordinal: int = 0
    rows: NDArray[np.float32] | None = field(default=None, repr=False)

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
    """Tokens of a request. `prompt_tokens` counts the whole prompt, `media_tokens` those of it that are media rows,
    `cached_tokens` those of it that the KV cache held already."""

    prompt_tokens: int = 0
    media_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0


@dataclass(frozen=True)
class Timings:
    """Where the time of a request went, in milliseconds; `tokens_per_second` is of decoding alone.

    `queue_ms` is the time it waited for a worker and for a slot; `prefill_ms` that of all steps its prompt had a part in,
    of which `media_prefill_ms` were media rows; `encode_ms` is 0 where nothing had to be encoded.
    """

    queue_ms: float = 0.0
    preprocess_ms: float = 0.0
    encode_ms: float = 0.0
    prefill_ms: float = 0.0
    media_prefill_ms: float = 0.0
    decode_ms: float = 0.0
    time_to_first_token_ms: float = 0.0
    tokens_per_second: float = 0.0

    @property
    def text_prefill_ms(self) -> float:
        return self.prefill_ms - self.media_prefill_ms


@dataclass(frozen=True)
class MediaUse:
    """What became of one media chunk of a request: its size as given and as the model sees it, its tokens, and where its
    rows came from: `encoder`, the cache of encoded media in memory (`cache`) or on `disk`, the KV cache (`kv`), or the
    `client`."""

    kind: MediaKind
    size: tuple[int, int]
    used: tuple[int, int]
    n_tokens: int
    origin: MediaOrigin


@dataclass(frozen=True)
class Logprob:
    """A chosen token with its natural-log probability, and the likeliest tokens at its place, likeliest first."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Progress:
    """How far a prompt is: its rows in all, those taken from the KV cache, and those that are there by now; the time since
    the request came, in milliseconds."""

    total: int
    cached: int
    processed: int
    ms: float


@dataclass(frozen=True)
class Output:
    """A piece of the answer, or of the way to it (`progress`), with usage and timings up to it.

    The last one of a request has a finish reason, and usage and timings of the whole; `stopped_by` is the stop string that
    ended it.
    """

    text: str
    tokens: tuple[int, ...] = ()
    finish_reason: FinishReason | None = None
    usage: Usage = Usage()
    timings: Timings = Timings()
    logprobs: tuple[Logprob, ...] = ()
    stopped_by: str | None = None
    media: tuple[MediaUse, ...] = ()
    slot: int | None = None
    progress: Progress | None = None
