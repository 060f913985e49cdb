"""Calls as JSON objects: a name, and arguments which are streamed where they stand behind it."""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping

from diptych.server.parsers.call import Calls, Steps
from diptych.server.parsers.grammar import GAP, Rules
from diptych.server.parsers.reader import Reader, gathered
from diptych.server.parsers.tool import Tool

_ARGUMENTS = ("arguments", "parameters")


def read_object(reader: Reader, calls: Calls) -> Steps:
    """A call such as `{"name": "f", "arguments": {…}}`, of a known function. What else the object holds is dropped.

    In another order, or within another object as OpenAI writes it, the call is told when all of it is there.
    """
    mark = reader.at
    if (name := (yield from _head(reader))) in calls.tools and name:
        yield calls.start(name)
        yield from calls.stream(reader, reader.value())
        yield from _close(reader)
        return True
    reader.at = mark
    if not (yield from _may_be_call(reader)):
        return False
    reader.at = mark
    found = _call((yield from reader.whole_value()))
    if found is None or found[0] not in calls.tools:
        return False
    yield calls.start(found[0])
    yield calls.more(found[1])
    return True


def object_rule(rules: Rules, tool: Tool, key: str = "arguments", behind: str = "") -> str:
    """GBNF for such an object; `behind` stands between the arguments and the brace."""
    colon, comma = f'{GAP} ":" {GAP}', f'{GAP} "," {GAP}'
    name = f'"\\"{tool.name}\\""'
    return rules.made(
        f'"{{" {GAP} "\\"name\\"" {colon} {name} {comma} "\\"{key}\\"" {colon} {rules.arguments(tool)} {behind} {GAP} "}}"'
    )


def _head(reader: Reader) -> Generator[None, None, str]:
    """Go up to the arguments, which must be an object; the name, or "" where something else stands here."""
    if not ((yield from reader.word("{")) and (yield from _key(reader, ("name",))) and (yield from reader.word('"'))):
        return ""
    name, end = yield from gathered(reader.until(('"', "\\", "\n")))
    if end != '"':
        return ""
    reader.take(1)
    yield from reader.space()
    if not ((yield from reader.word(",")) and (yield from _key(reader, _ARGUMENTS)) and (yield from reader.sees(("{",)))):
        return ""
    return name if reader.at < len(reader.text) else ""


def _may_be_call(reader: Reader) -> Generator[None, None, bool]:
    """Whether an object begins as one, so that other JSON is not held back."""
    yield from reader.word("{")
    yield from reader.space()
    keys = yield from reader.sees([f'"{key}"' for key in ("name", "type", "function", "id", *_ARGUMENTS)])
    return keys and reader.at < len(reader.text)


def _key(reader: Reader, names: tuple[str, ...]) -> Generator[None, None, bool]:
    """Go past a key of an object and its colon, if it is one of these."""
    yield from reader.space()
    for name in names:
        if (yield from reader.word(f'"{name}"')):
            yield from reader.space()
            colon = yield from reader.word(":")
            yield from reader.space()
            return colon
    return False


def _close(reader: Reader) -> Generator[None, None, None]:
    """Go past the rest of an object behind a value in it, as far as it is one."""
    mark = reader.at
    while True:
        yield from reader.space()
        if (yield from reader.word("}")):
            return
        if not (yield from reader.word(",")):
            break
        yield from reader.space()
        yield from reader.whole_value()
        yield from reader.space()
        if not (yield from reader.word(":")):
            break
        yield from reader.space()
        yield from reader.whole_value()
    reader.at = mark


def _call(text: str) -> tuple[str, str] | None:
    """The name and the arguments of a call in JSON; None of what is none."""
    try:
        given = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if isinstance(given, Mapping) and isinstance(given.get("function"), Mapping):
        given = given["function"]
    if not isinstance(given, Mapping) or not isinstance(given.get("name"), str):
        return None
    arguments: object = next((given[key] for key in _ARGUMENTS if key in given), None)
    if isinstance(arguments, str):
        return given["name"], arguments
    return given["name"], json.dumps({} if arguments is None else arguments, ensure_ascii=False)
