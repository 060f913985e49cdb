"""The fields of a request that every route for answers takes, in the names of OpenAI, llama-server and vLLM."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from diptych.errors import InputError
from diptych.llama.chain import names
from diptych.options import ServerOptions
from diptych.types import MediaSettings, Request, Sampling

ShortText = Annotated[str, Field(max_length=4096)]  # what has a bound is also seen to have no half characters
MAX_TURNS = 10_000  # messages of a conversation; each is rendered whether the context holds it or not
_RANDOM = -1  # llama-server's seed
_SAME = (
    "temperature", "top_k", "top_p", "min_p", "top_n_sigma", "min_keep", "xtc_probability", "xtc_threshold",
    "dynatemp_range", "dynatemp_exponent", "mirostat", "mirostat_tau", "mirostat_eta", "repeat_penalty", "repeat_last_n",
    "presence_penalty", "frequency_penalty", "repetition_penalty", "dry_multiplier", "dry_base", "dry_allowed_length",
    "dry_penalty_last_n", "no_repeat_ngram_size", "ignore_eos", "min_tokens", "grammar",
)  # fmt: skip
_MEANT_OTHERWISE = ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "verbosity")


class Body(BaseModel):
    """A JSON body. null is as good as absent; a field that is not known is named in the log."""

    model_config = ConfigDict(extra="allow", populate_by_name=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, data: Any) -> Any:  # noqa: ANN401 - whatever the client sent
        return {k: v for k, v in data.items() if v is not None} if isinstance(data, dict) else data

    @property
    def unknown(self) -> list[str]:
        """Fields that nothing here reads, but those that ask for nothing."""
        return [name for name in self.model_extra or {} if name not in _MEANT_OTHERWISE]


class MediaLimits(BaseModel):
    """What one request asks of preprocessing."""

    min_pixels: Annotated[int | None, Field(ge=1)] = None
    max_pixels: Annotated[int | None, Field(ge=1)] = None
    min_tokens: Annotated[int | None, Field(ge=1)] = None
    max_tokens: Annotated[int | None, Field(ge=1)] = None

    def settings(self) -> MediaSettings:
        return MediaSettings(self.min_pixels, self.max_pixels, self.min_tokens, self.max_tokens)


class VllmArguments(BaseModel):
    """vLLM's `vllm_xargs`, as far as it means something here."""

    model_config = ConfigDict(extra="allow")

    no_repeat_ngram_size: Annotated[int | None, Field(ge=0)] = None


