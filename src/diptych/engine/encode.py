"""Media → their rows, without a text half: what embedding and encoded media as data have in common."""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from threading import Event

from diptych.encoder.encoder import Encoder, Encoding
from diptych.engine.prepare import Preparation
from diptych.errors import EngineError
from diptych.families.base import Rows
from diptych.types import MediaChunk, MediaSettings, Request, Source, Timings

_LOOK = 0.05  # seconds from one look for whether somebody waits to the next


@dataclass(frozen=True, eq=False)
class Encoded:
    """The chunks of one media part, each with its rows, and the time it took."""

    chunks: tuple[MediaChunk, ...]
    timings: Timings


def encode(
    source: Source,
    settings: MediaSettings,
    preparation: Preparation,
    encoder: Encoder | None,
    scope: str = "",
    gone: Event | None = None,
) -> Encoded:
    """Fetch, preprocess and encode a media part, on this thread and the encoder's; not on, once `gone` is set.

    Raises MediaError and its kind for media that cannot be used, InputError where no media half takes them, EngineError
    when encoding fails.
    """
    start = time.perf_counter()
    request = Request(prompt=(source,), media=settings, scope=scope)
    prepared = [chunk for chunk in preparation.chunks(request) if isinstance(chunk, MediaChunk)]
    ready = time.perf_counter()
    chunks = encoded(prepared, encoder, gone)
    return Encoded(chunks, Timings(preprocess_ms=1e3 * (ready - start), encode_ms=1e3 * (time.perf_counter() - ready)))


def encoded(chunks: Iterable[MediaChunk], encoder: Encoder | None, gone: Event | None = None) -> tuple[MediaChunk, ...]:
    """Chunks with their rows and without their pieces; rows that a client sent are checked.

    Raises what encoding raises, and EngineError once `gone` is set, when nobody waits for them any more.
    """
    asked: list[tuple[MediaChunk, Encoding]] = []
    try:
        for chunk in chunks:
            assert encoder is not None  # nothing else makes chunks
            asked.append((chunk, encoder.submit(chunk)))
        return tuple(replace(chunk, pieces=(), rows=_rows(encoding, gone)) for chunk, encoding in asked)
    finally:
        for _, encoding in asked:
            encoding.cancel()


def _rows(encoding: Encoding, gone: Event | None) -> Rows:
    if gone is None:
        return encoding.result()
    while not gone.is_set():
        with suppress(TimeoutError):
            return encoding.result(_LOOK)
    raise EngineError("nobody waits for these rows any more")
