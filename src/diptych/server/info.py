"""What the server is and what it does just now: `/health`, `/props`, `/slots`, `/v1/models`, `/metrics`."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter
from fastapi import Request as Http
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from diptych.engine.about import About, SlotState
from diptych.server.answering.generation import settings
from diptych.server.serving import Served, Serving
from diptych.types import Request

# of Ollama's list, which nobody fills in
_OLLAMA: dict[str, object] = {
    "modified_at": "", "size": "", "digest": "", "description": "", "tags": [""], "parameters": "",
    "details": {
        "parent_model": "", "format": "gguf", "family": "", "families": [""], "parameter_size": "", "quantization_level": ""
    },
}  # fmt: skip
router = APIRouter(tags=["server"])


@router.get("/health")
@router.head("/health", include_in_schema=False)  # what load balancers like to ask
@router.get("/v1/health", include_in_schema=False)
async def health() -> dict[str, str]:
    """Whether requests are taken; 503 while the model is being loaded, and before the end."""
    return {"status": "ok"}


@router.get("/props")
async def props(serving: Served) -> dict[str, object]:
    """What is served, and with which defaults; llama-server's names, and SMT's."""
    engine, options, about = serving.engine, serving.options, serving.engine.about
    params = settings(engine, Request(sampling=engine.default_sampling), options.n_predict)
    modalities = {"vision": "image" in about.kinds, "audio": "audio" in about.kinds, "video": "video" in about.kinds}
    return {
        "default_generation_settings": {"params": params, "n_ctx": about.n_ctx_slot},
        "total_slots": options.n_parallel,
        "model_alias": serving.name,
        "model_path": str(about.path),
        "model_ftype": about.text["precision"],
        "modalities": {**modalities, "reconstruction": False},
        **_halves(about),
        "chat_template": about.chat_template,
        "chat_template_caps": {},
        "bos_token": about.bos,
        "eos_token": about.eos,
        "media_marker": serving.media_marker,
        "endpoint_slots": options.slots,
        "endpoint_props": False,
        "endpoint_metrics": options.metrics,
        "ui": options.page,
        "ui_settings": {},
        "cors_proxy_enabled": False,
        "build_info": serving.fingerprint,
        "is_sleeping": False,
    }


@router.get("/v1/models")
@router.get("/models", include_in_schema=False)
async def models(serving: Served) -> dict[str, object]:
    """The one model there is, as llama-server and Ollama list it (`models`) and as OpenAI does (`data`)."""
    about = serving.engine.about
    listed = {
        "name": serving.name,
        "model": serving.name,
        "type": "model",
        "capabilities": ["completion", *(["multimodal"] if about.kinds else [])],
        "media_backend": about.media_backend,
        "vision_backend": about.media_backend,
        **_OLLAMA,
    }
    return {"object": "list", "models": [listed], "data": [_model(serving)]}


@router.get("/v1/models/{name:path}")
async def model(name: str, serving: Served) -> dict[str, object]:
    """The model, by its name."""
    if name not in serving.aliases:
        raise HTTPException(404, "there is no model of this name; /v1/models says what there is")
    return _model(serving)


def _model(serving: Serving) -> dict[str, object]:
    about = serving.engine.about
    return {
        "id": serving.name,
        "object": "model",
        "created": int(serving.started),
        "owned_by": "diptych",
        "aliases": serving.aliases,
        "tags": sorted(tag for tag in map(str.strip, serving.options.tags.split(",")) if tag),
        "meta": {
            "n_vocab": about.n_vocab,
            "n_ctx": about.n_ctx_slot,
            "n_ctx_train": about.n_ctx_train,
            "n_embd": about.n_embd,
            "n_params": about.n_params,
            "size": about.size,
            "ftype": about.text["precision"],
            **_halves(about),
        },
    }


def _halves(about: About) -> dict[str, object]:
    """What runs the halves, and in which precision; of a text half alone the backend of media is `none`."""
    backend = about.media_backend
    return {"media_backend": backend, "vision_backend": backend, "halves": {"text": about.text, "media": about.media}}


@router.get("/metrics", include_in_schema=False)
async def metrics(serving: Served, http: Http) -> Response:
    """Counters for Prometheus."""
    if not serving.options.metrics:
        raise HTTPException(501, "metrics are switched off; start the server with --metrics")
    text, media_type = await asyncio.to_thread(serving.metrics.text, http.headers.get("accept", ""))
    return Response(text, media_type=media_type, headers={"Process-Start-Time-Unix": str(int(serving.started))})


@router.get("/slots")
async def slots(serving: Served, fail_on_no_slot: bool = False) -> Response:
    """What each slot does, without anybody's words; 503 when none is free and `fail_on_no_slot` is set."""
    if not serving.options.slots:
        raise HTTPException(501, "slots are not told; start the server with --slots")
    found = serving.engine.slots()
    if fail_on_no_slot and all(slot.busy for slot in found):
        raise HTTPException(503, "no slot is free; ask again later")
    n_ctx = serving.engine.about.n_ctx_slot
    return JSONResponse([_slot(i, slot, n_ctx) for i, slot in enumerate(found)])


def _slot(i: int, slot: SlotState, n_ctx: int) -> dict[str, object]:
    return {
        "id": i,
        "n_ctx": n_ctx,
        "speculative": False,
        "is_processing": slot.busy,
        "n_prompt_tokens": slot.n_prompt,
        "n_prompt_tokens_processed": slot.n_processed,
        "n_prompt_tokens_cache": slot.n_cached,
        "next_token": [{"has_next_token": slot.busy, "n_remain": slot.n_remain, "n_decoded": slot.n_decoded}],
    }
