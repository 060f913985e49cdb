"""llama.cpp's samplers in a chain, composed as its own `common_sampler` does, so that a seed gives the same tokens."""

from __future__ import annotations

import ctypes
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import llama_cpp.llama_cpp as lib
import numpy as np
from numpy.typing import NDArray

from diptych.errors import InputError
from diptych.llama.candidates import Candidates, likeliest
from diptych.llama.native import Native, Pointer
from diptych.types import Sampling

if TYPE_CHECKING:
    from diptych.llama.model import TextModel

ORDER = ("penalties", "dry", "top_n_sigma", "top_k", "typ_p", "top_p", "min_p", "xtc", "temperature")  # common.h
_ALIASES = {"nucleus": "top_p", "temp": "temperature", "typ": "typ_p", "typical_p": "typ_p", "typical": "typ_p"}
_LETTERS = dict(zip("edskypmxt", ORDER, strict=True))  # common_sampler_type_to_chr
_MIROSTAT_M = 100  # likeliest tokens that Mirostat 1 estimates from, as in sampling.cpp
_MOST = 64  # samplers in a chain
_TRIED_FIRST = 512  # candidates that a grammar is tried on before the whole vocabulary
_BREAKERS_KEPT = 8  # DRY samplers of a model whose sequence breakers stay looked up

Restrict = Callable[[Candidates], None]

_dry: WeakKeyDictionary[TextModel, OrderedDict[tuple[object, ...], Native]] = WeakKeyDictionary()


class Chain(Native):
    """The samplers of one answer. It remembers the tokens it was told of for penalties, as far back as they look."""

    def __init__(self, model: TextModel, sampling: Sampling, seed: int) -> None:
        wanted = _wanted(sampling)
        super().__init__("sampler", _chain(model, sampling, wanted, seed), lib.llama_sampler_free, model)
        windows = [_n_last(model, n) for n in _windows(sampling, wanted)]
        self._window = _Window(max(windows)) if any(windows) else None
        self._n_best = _n_best(sampling, wanted)
        self._all: Candidates | None = None

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is chosen whatever came before."""
        return self._n_best == 1 and self._window is None

    def accept(self, tokens: Iterable[int]) -> None:
        """Let the penalties count tokens."""
        if self._window is not None:
            for token in tokens:
                lib.llama_sampler_accept(self.pointer, token)
                self._window.push(token)

    def choose(self, logits: NDArray[np.float32], restrict: Restrict | None = None) -> Candidates:
        """What is left of the candidates of (n_vocab,) logits, the chosen one marked; of those alone that `restrict`
        leaves a chance.

        The tokens that cannot be chosen are left out before, where that is sure to change nothing.
        """
        few = None
        if self._n_best is not None:
            few = self._shortlist(logits, self._n_best) if restrict is None else self._allowed(logits, self._n_best, restrict)
        if few is None:
            few = self._everything(logits)
            if restrict is not None:
                restrict(few)
        few.apply(self)
        return few

    def _shortlist(self, logits: NDArray[np.float32], n: int) -> Candidates | None:
        """Candidates that hold the `n` likeliest whatever the penalties do; None where that spares no work."""
        known = self._window.tokens() if self._window is not None else None
        ids = likeliest(logits, n + (0 if known is None else len(known)))
        if ids is None:
            return None
        if known is not None:
            ids = np.union1d(ids, known)
        return Candidates(ids, logits[ids])

    def _allowed(self, logits: NDArray[np.float32], n: int, restrict: Restrict) -> Candidates | None:
        """The likeliest candidates, where enough of them are left a chance that the others do not matter."""
        few = self._shortlist(logits, max(n, _TRIED_FIRST))
        if few is None:
            return None
        restrict(few)
        enough = n + (0 if self._window is None else len(self._window))
        return few if np.isfinite(few.rows["logit"]).sum() >= enough else None

    def _everything(self, logits: NDArray[np.float32]) -> Candidates:
        if self._all is None:
            self._all = Candidates(np.arange(len(logits), dtype=np.int32), logits)
        else:
            self._all.refill(logits)
        return self._all


class _Window:
    """The last `n` tokens, and which there are among them."""

    def __init__(self, n: int) -> None:
        self._last: deque[int] = deque(maxlen=n)
        self._counts: Counter[int] = Counter()

    def __len__(self) -> int:
        return len(self._counts)

    def push(self, token: int) -> None:
        if len(self._last) == self._last.maxlen:
            old = self._last[0]
            self._counts[old] -= 1
            if not self._counts[old]:
                del self._counts[old]
        self._last.append(token)
        self._counts[token] += 1

    def tokens(self) -> NDArray[np.int32]:
        """(n,) the different ones."""
        return np.fromiter(self._counts, np.int32, len(self._counts))


def names(samplers: str) -> tuple[str, ...]:
    """Samplers as a command line writes them: names between semicolons, or one letter each (`edskypmxt`)."""
    listed = tuple(name.strip() for name in samplers.split(";") if name.strip())
    letters = len(listed) == 1 and set(listed[0]) <= set(_LETTERS) and listed[0] not in _ALIASES
    return tuple(_LETTERS[c] for c in listed[0]) if letters else listed


def sampler(name: str) -> str:
    """llama.cpp's own name of a sampler, however it is written. Raises InputError for one there is not."""
    plain = name.lower().replace("-", "_")
    plain = _ALIASES.get(plain, plain)
    for known in ORDER:
        if plain in (known, known.replace("_", "")):
            return known
    raise InputError(f"there is no sampler {name[:40]!r}; there are {', '.join(ORDER)}")


