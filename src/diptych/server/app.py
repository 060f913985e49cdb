"""The application: routes behind the guard, the engine that is loaded while the server already answers `/health`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from fastapi import FastAPI

from diptych.server import embeddings, encode, info, page, preview, slots, tokens
from diptych.server.anthropic import routes as anthropic
from diptych.server.chat import routes as chat
from diptych.server.completion import routes as completion
from diptych.server.http import problems
from diptych.server.http.bodies import Bodies
from diptych.server.http.exchange import Recorder
from diptych.server.http.guard import Guard, Rules
from diptych.server.responses import routes as responses
from diptych.server.serving import Serving

Routers = (
    info.router, chat.router, completion.router, responses.router, anthropic.router, embeddings.router, tokens.router,
    encode.router, preview.router, slots.router,
)  # fmt: skip


def create(serving: Serving, failed: Callable[[], None] = lambda: None) -> FastAPI:
    """The app of a serving; `failed` is called when its model cannot be loaded.

    Raises FileError or InputError for keys that cannot be used.
    """
    rules = Rules(serving.options)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        loading = asyncio.ensure_future(_load(serving, failed))
        yield
        await asyncio.gather(loading, return_exceptions=True)
        await asyncio.to_thread(serving.close)

    app = FastAPI(
        title="Diptych",
        description="A vision language model behind the APIs of OpenAI, Anthropic and llama-server.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    app.state.serving = serving
    for router in (*Routers, *([page.router] if serving.options.page else [])):
        app.include_router(router)
    problems.install(app)
    # the last one stands outside
    app.add_middleware(Bodies, options=serving.options)
    app.add_middleware(Guard, rules=rules, check_ready=serving.check_ready)
    app.add_middleware(Recorder, over=serving.over)
    return app


async def _load(serving: Serving, failed: Callable[[], None]) -> None:
    try:
        await asyncio.to_thread(serving.load)
    except BaseException:
        failed()
        raise
