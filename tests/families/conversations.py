"""Conversations with pictures, as token ids through the family's own layout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from diptych.families.base import Family
from diptych.media.access import Access
from diptych.media.load import load
from diptych.prompt import ChatTemplate, build
from diptych.types import MediaChunk, MediaSettings, Message, Request, Source, TextChunk
from pictures import encoded, noise

A, B = encoded(noise(60, 60)), encoded(noise(31, 177))
Turns = Sequence[tuple[str, tuple[str | bytes, ...]]]  # (role, parts); bytes are a picture's file


def prompt_ids(turns: Turns, template: ChatTemplate, tokenizer: Any, family: Family, pad: str) -> list[int]:
    """The ids of a prompt with `pad` in the place of each row of a picture, as processors write it."""
    messages = [Message(role, tuple(p if isinstance(p, str) else Source("image", data=p) for p in ps)) for role, ps in turns]

    class Words:
        n_vocab = tokenizer.get_vocab_size()
        prefix_tokens = ()

        def tokenize(self, text: str) -> list[int]:
            return tokenizer.encode(text, add_special_tokens=False).ids

    def chunks_of(source: Source) -> list[MediaChunk]:
        return family.preprocess(load(source, Access()), MediaSettings())

    made = build(Request(tuple(messages)), template, Words(), family, chunks_of)
    row = tokenizer.token_to_id(pad)
    return [t for c in made for t in (c.tokens if isinstance(c, TextChunk) else [row] * c.n_tokens)]
