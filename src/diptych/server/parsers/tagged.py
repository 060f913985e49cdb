"""Calls whose arguments stand one by one in tags, as bare text: Qwen3-Coder's XML, and GLM's keys and values."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass

from diptych.llama.schema import literal
from diptych.server.parsers.call import Calls, Steps, escaped, typed
from diptych.server.parsers.grammar import Rules
from diptych.server.parsers.reader import Pieces, Reader, gathered
from diptych.server.parsers.tool import Tool

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"


@dataclass(frozen=True)
class Tagged:
    """What stands around the name of a call, around the name of an argument and around its value, and behind them all.

    Where a line end belongs to a tag, an answer may lack it. `gap` is GBNF for what may stand behind each of them.
    """

    openers: tuple[str, ...]
    ends_reasoning: bool
    tags: tuple[str, ...]
    name: tuple[str, str]
    key: tuple[str, str]
    value: tuple[str, str]
    end: str
    gap: str = ""
    begins_answer: bool = False

    def read(self, reader: Reader, calls: Calls) -> Steps:
        """Read one call."""
        yield from reader.word(_OPEN)
        yield from reader.space()
        if not (yield from reader.word(self.name[0])):
            return False
        name, found = yield from gathered(reader.until(self._behind_name))
        tool = calls.tools.get(name.strip())
        if tool is None or found is None:
            return False
        if found == self.name[1].strip():
            reader.take(len(found))
        yield calls.start(tool.name)
        yield from self._arguments(reader, calls, tool)
        for closing in self._ends:
            yield from reader.space()
            yield from reader.word(closing)
        return True

    @property
    def _ends(self) -> list[str]:
        """The tags that end a call."""
        return self.end.split("\n")

    @property
    def _behind_name(self) -> tuple[str, ...]:
        """What the name of a call may end at."""
        return (self.name[1].strip(),) if self.name[1].strip() else ("\n", self.key[0], _CLOSE)

    def _arguments(self, reader: Reader, calls: Calls, tool: Tool) -> Steps:
        """The object, a member at a time; it stays open where the text ends in a member."""
        between = ""
        yield calls.more("{")
        while True:
            reader.forget()
            yield from reader.space()
            if not (yield from reader.word(self.key[0])):
                break
            key, found = yield from gathered(reader.until((self.key[1].strip(),)))
            if found is None:
                return True
            reader.take(len(found))
            yield calls.more(f'{between}"{escaped(key.strip())}": ')
            between = ", "
            if not (yield from self._value(reader, calls, tool.kinds(key.strip()))):
                return True
        yield calls.more("}")
        return True

    def _value(self, reader: Reader, calls: Calls, kinds: frozenset[str]) -> Steps:
        """One value; True when its closing tag was there."""
        yield from self._open_value(reader)
        pieces = self._text(reader)
        if kinds != {"string"}:
            text, closed = yield from gathered(pieces)
            yield calls.more(typed(text, kinds))
            return closed is not None
        yield calls.more('"')
        while True:
            try:
                piece = next(pieces)
            except StopIteration as end:
                if end.value is not None:
                    yield calls.more('"')
                return end.value is not None
            if piece is None:
                yield None
            else:
                yield calls.more(escaped(piece))
                reader.forget()

    def _open_value(self, reader: Reader) -> Generator[None, None, None]:
        if opening := self.value[0].strip():
            yield from reader.space()
            yield from reader.word(opening)
        elif self.key[1].endswith("\n"):
            yield from reader.word("\n")

    def _text(self, reader: Reader) -> Pieces:
        """The text of a value. Its closing tag counts as such only where the call goes on behind it."""
        bare = self.value[1].strip()
        closings = tuple(dict.fromkeys((self.value[1].rstrip("\n"), bare)))
        while True:
            found = yield from reader.until(closings)
            if found is None:
                return None
            reader.take(len(found))
            mark = reader.at
            yield from reader.space()
            if (yield from reader.sees((self.key[0], *self._ends))):
                return found
            reader.at = mark
            yield found

    def rest(self, rules: Rules, tools: Sequence[Tool], parallel: bool) -> str:
        """Arguments in the order of the schema; those not required may be missing."""
        ahead = literal("\n") if self.name[0] else ""
        forms = " | ".join(self._form(rules, tool) for tool in tools)
        body = rules.made(f"{ahead} ({forms}) {literal(self.end)}")
        return rules.several(body, f'"\\n"? {literal(_OPEN)}', parallel)

    def _form(self, rules: Rules, tool: Tool) -> str:
        members = [self._member(rules, tool, key) for key in tool.parameters["properties"]]
        return rules.made(" ".join([literal(self.name[0] + tool.name + self.name[1]), self.gap, *members]))

    def _member(self, rules: Rules, tool: Tool, key: str) -> str:
        closing, kinds = literal(self.value[1]), tool.kinds(key)
        if kinds and "string" not in kinds:
            value = f"{rules.argument(tool, key)} {closing}"
        elif kinds and (listed := _listed(tool, key)):
            value = f"({' | '.join(map(literal, listed))}) {closing}"
        else:
            value = rules.without([self.value[1]], [""], may_end=False)
        opening = f"{literal(self.key[0] + key + self.key[1])} {self.gap} {literal(self.value[0]) if self.value[0] else ''}"
        member = rules.made(f"{opening} {value} {self.gap}")
        return member if key in tool.parameters.get("required", ()) else f"{member}?"


def _listed(tool: Tool, key: str) -> list[str]:
    """The texts that a parameter is limited to; none where it is not, or where values are no text."""
    schema = tool.parameters["properties"][key]
    values = [schema["const"]] if "const" in schema else schema.get("enum", [])
    return values if isinstance(values, list) and all(isinstance(value, str) for value in values) else []


XML = Tagged(
    openers=(_OPEN, "<function="),  # Qwen3-Coder forgets the first at times
    ends_reasoning=True,
    tags=(_OPEN, _CLOSE),
    name=("<function=", ">\n"),
    key=("<parameter=", ">\n"),
    value=("", "\n</parameter>\n"),
    end="</function>\n</tool_call>",
)
KEYS = Tagged(
    openers=(_OPEN,),
    ends_reasoning=False,
    tags=(_OPEN, _CLOSE, "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"),
    name=("", ""),
    key=("<arg_key>", "</arg_key>"),
    value=("<arg_value>", "</arg_value>"),
    end=_CLOSE,
    gap=r'"\n"?',
)
