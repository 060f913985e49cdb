"""Choose the next token: our own changes to the logits, llama.cpp's samplers, a grammar beside them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from diptych.errors import EngineError, FileError, GrammarError, InputError
from diptych.llama import adjust, chain, grammar, ranges, vocabulary
from diptych.llama.adjust import Adjustments
from diptych.llama.candidates import Candidates, log_probabilities
from diptych.llama.chain import Chain
from diptych.llama.constraint import Constraint
from diptych.types import Logprob, Sampling

if TYPE_CHECKING:
    from diptych.llama.context import Context
    from diptych.llama.model import TextModel

_OTHERS = 64  # tokens tried one after the other where a trigger would be completed with what the grammar refuses

# metadata key → field of Sampling and what reads it (`general.sampling.*`, as the model's makers recommend)
_DEFAULTS: dict[str, tuple[str, Callable[[str], object]]] = {
    "sequence": ("samplers", lambda text: tuple(map(chain.sampler, chain.names(text)))),
    "temp": ("temperature", float),
    "top_k": ("top_k", int),
    "top_p": ("top_p", float),
    "min_p": ("min_p", float),
    "xtc_probability": ("xtc_probability", float),
    "xtc_threshold": ("xtc_threshold", float),
    "penalty_last_n": ("repeat_last_n", int),
    "penalty_repeat": ("repeat_penalty", float),
    "mirostat": ("mirostat", int),
    "mirostat_tau": ("mirostat_tau", float),
    "mirostat_eta": ("mirostat_eta", float),
}


@dataclass(frozen=True)
class Choice:
    """A chosen token, and its probability with those of the likeliest where that was asked for."""

    token: int
    logprob: Logprob | None = None


class Sampler:
    """The choice of tokens for one answer; it remembers them. `seed` is the one in use.

    `stop_tokens` end the answer beside the model's own: `min_tokens` forbids them too.
    """

    def __init__(self, model: TextModel, sampling: Sampling, stop_tokens: Iterable[int] = ()) -> None:
        ranges.check(sampling)
        gbnf = grammar.of(sampling)
        self.seed = random.randrange(ranges.SEEDS) if sampling.seed is None else sampling.seed
        self._adjustments = Adjustments(model, sampling, stop_tokens)
        self._constraint = Constraint(model, gbnf, sampling.grammar_triggers) if gbnf is not None else None
        self._chain = Chain(model, sampling, self.seed)

    def sample(self, context: Context, i: int, n_probs: int | None = None, *, after_chain: bool = False) -> Choice:
        """Choose and take the token behind the `i`-th row of logits of the context's last batch.

        `n_probs` asks for its probability and for those of as many likeliest tokens: in the softmax of the model's own
        logits, or `after_chain` among the candidates that are left then.
        """
        raw = context.logits_view(i)
        if not np.isfinite(raw.max()):
            raise EngineError("the model gave logits that are not numbers; its file may be damaged, or its cache type too small")
        left = self._choose(self._adjustments.apply(raw))
        token = left.chosen
        logprob = None
        if n_probs is not None:
            own, top = left.probabilities(n_probs) if after_chain else log_probabilities(raw, token, n_probs)
            logprob = Logprob(token, own, tuple(top))
        self._take(token)
        return Choice(token, logprob)

    def feed(self, tokens: Iterable[int]) -> None:
        """Let the penalties count tokens of the prompt, as llama.cpp's server does; the grammar does not see them."""
        tokens = tuple(tokens)
        self._adjustments.feed(tokens)
        self._chain.accept(tokens)

    def close(self) -> None:
        """Free what llama.cpp holds of it; a second call does nothing."""
        self._chain.close()
        if self._constraint is not None:
            self._constraint.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def _choose(self, logits: NDArray[np.float32]) -> Candidates:
        """The candidates left, one of them chosen.

        A grammar is tried on the chosen token alone; only when it refuses is it applied to all of them and the choice
        made again, which gives the same distribution for a fraction of the time.
        """
        left = self._chain.choose(logits)
        if self._constraint is None or self._constraint.allows(left.chosen):
            return left
        if self._constraint.waiting:
            return self._choose_other(self._constraint, logits, left.chosen)
        left = self._chain.choose(logits, self._constraint.restrict)
        if not self._constraint.allows(left.chosen):
            raise GrammarError("no token of this model continues the grammar; the vocabulary may lack a character it asks for")
        return left

    def _choose_other(self, constraint: Constraint, logits: NDArray[np.float32], token: int) -> Candidates:
        """A choice without tokens that complete a trigger and go on as the grammar does not."""
        logits = logits.copy()
        for _ in range(_OTHERS):
            logits[token] = -np.inf
            left = self._chain.choose(logits)
            token = left.chosen
            if constraint.allows(token):
                return left
        raise GrammarError("what a pattern of grammar_triggers matches does not fit the grammar; it must begin with that text")

    def _take(self, token: int) -> None:
        if self._constraint is not None:
            self._constraint.take(token)
        self._adjustments.push(token)
        self._chain.accept((token,))


def warm_up(model: TextModel) -> None:
    """Read what the ends of answers and grammars need of the vocabulary, so that the first request need not."""
    adjust.ends(model)
    vocabulary.of(model)


def default_sampling(metadata: Mapping[str, str]) -> dict[str, Any]:
    """The fields of `Sampling` that a GGUF sets (`general.sampling.*`). Raises FileError for a value that is not one."""
    out: dict[str, Any] = {}
    for key, (field, read) in _DEFAULTS.items():
        if (value := metadata.get(f"general.sampling.{key}")) is not None:
            try:
                out[field] = read(value)
            except (ValueError, InputError):
                expected = "a list of samplers" if field == "samplers" else "a number"
                raise FileError(
                    f"the model's general.sampling.{key} is {value!r}, which is not {expected}; convert it again"
                ) from None
    return out
