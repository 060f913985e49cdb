"""Choose the next token: llama.cpp's samplers in llama.cpp's order, a grammar beside them."""

from __future__ import annotations

import ctypes
import math
import random
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import llama_cpp.llama_cpp as lib
import numpy as np

from diptych.errors import EngineError, FileError, GrammarError, InputError
from diptych.llama import grammar, log
from diptych.llama.native import Native, Pointer
from diptych.types import Sampling

if TYPE_CHECKING:
    from diptych.llama.context import Context
    from diptych.llama.model import TextModel

_CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])  # llama_token_data
_SEEDS = 2**32 - 1  # the last one means "random" to llama.cpp
_KEPT = 1  # min_keep of llama.cpp: a filter leaves at least this many candidates

# metadata key → field of Sampling and its type (`general.sampling.*`, as the model's makers recommend)
_DEFAULTS: dict[str, tuple[str, type[int] | type[float]]] = {
    "temp": ("temperature", float),
    "top_k": ("top_k", int),
    "top_p": ("top_p", float),
    "min_p": ("min_p", float),
    "penalty_last_n": ("repeat_last_n", int),
    "penalty_repeat": ("repeat_penalty", float),
}


class Sampler(Native):
    """The choice of tokens for one answer; it remembers them for penalties and grammar. `seed` is the one in use."""

    def __init__(self, model: TextModel, sampling: Sampling) -> None:
        check(sampling)
        gbnf = grammar.of(sampling, lambda text: len(model.tokenize(text)) == 1)
        self.seed = random.randrange(_SEEDS) if sampling.seed is None else sampling.seed
        self.model = model
        super().__init__("sampler", _chain(model, sampling, self.seed), lib.llama_sampler_free, model)
        self._grammar = Native("grammar", _grammar(model, gbnf), lib.llama_sampler_free, self) if gbnf else None
        self._ids = np.arange(model.n_vocab, dtype=np.int32)
        self._candidates = np.zeros(model.n_vocab, _CANDIDATE)

    def sample(self, context: Context, i: int) -> int:
        """Choose and take the token behind the `i`-th row of logits of the context's last batch.

        A grammar is tried on the chosen token alone; only when it refuses is it applied to the whole vocabulary and
        the choice made again, which gives the same distribution for a fraction of the time.
        """
        logits = context.logits_view(i)
        if not np.isfinite(logits).all():
            raise EngineError("the model gave logits that are not numbers; its file may be damaged, or its cache type too small")
        token = self._choose(logits, constrained=False)
        if self._grammar is not None and not self._allows(token):
            token = self._choose(logits, constrained=True)
            if not self._allows(token):
                raise GrammarError(
                    "no token of this model continues the grammar; the vocabulary may lack a character it asks for"
                )
        self._take(token)
        return token

    def feed(self, tokens: Iterable[int]) -> None:
        """Let the penalties count tokens of the prompt, as llama.cpp's server does; the grammar does not see them."""
        for token in tokens:
            lib.llama_sampler_accept(self.pointer, token)

    def _choose(self, logits: np.ndarray[Any, np.dtype[np.float32]], *, constrained: bool) -> int:
        self._candidates["id"], self._candidates["logit"] = self._ids, logits  # samplers reorder and cut what they are given
        array = _array(self._candidates)
        if constrained and self._grammar is not None:
            lib.llama_sampler_apply(self._grammar.pointer, ctypes.byref(array))
        lib.llama_sampler_apply(self.pointer, ctypes.byref(array))
        return int(self._candidates["id"][array.selected])

    def _allows(self, token: int) -> bool:
        """Whether the grammar lets a token follow. One it refuses must never be accepted: that ends the process."""
        assert self._grammar is not None
        one = np.array([(token, 1.0, 0.0)], _CANDIDATE)
        lib.llama_sampler_apply(self._grammar.pointer, ctypes.byref(_array(one)))
        return bool(np.isfinite(one["logit"][0]))

    def _take(self, token: int) -> None:
        if self._grammar is not None and not self.model.is_end(token):
            lib.llama_sampler_accept(self._grammar.pointer, token)
        lib.llama_sampler_accept(self.pointer, token)


