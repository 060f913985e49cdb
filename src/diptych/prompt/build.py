"""A request → its chunks: render, or take the prompt as it was given; put the media in and tokenise the text between."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

from diptych.backend import check_kinds
from diptych.errors import InputError, UnsupportedMedia
from diptych.families.base import MediaHalf, Part
from diptych.prompt.template import ChatTemplate
from diptych.types import Chunk, MediaChunk, Request, Source, TextChunk

Piece = str | int | Source


class Vocabulary(Protocol):
    """What tokenises. `prefix_tokens` is what a prompt has to start with."""

    n_vocab: int
    prefix_tokens: tuple[int, ...]

    def tokenize(self, text: str) -> Sequence[int]:
        """Text → tokens, special tokens in it as such, like llama.cpp's server and transformers."""
        ...


def build(
    request: Request,
    template: ChatTemplate,
    vocabulary: Vocabulary,
    half: MediaHalf | None,
    chunks_of: Callable[[Source], Sequence[MediaChunk]],
) -> list[Chunk]:
    """The prompt of a request: text chunks, one between two media chunks at most, and media chunks.

    `chunks_of` preprocesses a media part that the client has not encoded already. The vocabulary's prefix stands first
    unless the prompt begins with it, or with a token that the client gave. Raises InputError when the template refuses,
    a token is out of range, or there are media and no media half; and what `chunks_of` raises.
    """
    found = pieces(request, template, vocabulary, half)
    prefix = () if found and isinstance(found[0], int) else vocabulary.prefix_tokens
    return _join(_lay_out(found, half, chunks_of), vocabulary.tokenize, prefix)


def pieces(request: Request, template: ChatTemplate, vocabulary: Vocabulary, half: MediaHalf | None) -> Sequence[Piece]:
    """The prompt of a request cut at its media: what `Request.prompt` holds, or would have to hold to mean the same.

    Raises InputError as `build` does.
    """
    _check_media(request, half)
    if request.prompt is None:
        return template.cut(request, half.placeholders if half else {})
    _check_tokens(request.prompt, vocabulary.n_vocab)
    return request.prompt


def _check_media(request: Request, half: MediaHalf | None) -> None:
    parts = request.prompt if request.prompt is not None else [part for m in request.messages for part in m.parts]
    kinds = [part.kind for part in parts if isinstance(part, Source)]
    if kinds and half is None:
        raise UnsupportedMedia(
            f"the conversation holds {len(kinds)} media part(s), and there is no media half to see them; give one with --mmproj"
        )
    if half:
        check_kinds(kinds, half)


def _check_tokens(pieces: Sequence[Piece], n_vocab: int) -> None:
    for piece in pieces:
        if isinstance(piece, int) and not 0 <= piece < n_vocab:
            raise InputError(f"the prompt holds the token {str(piece)[:20]}, and those of this model are 0 to {n_vocab - 1}")


def _lay_out(pieces: Sequence[Piece], half: MediaHalf | None, chunks_of: Callable[[Source], Sequence[MediaChunk]]) -> list[Part]:
    """Each source becomes its chunks and the text around them; media are numbered from 0 as they stand in the prompt."""
    parts: list[Part] = []
    ordinal = 0
    for piece in pieces:
        if isinstance(piece, str):
            parts.append(piece)
        elif isinstance(piece, int):
            parts.append(TextChunk((piece,)))
        elif half is not None:
            chunks = piece.chunks or chunks_of(piece)
            parts += half.layout([replace(chunk, ordinal=ordinal) for chunk in chunks])
            ordinal += 1
    return parts


def _join(parts: Sequence[Part], tokenize: Callable[[str], Sequence[int]], prefix: tuple[int, ...]) -> list[Chunk]:
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
