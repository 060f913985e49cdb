"""Text to tokens and back, and what a conversation becomes: `/tokenize`, `/detokenize`, `/apply-template`, `…/input_tokens`."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter
from fastapi import Request as Http
from pydantic import Field

from diptych.engine import Engine
from diptych.errors import InputError
from diptych.server.asking import prompts
from diptych.server.asking.fields import Body
from diptych.server.chat.body import ChatBody
from diptych.server.serving import Served

router = APIRouter(tags=["tokens"])
MAX_TOKENS = 2**20


class TokenizeBody(Body):
    """A text, or a list of texts and tokens; `with_pieces` asks for the text of each token."""

    content: Any = None
    add_special: bool = False
    parse_special: bool = True
    with_pieces: bool = False


class DetokenizeBody(Body):
    tokens: Annotated[tuple[int, ...], Field(max_length=MAX_TOKENS)] = ()


@router.post("/tokenize")
async def tokenize(body: TokenizeBody, serving: Served) -> dict[str, object]:
    """The tokens of a text, without what a prompt begins with unless `add_special` is set."""
    serving.notes.unknown("/tokenize", body.unknown)
    return {"tokens": await asyncio.to_thread(_tokens, body, serving.engine)}


@router.post("/detokenize")
async def detokenize(body: DetokenizeBody, serving: Served) -> dict[str, str]:
    """The text of tokens, special ones too."""
    serving.notes.unknown("/detokenize", body.unknown)
    found = await asyncio.to_thread(serving.engine.detokenize, body.tokens)
    return {"content": found.decode(errors="replace")}


@router.post("/apply-template")
async def apply_template(body: ChatBody, http: Http, serving: Served) -> dict[str, str]:
    """The prompt that a chat becomes. In the place of its media stands the `media_marker` of `/props`, as `/completion`
    takes it."""
    serving.notes.unknown("/apply-template", body.unknown)
    plan = await body.plan(serving, http.state.scope, "")
    prompt = await asyncio.to_thread(serving.engine.render, plan.request, serving.media_marker)
    if half := next((character for character in prompt if "\ud800" <= character <= "\udfff"), None):
        raise InputError(f"the messages hold half a character, {half!r} (a lone surrogate), which is no text")
    return {"prompt": prompt}


@router.post("/v1/chat/completions/input_tokens")
@router.post("/chat/completions/input_tokens", include_in_schema=False)
async def input_tokens(body: ChatBody, http: Http, serving: Served) -> dict[str, object]:
    """How many tokens the prompt of a chat has, its media counted, which are not encoded."""
    n = await body.count(serving, http.state.scope, "/v1/chat/completions/input_tokens")
    return {"input_tokens": n, "object": "response.input_tokens"}


def _tokens(body: TokenizeBody, engine: Engine) -> list[int] | list[dict[str, object]]:
    """Special tokens of the vocabulary are added to a text, or to the text that a list begins with."""
    given = prompts.texts_and_tokens("" if body.content is None else body.content, "content")
    out: list[int] = []
    for i, piece in enumerate(given):
        special = body.add_special and i == 0
        out += engine.tokenize(piece, special, body.parse_special) if isinstance(piece, str) else [piece]
    return [_piece(engine, token) for token in out] if body.with_pieces else out


def _piece(engine: Engine, token: int) -> dict[str, object]:
    """A token with its text; with its bytes where they are no text of their own."""
    piece = engine.detokenize([token])
    try:
        return {"id": token, "piece": piece.decode()}
    except UnicodeDecodeError:
        return {"id": token, "piece": list(piece)}
