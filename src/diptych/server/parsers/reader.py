"""Text that comes in pieces, read as if it were whole: whoever cannot be sure yet asks for more.

What a step finds depends on the text alone, never on where it was cut. Steps are generators: they yield None to ask
for more text, and text that is sure as soon as it is.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence

Asking = Generator[None, None, bool]  # asks for more until it knows: did it find what it is for?
Pieces = Generator[str | None, None, str | None]

_SPACE = " \t\r\n"
_SCALAR_ENDS = ",]} \t\r\n<["


class Reader:
    """Text so far, and how far it is read. `ended` tells that no more will come."""

    def __init__(self) -> None:
        self.text = ""
        self.at = 0
        self.ended = False

    def add(self, text: str) -> None:
        self.text += text

    def forget(self) -> None:
        """Drop what is read; marks taken before are no longer good."""
        self.text, self.at = self.text[self.at :], 0

    def take(self, n: int) -> str:
        """The next `n` characters, which must be there."""
        self.at += n
        return self.text[self.at - n : self.at]

    def word(self, word: str) -> Asking:
        """Go past a word, if it stands here."""
        while not self.ended and len(self.text) - self.at < len(word) and word.startswith(self.text[self.at :]):
            yield
        if not self.text.startswith(word, self.at):
            return False
        self.at += len(word)
        return True

    def space(self) -> Asking:
        """Go past white space; there may be none."""
        start = self.at
        while True:
            while self.at < len(self.text) and self.text[self.at] in _SPACE:
                self.at += 1
            if self.ended or self.at < len(self.text):
                return self.at > start
            yield

    def sees(self, words: Sequence[str]) -> Asking:
        """Whether one of the words stands here; or the end of all text."""
        while True:
            left = self.text[self.at :]
            if any(left.startswith(word) for word in words) or (self.ended and not left):
                return True
            if self.ended or not any(word.startswith(left) for word in words):
                return False
            yield

    def until(self, words: Sequence[str]) -> Pieces:
        """Text up to the first of the words, which is returned and not read; None where the text ends before."""
        while True:
            found = [(at, -len(word), word) for word in words if (at := self.text.find(word, self.at)) >= 0]
            if found:
                at, _, word = min(found)
                if at > self.at:
                    yield self.take(at - self.at)
                return word
            sure = len(self.text) - self.at - (0 if self.ended else self._doubtful(words))
            if sure:
                yield self.take(sure)
            if self.ended:
                return None
            yield None

    def _doubtful(self, words: Sequence[str]) -> int:
        """The length of the longest end of the text that one of the words begins with."""
        left = len(self.text) - self.at
        sizes = (n for word in words for n in range(1, min(len(word), left + 1)) if self.text.endswith(word[:n]))
        return max(sizes, default=0)

    def value(self) -> Pieces:
        """One JSON value. Brackets are counted and not checked, so that what is malformed inside comes out as it is."""
        value = _Value()
        while True:
            if n := value.length(self.text, self.at):
                yield self.take(n)
            if value.whole or self.ended:
                return None
            yield None

    def whole_value(self) -> Generator[None, None, str]:
        """One JSON value, when all of it is there."""
        return (yield from gathered(self.value()))[0]


def gathered(pieces: Pieces) -> Generator[None, None, tuple[str, str | None]]:
    """The text of all pieces, and what they return."""
    text = ""
    while True:
        try:
            piece = next(pieces)
        except StopIteration as end:
            return text, end.value
        if piece is None:
            yield
        else:
            text += piece


class _Value:
    """How far a JSON value goes. It begins with the first character that is looked at."""

    def __init__(self) -> None:
        self.whole = False
        self._first = ""
        self._depth = 0
        self._quoted = self._escaped = False

    def length(self, text: str, start: int) -> int:
        """How many characters from `start` belong to it; `whole` when its end is among them, or right behind."""
        at = start
        while at < len(text) and not self.whole:
            c = text[at]
            self._first = self._first or c
            if self._first not in '{["' and c in _SCALAR_ENDS:
                self.whole = True
                break
            self._count(c)
            at += 1
        return at - start

    def _count(self, c: str) -> None:
        if self._quoted:
            self._quoted = self._escaped or c != '"'
            self._escaped = not self._escaped and c == "\\"
        elif c == '"':
            self._quoted = True
        else:
            self._depth += (c in "{[") - (c in "}]")
        self.whole = self._first in '{["' and not self._quoted and self._depth <= 0
