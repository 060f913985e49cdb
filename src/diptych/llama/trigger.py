"""Regular expressions that wait in an answer's text, character by character.

A pattern is made into the states of a finite automaton, all of which are followed at once: a character costs as many
steps as the pattern has states, whatever the pattern and the text are. Python's `re` may take for ever over some, and
would begin anew at each token.
"""

from __future__ import annotations

import importlib
import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from diptych.errors import GrammarError
from diptych.llama.pattern import Ranges, in_brackets, others

MAX_PATTERNS = 32
MAX_LENGTH = 500  # characters of a pattern
MAX_STATES = 1000  # of all patterns, once their repetitions are written out

_parser: Any = importlib.import_module("re._parser")  # the standard library's own reading of an expression
_BEGINNINGS = ("AT_BEGINNING", "AT_BEGINNING_STRING")


@dataclass
class _State:
    """What stands at a place of a pattern: a character of `ranges`, or nothing; and the states behind it."""

    ranges: Ranges | None = None
    beginning: bool = False  # only where the text begins
    then: list[int] = field(default_factory=list)


class Automaton:
    """Patterns as states; `first` are those they begin in, the last state of all is the end of a match."""

    def __init__(self, patterns: Iterable[str]) -> None:
        self.states: list[_State] = []
        listed = tuple(patterns)
        if len(listed) > MAX_PATTERNS:
            raise GrammarError(f"there are {len(listed)} grammar_triggers; at most {MAX_PATTERNS} are taken")
        self.end = self._add(_State())
        try:
            self.first = [self._sequence(_parsed(pattern), self.end) for pattern in listed]
        except RecursionError:
            raise GrammarError("grammar_triggers has a pattern with too many groups in groups") from None

    def _add(self, state: _State) -> int:
        if len(self.states) >= MAX_STATES:
            raise GrammarError(f"grammar_triggers have over {MAX_STATES} states once repetitions are written out")
        self.states.append(state)
        return len(self.states) - 1

    def _sequence(self, parsed: Any, then: int) -> int:  # noqa: ANN401 - the parser's own tree
        """The first state of what leads to the state `then`; built from the end."""
        for op, value in reversed(list(parsed)):
            then = self._item(op.name, value, then)
        return then

    def _item(self, op: str, value: Any, then: int) -> int:  # noqa: ANN401 - the parser's own tree
        match op:
            case "LITERAL":
                return self._add(_State([(value, value)], then=[then]))
            case "NOT_LITERAL":
                return self._add(_State(others([(value, value)]), then=[then]))
            case "ANY":
                return self._add(_State(others([(10, 10)]), then=[then]))
            case "IN":
                return self._add(_State(in_brackets(value, "grammar_triggers"), then=[then]))
            case "BRANCH":
                return self._add(_State(then=[self._sequence(branch, then) for branch in value[1]]))
            case "SUBPATTERN" if not value[1] and not value[2]:
                return self._sequence(value[3], then)
            case "MAX_REPEAT" | "MIN_REPEAT":
                return self._repeat(value[0], value[1], value[2], then)
            case "AT" if value.name in _BEGINNINGS:
                return self._add(_State(beginning=True, then=[then]))
        raise GrammarError(f"grammar_triggers has a pattern with {op.lower().replace('_', ' ')}, which is not taken")

    def _repeat(self, low: int, high: Any, body: Any, then: int) -> int:  # noqa: ANN401 - the parser's own tree
        if high == _parser.MAXREPEAT:
            loop = self._add(_State(then=[then]))
            self.states[loop].then.append(self._sequence(body, loop))
            then = loop
        else:
            for _ in range(int(high) - int(low)):
                then = self._add(_State(then=[then, self._sequence(body, then)]))
        for _ in range(int(low)):
            n = len(self.states)
            then = self._sequence(body, then)
            if n == len(self.states):  # nothing, however often
                break
        return then


def _parsed(pattern: str) -> Any:  # noqa: ANN401 - the parser's own tree
    if len(pattern) > MAX_LENGTH:
        raise GrammarError(f"grammar_triggers has a pattern of {len(pattern)} characters; at most {MAX_LENGTH} are taken")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "possible nested set" and the like: the meaning is plain here
            parsed = _parser.parse(pattern)
    except (re.error, RecursionError, OverflowError, TypeError) as error:
        raise GrammarError(f"grammar_triggers has {pattern[:80]!r}, which is not a sound pattern: {error}") from None
    if parsed.state.flags & ~re.UNICODE:
        raise GrammarError(f"grammar_triggers has {pattern[:80]!r}; flags such as (?i) are not taken")
    return parsed


class Search:
    """The search for the first match in a text that comes in pieces. `text` is what may still be part of one."""

    def __init__(self, automaton: Automaton) -> None:
        self._automaton = automaton
        self._live: dict[int, int] = {}  # state → where the match that is there began
        self._n = 0  # characters so far
        self.text = ""
        self._dropped = 0  # characters in front of `text`
        if self._closure(dict.fromkeys(automaton.first, 0), 0).get(automaton.end) is not None:
            raise GrammarError("a pattern of grammar_triggers matches without any text; leave it out to begin at once")

    def copy(self) -> Search:
        """One that goes on from here on its own."""
        out = object.__new__(Search)
        out.__dict__.update(self.__dict__)
        return out

    def push(self, piece: str) -> int | None:
        """Take text; where the first match in all of it begins, once there is one."""
        self.text += piece
        for c in piece:
            at = self._step(ord(c))
            self._n += 1
            if at is not None:
                return at
        keep = min(self._live.values(), default=self._n)
        self.text = self.text[keep - self._dropped :]
        self._dropped = keep
        return None

    def since(self, at: int) -> str:
        """The text from a character on that no match has passed."""
        return self.text[at - self._dropped :]

    def _step(self, c: int) -> int | None:
        states = self._automaton.states
        here = dict(self._live)
        for state in self._automaton.first:
            here.setdefault(state, self._n)
        after: dict[int, int] = {}
        for state, start in self._closure(here, self._n).items():
            ranges = states[state].ranges
            if ranges is not None and any(low <= c <= high for low, high in ranges):
                for then in states[state].then:
                    after[then] = min(start, after.get(then, start))
        self._live = after
        return self._closure(after, self._n + 1).get(self._automaton.end) if after else None

    def _closure(self, begun: dict[int, int], n: int) -> dict[int, int]:
        """The states reached without a character more, each with the earliest beginning."""
        states = self._automaton.states
        out: dict[int, int] = {}
        todo = sorted(begun.items(), key=lambda item: -item[1])
        while todo:
            state, start = todo.pop()
            if state in out or (states[state].beginning and n):
                continue
            out[state] = start
            if states[state].ranges is None:
                todo += [(then, start) for then in states[state].then]
        return out
