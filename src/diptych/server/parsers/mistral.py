"""Calls as Mistral's models write them: `[TOOL_CALLS]`, then an array of objects, or a name and its arguments."""

from __future__ import annotations

from collections.abc import Generator, Sequence

from diptych.server.parsers.call import Calls, Steps
from diptych.server.parsers.grammar import GAP, Rules
from diptych.server.parsers.objects import object_rule, read_object
from diptych.server.parsers.reader import Reader, gathered
from diptych.server.parsers.tool import Tool

_OPEN, _ID, _ARGS = "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"


class Mistral:
    """`named`: the later form, `[TOOL_CALLS]name[ARGS]{…}`, with `[CALL_ID]id` between where `with_id`. Both are read."""

    openers = (_OPEN,)
    begins_answer = False
    ends_reasoning = False
    tags = (_OPEN, _ID, _ARGS)

    def __init__(self, named: bool, with_id: bool) -> None:
        self._named, self._with_id = named, with_id

    def read(self, reader: Reader, calls: Calls) -> Steps:
        """Read an array of calls, or one named call."""
        yield from reader.word(_OPEN)
        yield from reader.space()
        if (yield from reader.word("[")):
            return (yield from self._array(reader, calls))
        if (name := (yield from _name(reader))) not in calls.tools:
            return False
        yield calls.start(name)
        yield from calls.stream(reader, reader.value())
        return True

    def _array(self, reader: Reader, calls: Calls) -> Steps:
        found = False
        while True:
            yield from reader.space()
            mark = reader.at
            if not (yield from reader.sees(("{",))) or not (yield from read_object(reader, calls)):
                reader.at = mark
                break
            found = True
            reader.forget()
            yield from reader.space()
            if not (yield from reader.word(",")):
                break
        yield from reader.word("]")
        return found

    def rest(self, rules: Rules, tools: Sequence[Tool], parallel: bool) -> str:
        """Calls in the form that the template writes, with ids where it has them."""
        if self._named:
            between = f'("{_ID}" [a-zA-Z0-9]{{9}})? ' if self._with_id else ""
            one = rules.made(" | ".join(f'"{t.name}" {between}"{_ARGS}" {rules.arguments(t)}' for t in tools))
            return rules.several(one, f'"{_OPEN}"', parallel)
        id_rule = f'({GAP} "," {GAP} "\\"id\\"" {GAP} ":" {GAP} "\\"" [a-zA-Z0-9]{{9}} "\\"")?'
        one = rules.made(" | ".join(object_rule(rules, tool, behind=id_rule) for tool in tools))
        several = rules.several(one, f'{GAP} "," {GAP}', parallel)
        return rules.made(f'{GAP} "[" {GAP} {several} {GAP} "]"')


def _name(reader: Reader) -> Generator[None, None, str]:
    """The name of a call, when its arguments follow; "" otherwise."""
    name, end = yield from gathered(reader.until((_ID, _ARGS, "{", "\n")))
    if end == _ID:
        reader.take(len(_ID))
        _, end = yield from gathered(reader.until((_ARGS, "{", "\n")))
    if end == _ARGS:
        reader.take(len(_ARGS))
        yield from reader.space()
        end = "{" if (yield from reader.sees(("{",))) else None
    return name.strip() if end == "{" and reader.at < len(reader.text) else ""
