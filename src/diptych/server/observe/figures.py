"""Usage and timings of an answer, in the names of llama-server and OpenAI, with ours beside them."""

from __future__ import annotations

from diptych.types import MediaUse, Output


def timings(output: Output) -> dict[str, object]:
    """The `timings` object of an answer, in milliseconds.

    `prompt_n` leaves out what the KV cache held (`cache_n`), as llama-server's does; `encode_cached` is true where there
    are media and none of them had to be encoded. Without media there are numbers alone, as clients of llama-server expect.
    """
    t, u, p = output.timings, output.usage, output.progress
    n = (p.processed if p else u.prompt_tokens) - u.cached_tokens
    told: dict[str, object] = {
        "cache_n": u.cached_tokens,
        "prompt_n": n,
        "prompt_ms": t.prefill_ms,
        "prompt_per_token_ms": t.prefill_ms / n if n else 0.0,
        "prompt_per_second": 1e3 * n / t.prefill_ms if t.prefill_ms else 0.0,
        "predicted_n": u.completion_tokens,
        "predicted_ms": t.decode_ms,
        "predicted_per_token_ms": 1e3 / t.tokens_per_second if t.tokens_per_second else 0.0,
        "predicted_per_second": t.tokens_per_second,
        "queue_ms": t.queue_ms,
        "preprocess_ms": t.preprocess_ms,
        "encode_ms": t.encode_ms,
        "encode_cached": bool(output.media) and all(m.origin != "encoder" for m in output.media),
        "media_n": u.media_tokens,
        "media_prefill_ms": t.media_prefill_ms,
        "text_prefill_ms": t.text_prefill_ms,
        "time_to_first_token_ms": t.time_to_first_token_ms,
    }
    return {**told, "media": [_use(m) for m in output.media]} if output.media else told


def _use(m: MediaUse) -> dict[str, object]:
    return {"kind": m.kind, "size": list(m.size), "used": list(m.used), "n_tokens": m.n_tokens, "origin": m.origin}


def progress(output: Output) -> dict[str, object]:
    """How far the prompt is, as llama-server tells it, where the output tells that."""
    if (p := output.progress) is None:
        return {}
    return {"prompt_progress": {"total": p.total, "cache": p.cached, "processed": p.processed, "time_ms": round(p.ms)}}


def usage(*outputs: Output) -> dict[str, object]:
    """OpenAI's `usage` of the choices of one request; the prompt counts once."""
    prompt = outputs[0].usage
    completion = sum(output.usage.completion_tokens for output in outputs)
    return {
        "prompt_tokens": prompt.prompt_tokens,
        "completion_tokens": completion,
        "total_tokens": prompt.prompt_tokens + completion,
        "prompt_tokens_details": {"cached_tokens": prompt.cached_tokens, "image_tokens": prompt.media_tokens},
    }
