"""Calls as DeepSeek's models write them: a list in tags, each call with its name and its arguments."""

from __future__ import annotations

from collections.abc import Sequence

from diptych.server.parsers.call import Calls, Steps
from diptych.server.parsers.grammar import Rules
from diptych.server.parsers.reader import Reader, gathered
from diptych.server.parsers.tool import Tool

_OPEN, _CLOSE = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"  # as the models write it
_CALL, _BETWEEN, _END = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"
_FENCE = "```"


class DeepSeek:
    """`fenced`: arguments stand in a fence of Markdown, behind the word `function`, as R1 has it. Both are read."""

    openers = (_OPEN, _CALL)
    begins_answer = False
    ends_reasoning = False
    tags = (_OPEN, _CLOSE, _CALL, _BETWEEN, _END)

    def __init__(self, fenced: bool) -> None:
        self._fenced = fenced

    def read(self, reader: Reader, calls: Calls) -> Steps:
        """Read a list of calls."""
        yield from reader.word(_OPEN)
        found = False
        while True:
            yield from reader.space()
            mark = reader.at
            if not (yield from self._one(reader, calls)):
                reader.at = mark
                break
            found = True
            reader.forget()
        yield from reader.word(_CLOSE)
        return found

    def _one(self, reader: Reader, calls: Calls) -> Steps:
        if not (yield from reader.word(_CALL)):
            return False
        name, end = yield from gathered(reader.until((_BETWEEN, _END, "\n")))
        if end != _BETWEEN:
            return False
        reader.take(len(_BETWEEN))
        if name == "function":
            name, _ = yield from gathered(reader.until(("\n", _FENCE, "{", _END)))
        yield from reader.space()
        if fence := (yield from reader.word(_FENCE)):
            yield from reader.word("json")
            yield from reader.space()
        if name.strip() not in calls.tools or not (yield from reader.sees(("{",))) or reader.at == len(reader.text):
            return False
        yield calls.start(name.strip())
        yield from calls.stream(reader, reader.value())
        yield from reader.space()
        if fence:
            yield from reader.word(_FENCE)
            yield from reader.space()
        yield from reader.word(_END)
        return True

    def rest(self, rules: Rules, tools: Sequence[Tool], parallel: bool) -> str:
        """Calls in the form that the template writes."""
        before, behind = (f'"function{_BETWEEN}"', f'"\\n{_FENCE}json\\n"'), f'"\\n{_FENCE}"'
        forms = [
            f'{before[0]} "{tool.name}" {before[1]} {rules.arguments(tool)} {behind}'
            if self._fenced
            else f'"{tool.name}{_BETWEEN}" {rules.arguments(tool)}'
            for tool in tools
        ]
        one = rules.made(f'"{_CALL}" ({" | ".join(forms)}) "{_END}"')
        several = rules.several(one, r'"\n"?', parallel)
        return rules.made(f'{several} "{_CLOSE}"')
