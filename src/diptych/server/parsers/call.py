"""What the formats of calls have in common: how a call is told as deltas, and how its arguments become JSON."""

from __future__ import annotations

import json
import secrets
import string
from collections.abc import Generator, Sequence
from typing import Protocol

from diptych.server.parsers.delta import CallArguments, CallStart, Delta
from diptych.server.parsers.grammar import Rules
from diptych.server.parsers.reader import Pieces, Reader
from diptych.server.parsers.tool import Tool

Steps = Generator[Delta | None, None, bool]  # None asks for more text; False: what stands here is no call

_LETTERS = string.ascii_letters + string.digits


def new_id() -> str:
    """An id for a call."""
    return "call_" + "".join(secrets.choice(_LETTERS) for _ in range(24))


class Format(Protocol):
    """How a model writes calls.

    `openers` are what they begin with, the usual one first; where `begins_answer`, an answer may be one without it.
    Where `ends_reasoning`, a call may stand in reasoning that was not closed. `tags` may be special tokens.
    """

    @property
    def openers(self) -> tuple[str, ...]: ...
    @property
    def begins_answer(self) -> bool: ...
    @property
    def ends_reasoning(self) -> bool: ...
    @property
    def tags(self) -> tuple[str, ...]: ...

    def read(self, reader: Reader, calls: Calls) -> Steps:
        """Read what stands here if it is a call, or several that belong together."""
        ...

    def rest(self, rules: Rules, tools: Sequence[Tool], parallel: bool) -> str:
        """GBNF for calls of these tools, from behind the first opener on; one call, or several where `parallel`.

        Raises GrammarError for arguments that cannot be kept to, where the rules are strict.
        """
        ...


class Calls:
    """The calls of one answer, numbered and named."""

    def __init__(self, tools: Sequence[Tool]) -> None:
        self.tools = {tool.name: tool for tool in tools}
        self._n = 0

    def start(self, name: str) -> CallStart:
        self._n += 1
        return CallStart(self._n - 1, new_id(), name)

    def more(self, text: str) -> CallArguments:
        """More arguments of the call that was started last."""
        return CallArguments(self._n - 1, text)

    def stream(self, reader: Reader, pieces: Pieces) -> Steps:
        """Arguments as they come."""
        for piece in pieces:
            if piece is not None:
                yield self.more(piece)
                reader.forget()
            else:
                yield None
        return True


def typed(text: str, kinds: frozenset[str]) -> str:
    """An argument written as bare text, as the JSON that its schema asks for; a string where it is nothing else."""
    bare = text.strip()
    if kinds != {"string"}:
        words = {"true": "true", "false": "false", "null": "null", "none": "null"}
        for candidate in (bare, words.get(bare.lower(), bare)):
            kind = _kind_of(candidate)
            if kind and (not kinds or kind in kinds or (kind == "integer" and "number" in kinds)):
                return candidate
    return json.dumps(text, ensure_ascii=False)


def _kind_of(text: str) -> str | None:
    """The type of JSON text; None of what is none, and of texts in quotes: as bare text the quotes belong to them."""
    try:
        value = json.loads(text, parse_constant=lambda _: 1 / 0)
    except (ValueError, RecursionError, ZeroDivisionError):
        return None
    match value:
        case bool():
            return "boolean"
        case None:
            return "null"
        case int():
            return "integer"
        case float():
            return "integer" if value.is_integer() else "number"
        case list():
            return "array"
        case dict():
            return "object"
    return None


def escaped(text: str) -> str:
    """Text for the inside of a JSON string."""
    return json.dumps(text, ensure_ascii=False)[1:-1]
