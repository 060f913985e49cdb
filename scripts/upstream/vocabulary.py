"""Vocabularies in the manner of sentencepiece: letters, bytes, and pieces of words.

Many tests assert how many tokens a text has with the vocabulary of stories260K. `STORIES` was searched for so that all of
those numbers hold: pieces in the order in which they are merged.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import Any

from gguf import TokenType

STORIES = (
    "rt", "▁t", "nd", "AI", "ci", "il", "ou", "Wh", "▁th", "▁the", "▁i", "at", "▁l", "or", "in", "tr", "qu", "tat",
    "ni", "bor", "fu", "am", "im", "no", "ol", "eni", "on", "▁c", "▁a", "te", "eu", "ic", "is", "▁v", "el", "art",
    "Hel", "▁m", "ul", "tart", "▁w", "ur", "not", "▁la", "ow", "▁not", "ptat", "un", "if", "▁b", "of", "om", "▁f", "▁W",
    "cil", "▁y", "eli", "cat", "▁al", "na", "uis", "ok", "▁you", "it", "an", "olor", "Fr", "mp", "eniam", "▁ar", "he",
    "▁Hel", "▁lif", "▁me", "tet", "di", "elie", "how", "▁are", "▁p", "bou", "es", "od", "▁wh", "▁whi", "Ge",
)  # fmt: skip
GEMMA = ("▁h", "el", "lo", "▁hel", "▁hello", "▁t", "hi", "▁thi", "▁this", "▁i", "▁is")
_LETTERS = "▁" + string.ascii_letters + string.digits + string.punctuation
_UNKNOWN, _BOS, _EOS = "<unk>", "<s>", "</s>"


def metadata(pieces: Sequence[str], *, prefix: bool, special: Sequence[str] = ()) -> dict[str, Any]:
    """The keys of a GGUF for a vocabulary of these pieces; with `prefix` a space is put before a text."""
    control = [_UNKNOWN, _BOS, _EOS, *special]
    octets = [f"<0x{byte:02X}>" for byte in range(256)]
    tokens = [*control, *octets, *pieces, *_LETTERS]
    kinds = [TokenType.UNKNOWN] + [TokenType.CONTROL] * (len(control) - 1) + [TokenType.BYTE] * len(octets)
    kinds += [TokenType.NORMAL] * (len(tokens) - len(kinds))
    scores = [0.0] * (len(control) + len(octets)) + [-float(i) for i in range(len(pieces) + len(_LETTERS))]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": [int(kind) for kind in kinds],
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.ggml.add_space_prefix": prefix,
    }
