"""A request → its chunks: render, load and preprocess the media, lay them out, tokenise the text between."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from diptych.backend import check_kinds
from diptych.errors import InputError
from diptych.families.base import MediaHalf, Part
from diptych.prompt.template import ChatTemplate
from diptych.types import Chunk, Media, MediaChunk, Request, Source, TextChunk

Tokenize = Callable[[str], Sequence[int]]


def build(
    request: Request,
    template: ChatTemplate,
    tokenize: Tokenize,
    half: MediaHalf | None,
    load: Callable[[Source], Media],
    prefix: tuple[int, ...] = (),
) -> list[Chunk]:
    """The prompt of a request: text chunks, one between two media chunks at most, and media chunks.

    `tokenize` reads special tokens in text as such, like llama.cpp's server and transformers; a user's `<|im_end|>`
    is one too. `prefix` stands first unless the text begins with it already. Raises InputError when the template
    refuses, or there are media and no media half; and what `load` and the half's preprocessing raise.
    """
    _check_media(request, half)
    pieces = template.cut(request.messages, half.placeholders if half else {})
    return _join(_lay_out(pieces, request, half, load), tokenize, prefix)


def _check_media(request: Request, half: MediaHalf | None) -> None:
    kinds = [part.kind for m in request.messages for part in m.parts if isinstance(part, Source)]
    if kinds and half is None:
        raise InputError(
            f"the conversation holds {len(kinds)} media part(s), and there is no media half to see them; give one with --mmproj"
        )
    if half:
        check_kinds(kinds, half)


def _lay_out(
    pieces: Sequence[str | Source], request: Request, half: MediaHalf | None, load: Callable[[Source], Media]
) -> list[Part]:
    """Each source becomes its chunks and the text around them; media are numbered from 0 as they stand in the prompt."""
    parts: list[Part] = []
    ordinal = 0
    for piece in pieces:
        if isinstance(piece, str) or half is None:
            parts += [piece] if isinstance(piece, str) else []
            continue
        chunks = [replace(c, ordinal=ordinal) for c in half.preprocess(load(piece), request.media)]
        parts += half.layout(chunks)
        ordinal += 1
    return parts


def _join(parts: Sequence[Part], tokenize: Tokenize, prefix: tuple[int, ...]) -> list[Chunk]:
    """Neighbouring texts are tokenised as one, and all that stands between two media chunks is one chunk."""
    chunks: list[Chunk] = []
    tokens: list[int] = []
    text = ""
    for part in [*parts, None]:
        if isinstance(part, str):
            text += part
            continue
        tokens += tokenize(text) if text else ()
        text = ""
        if isinstance(part, TextChunk):
            tokens += part.tokens
            continue
        if not chunks and tuple(tokens[: len(prefix)]) != prefix:
            tokens[:0] = prefix
        chunks += [TextChunk(tuple(tokens))] if tokens else []
        chunks += [part] if isinstance(part, MediaChunk) else []
        tokens = []
    return chunks
