"""Media → their rows, without a text half: what embedding and encoded media as data have in common."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, replace

from diptych.encoder.encoder import Encoder, Encoding
from diptych.engine.prepare import Preparation
from diptych.types import MediaChunk, MediaSettings, Request, Source, Timings


@dataclass(frozen=True, eq=False)
class Encoded:
    """The chunks of one media part, each with its rows, and the time it took."""

    chunks: tuple[MediaChunk, ...]
    timings: Timings


def encode(
    source: Source, settings: MediaSettings, preparation: Preparation, encoder: Encoder | None, scope: str = ""
) -> Encoded:
    """Fetch, preprocess and encode a media part, on this thread and the encoder's.

    Raises MediaError and its kind for media that cannot be used, InputError where no media half takes them, EngineError
    when encoding fails.
    """
    start = time.perf_counter()
    request = Request(prompt=(source,), media=settings, scope=scope)
    prepared = [chunk for chunk in preparation.chunks(request) if isinstance(chunk, MediaChunk)]
    ready = time.perf_counter()
    chunks = encoded(prepared, encoder)
    return Encoded(chunks, Timings(preprocess_ms=1e3 * (ready - start), encode_ms=1e3 * (time.perf_counter() - ready)))


def encoded(chunks: Iterable[MediaChunk], encoder: Encoder | None) -> tuple[MediaChunk, ...]:
    """Chunks with their rows and without their pieces; rows that a client sent are checked. Raises what encoding raises."""
    asked: list[tuple[MediaChunk, Encoding]] = []
    try:
        for chunk in chunks:
            assert encoder is not None  # nothing else makes chunks
            asked.append((chunk, encoder.submit(chunk)))
        return tuple(replace(chunk, pieces=(), rows=encoding.result()) for chunk, encoding in asked)
    finally:
        for _, encoding in asked:
            encoding.cancel()