class Answering(Body):
    """How to sample and when to stop."""

    model: ShortText | None = None
    stream: bool = False
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical_p: Annotated[float | None, Field(alias="typ_p")] = None
    top_n_sigma: float | None = None
    min_keep: int | None = None
    xtc_probability: float | None = None
    xtc_threshold: float | None = None
    dynatemp_range: float | None = None
    dynatemp_exponent: float | None = None
    mirostat: int | None = None
    mirostat_tau: float | None = None
    mirostat_eta: float | None = None
    repeat_penalty: float | None = None
    repeat_last_n: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    dry_multiplier: float | None = None
    dry_base: float | None = None
    dry_allowed_length: int | None = None
    dry_penalty_last_n: int | None = None
    dry_sequence_breakers: Annotated[list[str] | None, Field(max_length=64)] = None
    no_repeat_ngram_size: int | None = None
    samplers: list[str] | str | None = None
    logit_bias: (
        Annotated[dict[str, float], Field(max_length=10_000)]
        | Annotated[list[tuple[int | str, float | bool]], Field(max_length=10_000)]
        | None
    ) = None
    ignore_eos: bool | None = None
    min_tokens: int | None = None
    seed: int | None = None
    grammar: str | None = None
    json_schema: dict[str, Any] | str | bool | None = None
    vllm_xargs: VllmArguments | None = None
    n: Annotated[int, Field(ge=1, alias="n_cmpl")] = 1
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    n_predict: int | None = None
    stop: Annotated[tuple[ShortText, ...], Field(max_length=64)] | ShortText = ()
    stop_token_ids: Annotated[tuple[int, ...], Field(max_length=1024)] = ()
    skip_special_tokens: bool = True
    cache_prompt: bool = True
    id_slot: int | None = None
    t_max_predict_ms: float | None = None
    timings_per_token: bool = False
    return_tokens: bool = False
    return_progress: bool = False
    verbose: bool = False
    media: MediaLimits = MediaLimits()

    @model_validator(mode="before")
    @classmethod
    def _both_names(cls, data: Any) -> Any:  # noqa: ANN401 - whatever the client sent
        """`typical_p` and `typ_p`, `n` and `n_cmpl` are the same field; the first goes before."""
        if isinstance(data, dict):
            for name, other in (("typical_p", "typ_p"), ("n", "n_cmpl")):
                if name in data:
                    data = {k: v for k, v in data.items() if k != other}
        return data

    def sampling(self, defaults: Sampling) -> Sampling:
        """The model's own settings with what the request says on top."""
        given: dict[str, Any] = {name: getattr(self, name) for name in _SAME}
        given["typical_p"] = self.typical_p
        if self.vllm_xargs and self.no_repeat_ngram_size is None:
            given["no_repeat_ngram_size"] = self.vllm_xargs.no_repeat_ngram_size
        if self.seed is not None and self.seed != _RANDOM:
            given["seed"] = self.seed % (2**32 - 1)  # clients send 64 bits, llama.cpp's generator takes 32
        if self.samplers is not None:
            given["samplers"] = names(self.samplers) if isinstance(self.samplers, str) else tuple(self.samplers)
        if self.dry_sequence_breakers is not None:
            given["dry_sequence_breakers"] = tuple(self.dry_sequence_breakers)
        if self.logit_bias is not None:
            given["logit_bias"] = _biases(self.logit_bias)
        if self.json_schema is not None:
            given["json_schema"] = self.json_schema if isinstance(self.json_schema, str) else json.dumps(self.json_schema)
        if "repeat_last_n" in self.model_fields_set and given["repeat_last_n"] == 0:
            given["repeat_penalty"] = 1.0
        return replace(defaults, **{name: value for name, value in given.items() if value is not None})

    def limit(self, default: int) -> int | None:
        """Most tokens of the answer; None up to the context. -1 asks for that."""
        asked = next((n for n in (self.max_completion_tokens, self.max_tokens, self.n_predict) if n is not None), default)
        return None if asked == -1 else asked

    def apply(self, request: Request, defaults: Sampling, options: ServerOptions) -> Request:
        """A request with these settings, and the server's where it says nothing."""
        stops = (self.stop,) if isinstance(self.stop, str) else self.stop
        return replace(
            request,
            sampling=self.sampling(defaults),
            max_tokens=self.limit(options.n_predict),
            stop=tuple(stop for stop in stops if stop),  # an empty one asks for nothing, as in llama-server
            stop_tokens=self.stop_token_ids,
            keep_special=not self.skip_special_tokens,
            media=self.media.settings(),
            cache_prompt=self.cache_prompt,
            slot=None if self.id_slot in (None, -1) else self.id_slot,
            progress=self.return_progress,
            max_seconds=options.max_request_seconds,
            max_predict_seconds=self.t_max_predict_ms / 1e3 if self.t_max_predict_ms and self.t_max_predict_ms > 0 else None,
        )


def _biases(given: Mapping[str, float] | list[tuple[int | str, float | bool]]) -> tuple[tuple[int | str, float], ...]:
    """OpenAI's object by token id, or llama-server's pairs, where false forbids and a text stands for its tokens."""
    if isinstance(given, Mapping):
        return tuple((int(token) if token.lstrip("-").isdecimal() else token, bias) for token, bias in given.items())
    for token, bias in given:
        if bias is True:
            raise InputError(f"logit_bias of {token!r} is true; it takes a number, or false to forbid the token")
    return tuple((token, float("-inf") if bias is False else float(bias)) for token, bias in given)
