"""Probabilities of tokens in OpenAI's two forms."""

from __future__ import annotations

import math
from collections.abc import Iterable

from diptych.engine import Engine
from diptych.types import Logprob

_LEAST = -3.4028234663852886e38  # what llama-server tells for -∞, which JSON has no number for


def content(engine: Engine, found: Iterable[Logprob]) -> list[dict[str, object]]:
    """`logprobs.content` of a chat."""
    return [
        {**_token(engine, one.token, one.logprob), "top_logprobs": [_token(engine, token, value) for token, value in one.top]}
        for one in found
    ]


def after_chain(engine: Engine, found: Iterable[Logprob]) -> list[dict[str, object]]:
    """llama-server's `completion_probabilities` of the candidates that sampling left, those of probability 0 left out."""
    return [
        {**_probable(engine, one.token, one.logprob), "top_probs": [_probable(engine, t, v) for t, v in one.top if math.exp(v)]}
        for one in found
    ]


def legacy(engine: Engine, found: Iterable[Logprob], offset: int = 0) -> dict[str, object]:
    """`logprobs` of a text completion; `offset` is the length of the text before. Of tokens with one text the likeliest
    is told."""
    tokens, values, top, offsets = [], [], [], []
    for one in found:
        text = engine.piece(one.token).decode(errors="replace")
        tokens.append(text)
        values.append(max(one.logprob, _LEAST))
        top.append({engine.piece(token).decode(errors="replace"): max(value, _LEAST) for token, value in reversed(one.top)})
        offsets.append(offset)
        offset += len(text)
    return {"tokens": tokens, "token_logprobs": values, "top_logprobs": top, "text_offset": offsets}


def _token(engine: Engine, token: int, value: float) -> dict[str, object]:
    piece = engine.piece(token)
    return {"id": token, "token": piece.decode(errors="replace"), "bytes": list(piece), "logprob": max(value, _LEAST)}


def _probable(engine: Engine, token: int, value: float) -> dict[str, object]:
    told = _token(engine, token, value)
    del told["logprob"]
    return {**told, "prob": math.exp(value)}
