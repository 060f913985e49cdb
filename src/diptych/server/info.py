"""What the server is and what it does just now: `/health`, `/props`, `/slots`, `/v1/models`, `/metrics`."""

from __future__ import annotations

from dataclasses import asdict

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException

from diptych.server.serving import Served, Serving

router = APIRouter(tags=["server"])


@router.get("/health")
@router.get("/v1/health", include_in_schema=False)
async def health(serving: Served) -> dict[str, str]:
    """Whether requests are taken; 503 while the model is being loaded."""
    serving.engine  # noqa: B018 - raises while loading
    return {"status": "ok"}


@router.get("/props")
async def props(serving: Served) -> dict[str, object]:
    """What is served, and with which defaults; llama-server's names."""
    about, options = serving.engine.about, serving.options
    sampling = {name: value for name, value in asdict(serving.engine.default_sampling).items() if value != float("inf")}
    return {
        "default_generation_settings": {"params": {**sampling, "n_predict": options.n_predict}, "n_ctx": about.n_ctx_slot},
        "total_slots": options.n_parallel,
        "model_alias": serving.name,
        "model_path": str(about.path),
        "modalities": {"vision": "image" in about.kinds, "audio": "audio" in about.kinds, "video": "video" in about.kinds},
        "media_backend": about.media_backend,
        "vision_backend": about.media_backend,
        "halves": {"text": about.text, "media": about.media},
        "chat_template": about.chat_template,
        "bos_token": about.bos,
        "eos_token": about.eos,
        "media_marker": serving.media_marker,
        "endpoint_slots": options.slots,
        "endpoint_props": False,
        "endpoint_metrics": options.metrics,
        "build_info": serving.fingerprint,
        "is_sleeping": False,
    }


@router.get("/v1/models")
@router.get("/models", include_in_schema=False)
async def models(serving: Served) -> dict[str, object]:
    """The one model there is."""
    about = serving.engine.about
    capabilities = ["completion", *(["multimodal"] if about.kinds else [])]
    backends = {"media_backend": about.media_backend, "vision_backend": about.media_backend}
    return {
        "object": "list",
        "models": [{"name": serving.name, "model": serving.name, "type": "model", "capabilities": capabilities, **backends}],
        "data": [
            {
                "id": serving.name,
                "object": "model",
                "created": int(serving.started),
                "owned_by": "diptych",
                "meta": {
                    "n_vocab": about.n_vocab, "n_ctx": about.n_ctx_slot, "n_ctx_train": about.n_ctx_train,
                    "n_embd": about.n_embd, "n_params": about.n_params, "size": about.size, **backends,
                    "halves": {"text": about.text, "media": about.media},
                },
            }
        ],
    }  # fmt: skip


@router.get("/metrics", include_in_schema=False)
async def metrics(serving: Served) -> Response:
    """Counters for Prometheus."""
    if not serving.options.metrics:
        raise HTTPException(501, "metrics are switched off; start the server with --metrics")
    return Response(generate_latest(serving.metrics.registry), media_type=CONTENT_TYPE_LATEST)


@router.get("/slots")
async def slots(serving: Served, fail_on_no_slot: bool = False) -> Response:
    """What each slot does, without anybody's words; 503 when none is free and `fail_on_no_slot` is set."""
    if not serving.options.slots:
        raise HTTPException(501, "slots are not told; start the server with --slots")
    found = serving.engine.slots()
    if fail_on_no_slot and all(slot.busy for slot in found):
        raise HTTPException(503, "no slot is free")
    return JSONResponse([_slot(serving, i) for i in range(len(found))])


def _slot(serving: Serving, i: int) -> dict[str, object]:
    slot = serving.engine.slots()[i]
    return {
        "id": i,
        "n_ctx": serving.engine.about.n_ctx_slot,
        "is_processing": slot.busy,
        "n_prompt_tokens": slot.n_prompt,
        "n_prompt_tokens_processed": slot.n_processed,
        "n_prompt_tokens_cache": slot.n_cached,
        "next_token": [{"n_decoded": slot.n_decoded, "n_remain": slot.n_remain, "has_next_token": slot.busy}],
    }
