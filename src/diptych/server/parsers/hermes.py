"""Calls as Hermes and Qwen write them: `<tool_call>{"name": …, "arguments": {…}}</tool_call>`."""

from __future__ import annotations

from collections.abc import Sequence

from diptych.server.parsers.call import Calls, Steps
from diptych.server.parsers.grammar import Rules
from diptych.server.parsers.objects import object_rule, read_object
from diptych.server.parsers.reader import Reader
from diptych.server.parsers.tool import Tool

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"


class Hermes:
    """JSON in tags; several objects may stand in one pair of them."""

    openers = (_OPEN,)
    begins_answer = False
    ends_reasoning = False
    tags = (_OPEN, _CLOSE)

    def read(self, reader: Reader, calls: Calls) -> Steps:
        """Read the calls of one pair of tags."""
        yield from reader.word(_OPEN)
        yield from reader.space()
        if not (yield from read_object(reader, calls)):
            return False
        while True:
            reader.forget()
            yield from reader.space()
            mark = reader.at
            if (yield from reader.word(_CLOSE)):
                return True
            if not (yield from reader.sees(("{",))) or not (yield from read_object(reader, calls)):
                reader.at = mark
                return True

    def rest(self, rules: Rules, tools: Sequence[Tool], parallel: bool) -> str:
        """Objects on lines of their own."""
        one = rules.made(" | ".join(object_rule(rules, tool) for tool in tools))
        body = rules.made(f'"\\n"? {one} "\\n"? "{_CLOSE}"')
        return rules.several(body, f'"\\n"? "{_OPEN}"', parallel)
