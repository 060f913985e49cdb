"""What llama-server tells of an answer: what was asked, how it was sampled, and why it ended."""

from __future__ import annotations

import asyncio
import math
from dataclasses import asdict

from diptych.engine import Engine
from diptych.llama.chain import ORDER
from diptych.server.asking.fields import Answering
from diptych.server.asking.prompts import shown
from diptych.server.observe.figures import timings
from diptych.server.serving import Serving
from diptych.types import Output, Request, Sampling

_RANDOM_SEED = 2**32 - 1  # what llama-server tells for a seed that was not given
_OURS = ("json_schema", "grammar_triggers", "logit_bias", "samplers", "seed", "grammar")  # told in another form
# what llama-server has and this server does not, as it stands where nobody asks for it
_ABSENT: dict[str, object] = {
    "adaptive_target": -1.0,
    "adaptive_decay": 0.9,
    "n_keep": 0,
    "n_discard": 0,
    "preserved_tokens": [],
    "chat_format": "Content-only",
    "reasoning_format": "none",
    "reasoning_in_content": False,
    "generation_prompt": "",
    "speculative.types": "none",
    "backend_sampling": False,
    "lora": [],
}


def as_read(serving: Serving, request: Request) -> str:
    """The prompt as the model reads it, text by token, special tokens too, with the media marker in the place of media."""
    engine, marker = serving.engine, serving.media_marker
    prompt = (engine.render(request, marker),) if request.prompt is None else shown(request.prompt, marker)
    return engine.detokenize(engine.ids(Request(prompt=prompt))).decode(errors="replace")


def final(serving: Serving, body: Answering, request: Request, last: Output, text: str) -> dict[str, object]:
    """The last object of an answer of this text, without what the client is sent elsewhere."""
    limit = body.limit(serving.options.n_predict)
    n = last.usage.prompt_tokens + last.usage.completion_tokens
    ended = "word" if last.stopped_by else "eos" if last.finish_reason == "stop" else "limit"
    return {
        "id_slot": -1 if last.slot is None else last.slot,
        "stop": True,
        "model": body.model or serving.name,
        "tokens_predicted": last.usage.completion_tokens,
        "tokens_evaluated": last.usage.prompt_tokens,
        "generation_settings": {
            **settings(serving.engine, request, -1 if limit is None else limit),
            "stream": body.stream,
            "timings_per_token": body.timings_per_token,
        },
        "has_new_line": "\n" in text,
        "truncated": ended == "limit" and n >= serving.engine.about.n_ctx_slot,
        "stop_type": ended,
        "stopping_word": last.stopped_by or "",
        "tokens_cached": max(n - 1, 0),  # the last one was chosen, and never decoded
        "timings": timings(last),
    }


async def verbose(serving: Serving, body: Answering, request: Request, last: Output, text: str) -> dict[str, object]:
    """`__verbose`, which answers in other forms have where that is asked for or the log is at `debug`, as in llama-server:
    what became of the request, as a field to add; nothing where it is not wanted."""
    if not body.verbose and serving.options.log_level != "debug":
        return {}
    prompt = await asyncio.to_thread(as_read, serving, request)
    return {
        "__verbose": {"index": 0, "content": text, "tokens": [], **final(serving, body, request, last, text), "prompt": prompt}
    }


def settings(engine: Engine, request: Request, n_predict: int) -> dict[str, object]:
    """What a request came to, with the defaults of the server and the model. `n_predict` is -1 for no limit."""
    sampling = request.sampling
    return {
        **{name: value for name, value in asdict(sampling).items() if name not in _OURS},
        **_ABSENT,
        "seed": _RANDOM_SEED if sampling.seed is None else sampling.seed,
        "samplers": list(sampling.samplers if sampling.samplers is not None else ORDER),
        "logit_bias": _biases(engine, sampling),
        "grammar": sampling.grammar or "",
        "grammar_lazy": bool(sampling.grammar_triggers),
        "grammar_triggers": list(sampling.grammar_triggers),
        "stop": list(request.stop),
        "max_tokens": n_predict,
        "n_predict": n_predict,
        "n_probs": request.logprobs or 0,
        "post_sampling_probs": request.probs_after_chain,
    }


def _biases(engine: Engine, sampling: Sampling) -> list[dict[str, object]]:
    """The bias of each token; null, which is -∞, forbids it."""
    given = [
        (token, bias)
        for tokens, bias in sampling.logit_bias
        for token in (engine.tokenize(tokens) if isinstance(tokens, str) else [tokens])
    ]
    ends = [(token, -math.inf) for token in engine.end_tokens] if sampling.ignore_eos else []
    return [{"bias": bias if math.isfinite(bias) else None, "token": token} for token, bias in [*given, *ends]]
