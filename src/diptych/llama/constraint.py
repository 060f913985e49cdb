"""A grammar that an answer has to follow, from its beginning or from the first text that a trigger matches."""

from __future__ import annotations

import codecs
from typing import TYPE_CHECKING

from diptych.llama import vocabulary
from diptych.llama.candidates import Candidates
from diptych.llama.parse import Parse
from diptych.llama.trigger import Automaton, Search

if TYPE_CHECKING:
    from diptych.llama.model import TextModel


class Constraint:
    """Whether tokens may follow. While it is `waiting` for a trigger all may that do not complete one wrongly.

    All but `close` raise GrammarError where there are too many ways to read the text.
    """

    def __init__(self, model: TextModel, gbnf: str, triggers: tuple[str, ...] = ()) -> None:
        self._model = model
        self._pieces = vocabulary.of(model).pieces
        self._parse = Parse(model, gbnf)
        self._waiting = _Waiting(Search(Automaton(triggers))) if triggers else None
        self._asked = -1  # the token that `allows` was asked for last, and what comes of it while waiting
        self._after: _Waiting | None = None

    @property
    def waiting(self) -> bool:
        return self._waiting is not None

    def allows(self, token: int) -> bool:
        """Whether a token may follow; with a trigger that it completes, whether the matched text fits the grammar."""
        self._asked = token
        if self._model.is_end(token):
            return self.waiting or self._parse.may_end(token)
        piece = self._pieces[token]
        if self._waiting is None:
            return bool(piece) and self._parse.allows(piece)
        self._after = self._waiting.copy()
        matched = self._after.push(piece)
        return matched is None or self._parse.allows(matched)

    def take(self, token: int) -> None:
        """Go on behind the token that `allows` was asked for last, and allowed."""
        assert token == self._asked
        if self._model.is_end(token):
            return
        if self._after is None:
            self._parse.take()
        elif self._after.matched:
            self._waiting = self._after = None
            self._parse.take()
        else:
            self._waiting = self._after

    def restrict(self, candidates: Candidates) -> None:
        """Take all chance from the candidates that may not follow."""
        self._parse.restrict(candidates)

    def close(self) -> None:
        """Free what llama.cpp holds of it."""
        self._parse.close()


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
