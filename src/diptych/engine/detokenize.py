"""Bytes of tokens → text that can be shown: whole characters only, and nothing that may begin a stop string."""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import Iterable


class Detokenizer:
    """The text of one answer. `stopped_by` is the stop string that came first, which is not given out, nor is what follows."""

    def __init__(self, stop: Iterable[str] = ()) -> None:
        self.stopped_by: str | None = None
        self._stop = _Stops(stop)
        self._place = 0  # in the stop strings, behind all text so far
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""

    @property
    def stopped(self) -> bool:
        return self.stopped_by is not None

    def push(self, piece: bytes, final: bool = False) -> str:
        """Take the bytes of a token; the text that is now sure. `final` gives out what was held back too."""
        if self.stopped:
            return ""
        new = self._decoder.decode(piece, final)
        text = self._held + new
        for i, c in enumerate(new if self._stop else ""):
            self._place = self._stop.behind(self._place, c)
            self.stopped_by = self._stop.complete[self._place]
            if self.stopped_by is not None:
                return text[: len(self._held) + i + 1 - len(self.stopped_by)]
        sure = len(text) - (0 if final else self._stop.depth[self._place])
        self._held = text[sure:]
        return text[:sure]


class _Stops:
    """Stop strings as a trie whose places know their longest other end that is a place too (Aho and Corasick, 1975).

    A character costs the same however many there are. `depth` is how much of a stop string a place holds, `complete` the
    longest stop string that ends there.
    """

    def __init__(self, stop: Iterable[str]) -> None:
        self._next: list[dict[str, int]] = [{}]
        self._shorter = [0]
        self.depth = [0]
        self.complete: list[str | None] = [None]
        for text in filter(None, stop):
            self._add(text)
        self._link()

    def __bool__(self) -> bool:
        return len(self.depth) > 1

    def behind(self, place: int, c: str) -> int:
        """The place a character further."""
        while c not in self._next[place] and place:
            place = self._shorter[place]
        return self._next[place].get(c, 0)

    def _add(self, text: str) -> None:
        place = 0
        for c in text:
            if c not in self._next[place]:
                self._next[place][c] = len(self.depth)
                self._next.append({})
                self._shorter.append(0)
                self.depth.append(self.depth[place] + 1)
                self.complete.append(None)
            place = self._next[place][c]
        self.complete[place] = text

    def _link(self) -> None:
        """Shorter places first: a place's other ends are those of the place before it, one character further."""
        todo = deque(self._next[0].values())
        while todo:
            place = todo.popleft()
            for c, below in self._next[place].items():
                self._shorter[below] = self.behind(self._shorter[place], c)
                self.complete[below] = self.complete[below] or self.complete[self._shorter[below]]
                todo.append(below)
