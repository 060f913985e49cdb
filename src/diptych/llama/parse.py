"""How far a text has come in a grammar of llama.cpp's, within a bounded time.

llama.cpp tries a token on a grammar by trying each way to read it, to its end. Where there are a few ways at each
character a long token has millions, and it would be tried for minutes. Fed byte by byte, ways that come to the same are
joined. So a token is taken as its bytes, and where all tokens have to be tried, the short ones go first and those that
there is no time for are refused.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import llama_cpp.llama_cpp as lib
import numpy as np

from diptych.errors import GrammarError
from diptych.llama import grammar, log, vocabulary
from diptych.llama.candidates import Candidates
from diptych.llama.native import Native

if TYPE_CHECKING:
    from diptych.llama.model import TextModel

_SECONDS, _SECONDS_A_TOKEN = 2.0, 0.05  # that a grammar may take in all, and more for each token
_SECONDS_FOR_ALL = 0.1  # to try all tokens; 150,000 of them on a plain grammar take 0.015
_REPLAYED = 2000  # bytes that are sooner fed again than a grammar's state is copied


class Parse:
    """A grammar in llama.cpp, and the text it was fed. Times are of this thread's own, whatever else the machine does.

    A byte that the grammar refuses must never be accepted: llama.cpp ends the process then. So it is held twice, and one
    of them goes ahead. What takes time raises GrammarError where there are too many ways to read the text.
    """

    def __init__(self, model: TextModel, gbnf: str) -> None:
        self._model, self._gbnf = model, gbnf
        self._words = vocabulary.of(model)
        self._one = Candidates(np.zeros(1, np.int32), np.ones(1, np.float32))
        self._left = _SECONDS
        self._fed = bytearray()
        self._native = self._load()
        self._ahead: Native | None = None
        self._tried = b""  # what the one ahead was fed beyond the other

    def allows(self, text: bytes) -> bool:
        """Whether a text may follow."""
        if self._ahead is None or self._tried:
            with self._timed():
                self._ahead = self._copy()
        self._tried = text
        for byte in text:
            with self._timed():
                if not self._passes(self._ahead, token := self._token(byte)):
                    self._ahead.close()
                    self._ahead, self._tried = None, b""
                    return False
                lib.llama_sampler_accept(self._ahead.pointer, token)
        return True

    def may_end(self, token: int) -> bool:
        """Whether an end may follow."""
        return self._passes(self._native, token)

    def take(self) -> None:
        """Go on behind the text that `allows` was asked for last, and allowed."""
        self._left = min(self._left + _SECONDS_A_TOKEN, _SECONDS)
        with self._timed():
            for byte in self._tried:
                lib.llama_sampler_accept(self._native.pointer, self._token(byte))
        self._fed += self._tried
        self._tried = b""

    def restrict(self, candidates: Candidates) -> None:
        """Take all chance from the candidates that may not follow, and from long ones that there is no time to try."""
        rows = candidates.rows
        started = time.thread_time()
        with self._timed():
            for places in self._words.by_length(rows["id"]):
                if time.thread_time() - started > _SECONDS_FOR_ALL:
                    rows["logit"][places] = -np.inf
                    continue
                some = Candidates(rows["id"][places], rows["logit"][places])
                some.apply(self._native)
                rows["logit"][places] = some.rows["logit"]

    def close(self) -> None:
        """Free what llama.cpp holds."""
        for native in (self._native, self._ahead):
            if native is not None:
                native.close()

    def _passes(self, native: Native, token: int) -> bool:
        self._one.rows[0] = token, 1.0, 0.0
        self._one.apply(native)
        return bool(self._one.rows["logit"][0] > 0)

    def _token(self, byte: int) -> int:
        token = self._words.byte.get(byte)
        if token is None:
            raise GrammarError(f"the model's vocabulary has no token for the byte {byte}, and an answer by a grammar needs it")
        return token

    def _copy(self) -> Native:
        if len(self._fed) > _REPLAYED:
            return Native("grammar", lib.llama_sampler_clone(self._native.pointer), lib.llama_sampler_free, self._model)
        native = self._load()
        for byte in self._fed:
            lib.llama_sampler_accept(native.pointer, self._token(byte))
        return native

    def _load(self) -> Native:
        return load(self._model, self._gbnf)

    @contextmanager
    def _timed(self) -> Iterator[None]:
        started = time.thread_time()
        yield
        self._left -= time.thread_time() - started
        if self._left < 0:
            raise GrammarError(
                "the text so far can be read in too many ways of the grammar; make its alternatives begin differently"
            )


def load(model: TextModel, gbnf: str) -> Native:
    """A grammar in llama.cpp. Raises GrammarError for one it refuses; `grammar.check` must have seen it before."""
    with log.watch() as errors:
        pointer = lib.llama_sampler_init_grammar(model.vocab, gbnf.encode(), grammar.ROOT.encode())
    if not pointer:
        raise GrammarError(f"llama.cpp cannot use the grammar: {log.reason(errors)}")
    return Native("grammar", pointer, lib.llama_sampler_free, model)
