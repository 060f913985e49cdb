"""Completions in short notation."""

from __future__ import annotations

import json
from typing import Any

from sites import Site

GREEDY = {"temperature": 0, "n_predict": 8}
# of llama-server's last object, `completion_probabilities` left out
FIELDS = {
    "index", "content", "tokens", "id_slot", "stop", "model", "tokens_predicted", "tokens_evaluated", "generation_settings",
    "prompt", "has_new_line", "truncated", "stop_type", "stopping_word", "tokens_cached", "timings",
}  # fmt: skip
# of its `generation_settings`
SETTINGS = {
    "seed", "temperature", "dynatemp_range", "dynatemp_exponent", "top_k", "top_p", "min_p", "top_n_sigma", "xtc_probability",
    "xtc_threshold", "typical_p", "repeat_last_n", "repeat_penalty", "presence_penalty", "frequency_penalty", "dry_multiplier",
    "dry_base", "dry_allowed_length", "dry_penalty_last_n", "dry_sequence_breakers", "mirostat", "mirostat_tau",
    "mirostat_eta", "adaptive_target", "adaptive_decay", "stop", "max_tokens", "n_predict", "n_keep", "n_discard",
    "ignore_eos", "stream", "logit_bias", "n_probs", "min_keep", "grammar", "grammar_lazy", "grammar_triggers",
    "preserved_tokens", "chat_format", "reasoning_format", "reasoning_in_content", "generation_prompt", "samplers",
    "speculative.types", "timings_per_token", "post_sampling_probs", "backend_sampling", "lora",
}  # fmt: skip


def complete(site: Site, prompt: Any = "the user", path: str = "/completion", **body: Any) -> Any:
    response = site.post(path, {"prompt": prompt, **GREEDY, **body})
    assert response.status_code == 200, response.text
    return response.json()


def streamed(site: Site, prompt: Any = "the user", **body: Any) -> list[dict[str, Any]]:
    events = site.data("/completion", {"prompt": prompt, **GREEDY, **body, "stream": True})
    return [json.loads(event) for event in events]


def refused(site: Site, path: str = "/completion", content: str | bytes | None = None, **body: Any) -> str:
    """The words of an answer with status 400, which are one line."""
    response = site.post(path, content=json.dumps(body) if content is None else content)
    assert response.status_code == 400, (response.status_code, response.text[:500])
    said = str(response.json()["error"]["message"])
    assert "\n" not in said
    assert len(said) < 500
    return said