def check(sampling: Sampling) -> None:
    """Raise InputError for a setting out of its range."""
    floats = ("temperature", "top_p", "min_p", "repeat_penalty", "presence_penalty", "frequency_penalty")
    for name in floats:
        if not math.isfinite(value := getattr(sampling, name)):
            raise InputError(f"{name} is {value}; it must be a finite number")
    if sampling.repeat_penalty <= 0:
        raise InputError(f"repeat_penalty is {sampling.repeat_penalty}; it must be over 0, and 1 means none")
    if sampling.seed is not None and not 0 <= sampling.seed < _SEEDS:
        raise InputError(f"seed is {sampling.seed}; it must be from 0 to {_SEEDS - 1}")
    for name in ("top_k", "repeat_last_n"):
        if not -(2**31) <= (value := getattr(sampling, name)) < 2**31:
            raise InputError(f"{name} is {value}; it must fit 32 bits")


def default_sampling(metadata: Mapping[str, str]) -> dict[str, int | float]:
    """The fields of `Sampling` that a GGUF sets (`general.sampling.*`). Raises FileError for a value that is no number."""
    out: dict[str, int | float] = {}
    for key, (field, kind) in _DEFAULTS.items():
        if (value := metadata.get(f"general.sampling.{key}")) is not None:
            try:
                out[field] = kind(value)
            except ValueError:
                raise FileError(
                    f"the model's general.sampling.{key} is {value!r}, which is no number; convert it again"
                ) from None
    return out


def _chain(model: TextModel, sampling: Sampling, seed: int) -> Pointer:
    """llama.cpp's samplers in its default order; greedy at temperature 0, where what cuts candidates changes nothing."""
    params = lib.llama_sampler_chain_default_params()
    chain = lib.llama_sampler_chain_init(params)
    biases = _suppressed(model)
    last_n = model.n_ctx_train if sampling.repeat_last_n == -1 else sampling.repeat_last_n
    samplers = [
        lib.llama_sampler_init_logit_bias(model.n_vocab, len(biases), biases),
        lib.llama_sampler_init_penalties(
            model.n_vocab, last_n, sampling.repeat_penalty, sampling.frequency_penalty, sampling.presence_penalty
        ),
    ]
    if sampling.temperature <= 0:
        samplers.append(lib.llama_sampler_init_greedy())
    else:
        samplers += [
            lib.llama_sampler_init_top_k(sampling.top_k),
            lib.llama_sampler_init_top_p(sampling.top_p, _KEPT),
            lib.llama_sampler_init_min_p(sampling.min_p, _KEPT),
            lib.llama_sampler_init_temp(sampling.temperature),
            lib.llama_sampler_init_dist(seed),
        ]
    for sampler in samplers:
        lib.llama_sampler_chain_add(chain, sampler)
    return chain


def _suppressed(model: TextModel) -> Any:  # noqa: ANN401 - a ctypes array
    """The tokens that the file says must never be chosen, each with a bias of -∞."""
    n = ctypes.c_int32()
    tokens = lib.llama_vocab_get_suppress_tokens(model.vocab, ctypes.byref(n))
    return (lib.llama_logit_bias * n.value)(*((tokens[i], -math.inf) for i in range(n.value)))


def _grammar(model: TextModel, gbnf: str) -> Pointer:
    with log.watch() as errors:
        pointer = lib.llama_sampler_init_grammar(model.vocab, gbnf.encode(), grammar.ROOT.encode())
    if not pointer:
        raise GrammarError(f"llama.cpp cannot use the grammar: {log.reason(errors)}")
    return pointer


def _array(candidates: np.ndarray[Any, np.dtype[Any]]) -> lib.llama_token_data_array:
    data = ctypes.cast(candidates.ctypes.data, lib.llama_token_data_p)
    return lib.llama_token_data_array(data, len(candidates), -1, False)
