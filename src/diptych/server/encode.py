"""`/v1/media/encode`: the rows of a picture, for whoever wants to keep them and send them in its place later."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from fastapi import APIRouter, Response
from fastapi import Request as Http
from pydantic import ConfigDict

from diptych.engine.encode import Encoded
from diptych.engine.wire import Encoding, chunk_json
from diptych.errors import InputError
from diptych.server.asking import parts
from diptych.server.asking.fields import Body, MediaLimits
from diptych.server.http.connection import while_connected
from diptych.server.serving import Served
from diptych.types import Source

router = APIRouter(tags=["media"])
ROUTE = "/v1/media/encode"
_FIELDS = ("image_url", "input_audio", "input_video", "video_url")


class EncodeBody(Body):
    """A media part as in a message, the limits it is to be seen under, and the form of its rows: lists of numbers, or
    base64 of little-endian float32 or float16."""

    model_config = ConfigDict(extra="allow")

    model: str | None = None
    image_url: dict[str, Any] | str | None = None
    input_audio: dict[str, Any] | str | None = None
    input_video: dict[str, Any] | str | None = None
    video_url: dict[str, Any] | str | None = None
    media: MediaLimits = MediaLimits()
    encoding_format: Encoding = "base64"

    def source(self) -> Source:
        """The one media part. Raises InputError where there are none or several, MediaError for what is none."""
        given = [name for name in _FIELDS if getattr(self, name) is not None]
        if len(given) != 1:
            raise InputError(f"{' and '.join(given) or 'nothing'} is given to encode; give one of {', '.join(_FIELDS)}")
        part = {"type": given[0], given[0]: getattr(self, given[0])}
        (found,) = parts.content_parts([part], given[0])
        assert isinstance(found, Source)
        return found


@router.post(ROUTE)
async def encode(body: EncodeBody, http: Http, serving: Served) -> Response:
    """The rows of a media part. The answer as a whole may stand in a message: `{"type": "media_embedding",
    "media_embedding": …}`."""
    serving.notes.unknown(ROUTE, body.unknown)
    work = serving.engine.encode(body.source(), body.media.settings(), http.state.scope)
    found = await while_connected(http, work)
    return Response(await asyncio.to_thread(_written, found, body, serving.name), media_type="application/json")


def _written(found: Encoded, body: EncodeBody, name: str) -> bytes:
    first, n = found.chunks[0], sum(chunk.n_tokens for chunk in found.chunks)
    told = {
        "object": "media.encoding",
        "kind": first.kind,
        "size": list(first.size),
        "used": list(first.used) if any(first.used) else None,
        "model": body.model or name,
        "chunks": [chunk_json(chunk, body.encoding_format) for chunk in found.chunks],
        "usage": {"media_tokens": n, "total_tokens": n},
        "timings": {"preprocess_ms": found.timings.preprocess_ms, "encode_ms": found.timings.encode_ms},
    }
    return json.dumps(told).encode()
