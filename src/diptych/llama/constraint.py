"""A grammar that an answer has to follow, from its beginning or from the first text that a trigger matches."""

from __future__ import annotations

import codecs
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import llama_cpp.llama_cpp as lib
import numpy as np

from diptych.errors import GrammarError
from diptych.llama import grammar, log
from diptych.llama.candidates import Candidates
from diptych.llama.native import Native
from diptych.llama.trigger import Automaton, Search

if TYPE_CHECKING:
    from diptych.llama.model import TextModel

_bytes: WeakKeyDictionary[TextModel, dict[bytes, int]] = WeakKeyDictionary()


class Constraint:
    """Whether tokens may follow. `native` is llama.cpp's grammar, which holds unless one is `waiting` for a trigger.

    A token that the grammar refuses must never be accepted: llama.cpp ends the process then.
    """

    def __init__(self, model: TextModel, gbnf: str, triggers: tuple[str, ...] = ()) -> None:
        self._model, self._gbnf = model, gbnf
        self._waiting = _Waiting(Search(Automaton(triggers))) if triggers else None
        self._after: _Waiting | None = None  # the token that was asked for last
        self.native = load(model, gbnf)

    @property
    def waiting(self) -> bool:
        return self._waiting is not None

    def allows(self, token: int) -> bool:
        """Whether a token may follow; with a trigger that it completes, whether the matched text fits the grammar."""
        if self._waiting is None:
            return passes(self._model, self.native, token)
        if self._model.is_end(token):
            return True
        after = self._waiting.copy()
        matched = after.push(self._model.piece(token, special=True))
        self._after = after
        return matched is None or self._begin(matched)

    def take(self, token: int) -> None:
        """Go on behind the token that `allows` was asked for last, and allowed."""
        if self._model.is_end(token):
            return
        if self._waiting is None:
            lib.llama_sampler_accept(self.native.pointer, token)
        elif self._after is not None:
            self._waiting = None if self._after.matched else self._after

    def close(self) -> None:
        self.native.close()

    def _begin(self, text: bytes) -> bool:
        """Give the grammar the text that a trigger matched; a new one takes its place where it does not fit."""
        for token in _spelled(self._model, text):
            if not passes(self._model, self.native, token):
                self.native.close()
                self.native = load(self._model, self._gbnf)
                return False
            lib.llama_sampler_accept(self.native.pointer, token)
        return True


class _Waiting:
    """The answer's text as far as triggers have searched it."""

    def __init__(self, search: Search) -> None:
        self._search = search
        self._held = b""  # the beginning of a character
        self.matched = False

    def copy(self) -> _Waiting:
        out = _Waiting(self._search.copy())
        out._held = self._held
        return out

    def push(self, piece: bytes) -> bytes | None:
        """Take a token's bytes; the bytes from the beginning of the first match on, once there is one."""
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        text = decoder.decode(self._held + piece)
        self._held = decoder.getstate()[0]
        at = self._search.push(text)
        self.matched = at is not None
        return None if at is None else self._search.since(at).encode() + self._held


def load(model: TextModel, gbnf: str) -> Native:
    """A grammar in llama.cpp. Raises GrammarError for one it refuses; `grammar.check` must have seen it before."""
    with log.watch() as errors:
        pointer = lib.llama_sampler_init_grammar(model.vocab, gbnf.encode(), grammar.ROOT.encode())
    if not pointer:
        raise GrammarError(f"llama.cpp cannot use the grammar: {log.reason(errors)}")
    return Native("grammar", pointer, lib.llama_sampler_free, model)


def passes(model: TextModel, native: Native, token: int) -> bool:
    """Whether a grammar lets a token follow."""
    if b"\0" in model.piece(token, special=True):
        return False  # llama.cpp asks for what stands before the zero, and accepts all of it
    one = Candidates(np.array([token], np.int32), np.ones(1, np.float32))
    one.apply(native)
    return bool(np.isfinite(one.rows["logit"][0]))


def _spelled(model: TextModel, text: bytes) -> list[int]:
    """Tokens whose bytes are those of a text: the usual ones, or one a byte where a tokenizer adds or changes something."""
    try:
        tokens = model.tokenize(text.decode(), parse_special=False)
    except UnicodeDecodeError:
        tokens = []
    if b"".join(model.piece(t, special=True) for t in tokens) == text:
        return tokens
    if model not in _bytes:
        pieces = ((model.piece(t, special=True), t) for t in range(model.n_vocab))
        _bytes[model] = {piece: token for piece, token in pieces if len(piece) == 1}
    try:
        return [_bytes[model][text[i : i + 1]] for i in range(len(text))]
    except KeyError as error:
        raise GrammarError(f"the vocabulary has no token of the byte {error}, and a grammar trigger matched it") from None
