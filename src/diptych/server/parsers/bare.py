"""Calls as Llama 3 writes them: the answer is an object, `{"name": …, "parameters": {…}}`, or several with `;` between."""

from __future__ import annotations

from collections.abc import Sequence

from diptych.server.parsers.call import Calls, Steps
from diptych.server.parsers.grammar import GAP, Rules
from diptych.server.parsers.objects import object_rule, read_object
from diptych.server.parsers.reader import Reader
from diptych.server.parsers.tool import Tool

_TAG = "<|python_tag|>"


class Bare:
    """Objects without tags, at the start of the answer or behind `<|python_tag|>`."""

    openers = (_TAG,)
    begins_answer = True
    ends_reasoning = False
    tags = (_TAG,)

    def read(self, reader: Reader, calls: Calls) -> Steps:
        """Read objects as long as they are calls."""
        yield from reader.word(_TAG)
        found = False
        while True:
            yield from reader.space()
            mark = reader.at
            if not (yield from reader.sees(("{",))) or not (yield from read_object(reader, calls)):
                reader.at = mark
                return found
            found = True
            reader.forget()
            yield from reader.space()
            yield from reader.word(";")

    def rest(self, rules: Rules, tools: Sequence[Tool], parallel: bool) -> str:
        """Objects, the first one at once."""
        one = rules.made(" | ".join(object_rule(rules, tool, "parameters") for tool in tools))
        several = rules.several(one, f'{GAP} ";" {GAP}', parallel)
        return rules.made(f"{GAP} {several}")
