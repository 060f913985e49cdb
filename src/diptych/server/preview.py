"""`/v1/media/preview`: a picture as the model sees it, before anything is asked about it."""

from __future__ import annotations

import base64
from typing import Any

from fastapi import APIRouter, Request

from diptych.engine.preview import Preview
from diptych.server.asking import parts
from diptych.server.asking.fields import Body, MediaLimits
from diptych.server.http.connection import while_connected
from diptych.server.serving import Served

router = APIRouter(tags=["media"])


class PreviewBody(Body):
    """A picture as in a message, and the limits it is to be seen under."""

    image_url: dict[str, Any] | str
    media: MediaLimits = MediaLimits()


@router.post("/v1/media/preview")
async def preview(body: PreviewBody, http: Request, serving: Served) -> dict[str, object]:
    """A picture as the model sees it: its sizes, the lattice of its tokens, and its pixels as a PNG data URL.

    Nothing is encoded for it. `used`, `patch`, `merge` and `image` are null where the media half does not tell.
    """
    source = parts.media("image", body.image_url, "image_url")
    found = await while_connected(http, serving.engine.preview(source, body.media.settings()))
    return told(found)


def told(found: Preview) -> dict[str, object]:
    """A preview in JSON."""
    image = found.image and f"data:image/png;base64,{base64.b64encode(found.image).decode()}"
    return {
        "kind": found.kind,
        "size": list(found.size),
        "used": found.used and list(found.used),
        "n_tokens": found.n_tokens,
        "chunks": [{"grid": [grid.t, grid.h, grid.w], "n_tokens": n} for grid, n in found.grids],
        "patch": found.patch,
        "merge": found.merge,
        "cached": found.cached,
        "image": image,
    }
