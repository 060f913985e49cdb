"""An answer as it comes, taken apart: reasoning, content, calls."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence

from diptych.server.parsers.call import Calls, Format
from diptych.server.parsers.delta import Content, Delta, Reasoning, joined
from diptych.server.parsers.reader import Reader
from diptych.server.parsers.thinking import ReasoningFormat, Thinking
from diptych.server.parsers.tool import Tool

Kind = Callable[[str], Delta]


class Parser:
    """Takes the text of one answer in any pieces; what it tells, joined, depends on the text alone.

    White space beside what is taken out of the text goes with it. What looks like a call and is none, or calls no
    known function, is text.
    """

    def __init__(self, thinking: Thinking, reasoning: ReasoningFormat, form: Format | None, tools: Sequence[Tool]) -> None:
        self._thinking, self._reasoning, self._form = thinking, reasoning, form
        self._reader, self._calls = Reader(), Calls(tools)
        self._space = ""  # read and not told: it is dropped where something is taken out behind it
        self._fresh = False  # nothing was told since something was taken out
        self._steps = self._answer()

    def push(self, text: str) -> list[Delta]:
        """Take more of the answer; what is sure now."""
        self._reader.add(text)
        return self._run()

    def finish(self) -> list[Delta]:
        """The answer is over: tell what was held back."""
        self._reader.ended = True
        return self._run()

    def _run(self) -> list[Delta]:
        found: list[Delta] = []
        for delta in self._steps:
            if delta is None:
                break
            found.append(delta)
        return [delta for delta in joined(found) if not isinstance(delta, Reasoning | Content) or delta.text]

    def _answer(self) -> Generator[Delta | None, None, None]:
        thinking = self._thinking
        if self._reasoning == "none":
            yield Content(thinking.opened)
        elif thinking.opened or (yield from self._opens()):
            yield from self._think()
        yield from self._speak()

    def _opens(self) -> Generator[None, None, bool]:
        """Go past the tag that reasoning begins with, if the answer begins with it."""
        yield from self._reader.space()
        found = yield from self._reader.word(self._thinking.open)
        if not found:
            self._reader.at = 0
        return found

    def _think(self) -> Generator[Delta | None, None, None]:
        """Reasoning up to its end, or up to a call that can end it."""
        legacy = self._reasoning == "deepseek-legacy"
        openers = self._form.openers if self._form and self._form.ends_reasoning else ()
        self._fresh = True
        yield Content(f"{self._thinking.open}\n" if legacy else "")
        while True:
            word, told = None, self._prose(Reasoning, (self._thinking.close, *openers))
            while True:
                try:
                    delta = next(told)
                except StopIteration as end:
                    word = end.value
                    break
                yield delta
                if legacy and isinstance(delta, Reasoning):
                    yield Content(delta.text)
            if word in openers and not (yield from self._called(Reasoning, word)):
                continue
            break
        if word == self._thinking.close:
            self._reader.take(len(word))
            yield Content(f"\n{word}\n\n" if legacy else "")
        elif word is None:
            yield Reasoning("" if self._fresh else self._space)
        self._taken_out()

    def _speak(self) -> Generator[Delta | None, None, None]:
        """Content and calls, to the end."""
        thinking, openers = self._thinking, self._form.openers if self._form else ()
        left_out = (*thinking.blocks, *thinking.markup) if self._reasoning != "none" else ()
        if self._form and self._form.begins_answer:
            yield from self._called(Content, "")
        while word := (yield from self._prose(Content, (*openers, *left_out))):
            if word in openers:
                yield from self._called(Content, word)
                continue
            self._reader.take(len(word))
            if word in thinking.blocks:
                self._taken_out()
        if not self._fresh:
            yield Content(self._space)

    def _called(self, kind: Kind, opener: str) -> Generator[Delta | None, None, bool]:
        """Read the call that begins here; what is none is said. True when it was one."""
        assert self._form is not None
        mark = self._reader.at
        if (yield from self._form.read(self._reader, self._calls)):
            self._taken_out()
            return True
        self._reader.at = mark
        yield kind(self._sure(self._reader.take(len(opener))))
        return False

    def _prose(self, kind: Kind, words: Sequence[str]) -> Generator[Delta | None, None, str | None]:
        """Text up to one of the words, without white space beside what is taken out."""
        pieces = self._reader.until(words)
        while True:
            try:
                piece = next(pieces)
            except StopIteration as end:
                found: str | None = end.value
                return found
            if piece is None:
                yield None
            else:
                yield kind(self._sure(piece))
                self._reader.forget()

    def _sure(self, text: str) -> str:
        """What can be told of the text so far: white space at its end is held back."""
        text = self._space + text
        if self._fresh:
            text = text.lstrip()
        told = text.rstrip()
        self._space = text[len(told) :]
        self._fresh = self._fresh and not told
        return told

    def _taken_out(self) -> None:
        self._space, self._fresh = "", True