def _wanted(sampling: Sampling) -> tuple[str, ...]:
    """The samplers asked for that do something, in order. Raises InputError for a name that is none."""
    asked = ORDER if sampling.samplers is None else tuple(map(sampler, sampling.samplers))
    if len(asked) > _MOST:
        raise InputError(f"samplers has {len(asked)} names; at most {_MOST} are taken")
    return tuple(name for name in asked if _ACTIVE[name](sampling)) if not sampling.mirostat else ()


_ACTIVE: dict[str, Callable[[Sampling], bool]] = {
    "penalties": lambda s: s.repeat_last_n != 0 and (s.repeat_penalty, s.frequency_penalty, s.presence_penalty) != (1, 0, 0),
    "dry": lambda s: s.dry_multiplier != 0 and s.dry_base >= 1 and s.dry_penalty_last_n != 0,
    "top_n_sigma": lambda s: s.top_n_sigma > 0,
    "top_k": lambda s: s.top_k > 0,
    "typ_p": lambda s: s.typical_p < 1,
    "top_p": lambda s: s.top_p < 1,
    "min_p": lambda s: s.min_p > 0,
    "xtc": lambda s: s.xtc_probability > 0 and s.xtc_threshold <= 0.5,
    "temperature": lambda _: True,
}


def _n_best(sampling: Sampling, wanted: tuple[str, ...]) -> int | None:
    """How many of the likeliest tokens decide; None where all may."""
    if sampling.mirostat:
        return None
    cold = "temperature" in wanted and sampling.temperature <= 0 and sampling.dynatemp_range <= 0
    if cold and not {"typ_p", "xtc"} & set(wanted):  # all others leave the likeliest
        return 1
    first = next((name for name in wanted if name not in ("penalties", "dry")), None)
    return sampling.top_k if first == "top_k" else None


def _windows(sampling: Sampling, wanted: tuple[str, ...]) -> list[int]:
    sizes = {"penalties": sampling.repeat_last_n, "dry": sampling.dry_penalty_last_n}
    return [n for name, n in sizes.items() if name in wanted]


def _n_last(model: TextModel, n: int) -> int:
    """How many tokens a penalty looks back, -1 meaning all. Memory is set aside for each, so a context is the most."""
    return model.n_ctx_train if n < 0 else min(n, model.n_ctx_train)


def _chain(model: TextModel, sampling: Sampling, wanted: tuple[str, ...], seed: int) -> Pointer:
    chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
    for pointer in _mirostat(model, sampling, seed) if sampling.mirostat else _usual(model, sampling, wanted, seed):
        lib.llama_sampler_chain_add(chain, pointer)
    return chain


def _mirostat(model: TextModel, s: Sampling, seed: int) -> list[Pointer]:
    """Mirostat stands in the place of all that cuts, and chooses too."""
    temp = lib.llama_sampler_init_temp(s.temperature)
    if s.mirostat == 1:
        n = model.n_vocab
        return [temp, lib.llama_sampler_init_mirostat(n, seed, s.mirostat_tau, s.mirostat_eta, _MIROSTAT_M)]
    return [temp, lib.llama_sampler_init_mirostat_v2(seed, s.mirostat_tau, s.mirostat_eta)]


def _usual(model: TextModel, s: Sampling, wanted: tuple[str, ...], seed: int) -> list[Pointer]:
    make: dict[str, Callable[[], Pointer]] = {
        "penalties": lambda: lib.llama_sampler_init_penalties(
            model.n_vocab, _n_last(model, s.repeat_last_n), s.repeat_penalty, s.frequency_penalty, s.presence_penalty
        ),
        "dry": lambda: _dry_sampler(model, s),
        "top_n_sigma": lambda: lib.llama_sampler_init_top_n_sigma(s.top_n_sigma),
        "top_k": lambda: lib.llama_sampler_init_top_k(s.top_k),
        "typ_p": lambda: lib.llama_sampler_init_typical(s.typical_p, s.min_keep),
        "top_p": lambda: lib.llama_sampler_init_top_p(s.top_p, s.min_keep),
        "min_p": lambda: lib.llama_sampler_init_min_p(s.min_p, s.min_keep),
        "xtc": lambda: lib.llama_sampler_init_xtc(s.xtc_probability, s.xtc_threshold, s.min_keep, seed),
        "temperature": lambda: lib.llama_sampler_init_temp_ext(s.temperature, s.dynatemp_range, s.dynatemp_exponent),
    }
    return [*(make[name]() for name in wanted), lib.llama_sampler_init_dist(seed)]


def _dry_sampler(model: TextModel, s: Sampling) -> Pointer:
    """A copy of one kept: to look sequence breakers up takes 10 ms each in a vocabulary of 150,000."""
    last_n = _n_last(model, s.dry_penalty_last_n)
    key = (s.dry_multiplier, s.dry_base, s.dry_allowed_length, last_n, s.dry_sequence_breakers)
    kept = _dry.setdefault(model, OrderedDict())
    if key not in kept:
        texts = [text.encode() for text in s.dry_sequence_breakers if text]
        array: Any = (ctypes.c_char_p * len(texts))(*texts)
        pointer = lib.llama_sampler_init_dry(
            model.vocab, s.dry_multiplier, s.dry_base, s.dry_allowed_length, last_n, array, len(texts)
        )
        kept[key] = Native("DRY sampler", pointer, lib.llama_sampler_free, model)
        if len(kept) > _BREAKERS_KEPT:
            kept.popitem(last=False)[1].close()
    return lib.llama_sampler_clone(kept[key].pointer)
