"""`/v1/embeddings` as OpenAI has it, and `/embeddings` and `/embedding` as llama-server does: of texts, tokens and media."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Response
from fastapi import Request as Http
from pydantic import Field

from diptych.engine.embed import EUCLIDEAN, Embedding
from diptych.engine.pool import MAX_NORM
from diptych.engine.wire import encoded_array
from diptych.errors import InputError, NotSupported
from diptych.server.asking import parts, prompts
from diptych.server.asking.fields import Body, MediaLimits
from diptych.server.http import exchange
from diptych.server.http.connection import while_connected
from diptych.server.serving import Served, Serving
from diptych.types import Output, Request, Timings, Usage

router = APIRouter(tags=["embeddings"])
ROUTE = "/v1/embeddings"
MAX_INPUTS = 2048  # of one request, as OpenAI has it


class EmbeddingsBody(Body):
    """What to embed: a string, a list of tokens, `{"prompt_string": …, "multimodal_data": […]}`, `{"content": [parts of a
    message]}`, or a list of these. `content` is llama-server's name for `input`, and asks for its form of the answer."""

    model: str | None = None
    input: Any = None
    content: Any = None
    encoding_format: Literal["float", "base64"] = "float"
    embd_normalize: Annotated[int, Field(ge=-1, le=MAX_NORM)] = EUCLIDEAN
    dimensions: Annotated[int | None, Field(ge=1)] = None
    media: MediaLimits = MediaLimits()


@router.post(ROUTE)
async def openai(body: EmbeddingsBody, http: Http, serving: Served) -> Response:
    """Embeddings in OpenAI's form, one vector an input."""
    if _pooling(serving) == "none":
        raise InputError("pooling is none, which gives a vector a token and has no place in OpenAI's form; set another --pooling")
    found = await _embedded(ROUTE, body, http, serving)
    return await _response(_native if body.input is None else _openai, found, body, serving)


@router.post("/embeddings")
@router.post("/embedding", include_in_schema=False)
async def native(body: EmbeddingsBody, http: Http, serving: Served) -> Response:
    """Embeddings in llama-server's form: a list of vectors an input, more than one where they are not pooled."""
    _pooling(serving)
    return await _response(_native, await _embedded("/embeddings", body, http, serving), body, serving)


def _pooling(serving: Serving) -> str:
    if (pooling := serving.engine.pooling) is None:
        raise NotSupported("this server gives no embeddings; start it with --embeddings")
    return pooling


async def _embedded(route: str, body: EmbeddingsBody, http: Http, serving: Serving) -> list[Embedding]:
    serving.notes.unknown(route, body.unknown)
    start, name = time.perf_counter(), exchange.name("embd-")
    if body.dimensions not in (None, serving.engine.about.n_embd):
        raise InputError(f"dimensions is {body.dimensions}, and this model has {serving.engine.about.n_embd}; leave it out")
    requests = [
        Request(prompt=prompt, media=body.media.settings(), scope=http.state.scope, id=name)
        for prompt in inputs(body.content if body.input is None else body.input, serving.media_marker)
    ]
    found = await while_connected(http, serving.engine.embed(requests, body.embd_normalize))
    usage, timings = Usage(_n_tokens(found)), Timings(prefill_ms=1e3 * (time.perf_counter() - start))
    serving.answered(route, Output("", finish_reason="stop", usage=usage, timings=timings))
    return found


def inputs(given: object, marker: str) -> list[prompts.Prompt]:
    """What is to be embedded, each a prompt. A list that holds a token is one, any other list holds some.

    Raises InputError for what is none, or where there is nothing to embed; MediaError for media that are none.
    """
    if given is None:
        raise InputError("there is no input; give what is to be embedded")
    if not isinstance(given, list) or any(type(piece) is int for piece in given):
        return [_input(given, marker, "input")]
    if not 0 < len(given) <= MAX_INPUTS:
        raise InputError(f"input is a list of {len(given)}; send 1 to {MAX_INPUTS} (it must not be empty)")
    return [_input(one, marker, f"input[{i}]") for i, one in enumerate(given)]


def _input(given: object, marker: str, where: str) -> prompts.Prompt:
    if given == "":
        return ("",)  # some vocabularies put tokens around it; where there are none it is refused later
    if not (isinstance(given, Mapping) and "content" in given):
        return prompts.prompt(given, marker, where)
    content = given["content"]
    if not isinstance(content, list) or not content:
        raise InputError(f"{where}.content is no list of the parts of a message; give one or more")
    # one by one: a message joins texts by newlines, an embedding does not
    return tuple(piece for i, one in enumerate(content) for piece in parts.content_parts([one], f"{where}.content, part {i}: "))


async def _response(form: Any, found: list[Embedding], body: EmbeddingsBody, serving: Serving) -> Response:  # noqa: ANN401
    """The answer in a form, written on another thread: it may hold millions of numbers."""

    def written() -> bytes:
        return json.dumps(form(found, body, serving)).encode()

    return Response(await asyncio.to_thread(written), media_type="application/json")


def _native(found: Sequence[Embedding], body: EmbeddingsBody, serving: Serving) -> object:
    return [
        {"index": i, "embedding": [encoded_array(row, body.encoding_format) for row in one.rows]} for i, one in enumerate(found)
    ]


def _openai(found: Sequence[Embedding], body: EmbeddingsBody, serving: Serving) -> object:
    n = _n_tokens(found)
    told = {"encoding_format": "base64"} if body.encoding_format == "base64" else {}
    data = [
        {"object": "embedding", "index": i, "embedding": encoded_array(one.rows[0], body.encoding_format), **told}
        for i, one in enumerate(found)
    ]
    return {
        "object": "list",
        "data": data,
        "model": body.model or serving.name,
        "usage": {"prompt_tokens": n, "total_tokens": n},
    }


def _n_tokens(found: Sequence[Embedding]) -> int:
    return sum(one.n_tokens for one in found)
