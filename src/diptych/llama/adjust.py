"""Changes to logits that llama.cpp has no sampler for, made before its chain, in the order vLLM makes them."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import llama_cpp.llama_cpp as lib
import numpy as np
from numpy.typing import NDArray

from diptych.errors import InputError
from diptych.llama.ngram import Ngrams
from diptych.types import Sampling

if TYPE_CHECKING:
    from diptych.llama.model import TextModel

_MOST = 10_000  # entries of a logit_bias
_LONGEST = 1_000  # characters of a text in one
_CHARACTERS = 100_000  # of all texts together, which are tokenized while others wait
_LARGEST = 1e30  # of a bias, so that sums of them are finite in 32 bits

_ends: WeakKeyDictionary[TextModel, NDArray[np.int32]] = WeakKeyDictionary()


class Adjustments:
    """Biases, ends that may not come yet, n-grams that may not repeat, and the penalty on all tokens seen; of one answer."""

    def __init__(self, model: TextModel, sampling: Sampling, stop_tokens: Iterable[int] = ()) -> None:
        tokens, values = _biases(model, sampling)
        self._biased, self._biases = np.array(tokens, np.int32), np.array(values, np.float32)
        self._min_tokens = sampling.min_tokens
        self._ends = np.union1d(ends(model), [*stop_tokens]).astype(np.int32) if self._min_tokens else self._biased
        self._ngrams = Ngrams(sampling.no_repeat_ngram_size) if sampling.no_repeat_ngram_size else None
        self._penalty = np.float32(sampling.repetition_penalty)
        self._seen = np.zeros(model.n_vocab, bool) if self._penalty != 1 else None
        self._n = 0

    def feed(self, tokens: Iterable[int]) -> None:
        """Take tokens of the prompt."""
        if self._seen is not None:
            self._seen[[*tokens]] = True

    def push(self, token: int) -> None:
        """Take a token of the answer."""
        self._n += 1
        if self._seen is not None:
            self._seen[token] = True
        if self._ngrams is not None:
            self._ngrams.push(token)

    def apply(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """(n_vocab,) logits with the changes, a copy; the same where there are none. Raises InputError when none is left."""
        banned = self._ngrams.banned() if self._ngrams is not None else []
        early = self._n < self._min_tokens
        if not (banned or early or len(self._biased) or self._seen is not None):
            return logits
        out = logits.copy()
        np.add.at(out, self._biased, self._biases)
        if early:
            out[self._ends] = -np.inf
        out[banned] = -np.inf
        if self._seen is not None:
            seen = out[self._seen]
            out[self._seen] = np.where(seen < 0, seen * self._penalty, seen / self._penalty)
        if not out.max() > -np.inf:
            raise InputError("logit_bias, min_tokens, ignore_eos or no_repeat_ngram_size leave no token to choose; allow some")
        return out


def ends(model: TextModel) -> NDArray[np.int32]:
    """The tokens that end an answer, looked up once a model."""
    if model not in _ends:
        _ends[model] = np.array([t for t in range(model.n_vocab) if model.is_end(t)], np.int32)
    return _ends[model]


def _biases(model: TextModel, sampling: Sampling) -> tuple[list[int], list[float]]:
    """Tokens, those in several entries several times, and what is added to each."""
    if len(sampling.logit_bias) > _MOST:
        raise InputError(f"logit_bias has {len(sampling.logit_bias)} entries; at most {_MOST} are taken")
    if (n := sum(len(what) for what, _ in sampling.logit_bias if isinstance(what, str))) > _CHARACTERS:
        raise InputError(f"logit_bias names texts of {n} characters together; at most {_CHARACTERS} are taken")
    pairs = [(t, _bias(what, bias)) for what, bias in sampling.logit_bias for t in _tokens(model, what)]
    if sampling.ignore_eos:
        pairs += [(int(t), -math.inf) for t in ends(model)]
    pairs += [(t, -math.inf) for t in _suppressed(model)]
    return [t for t, _ in pairs], [b for _, b in pairs]


def _bias(what: int | str, bias: float) -> float:
    """False forbids, as llama-server has it."""
    if bias is False:
        return -math.inf
    if isinstance(bias, bool) or not (bias == -math.inf or abs(bias) <= _LARGEST):
        raise InputError(f"logit_bias of {what!r:.40} is {bias}; it must be a finite number, or -inf to forbid the token")
    return bias


def _tokens(model: TextModel, what: int | str) -> list[int]:
    """A token, or each token of a text, in which special tokens are plain text."""
    if isinstance(what, str):
        if len(what) > _LONGEST:
            raise InputError(f"logit_bias names a text of {len(what)} characters; at most {_LONGEST} are taken")
        return model.tokenize(what, parse_special=False)
    if not 0 <= what < model.n_vocab:
        raise InputError(f"logit_bias names token {what}; the vocabulary has 0 to {model.n_vocab - 1}")
    return [what]


def _suppressed(model: TextModel) -> list[int]:
    """The tokens that the file says must never be chosen."""
    n = ctypes.c_int32()
    tokens = lib.llama_vocab_get_suppress_tokens(model.vocab, ctypes.byref(n))
    return [tokens[i] for i in range(n.value)]
