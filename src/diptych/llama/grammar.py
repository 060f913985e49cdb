"""Grammars (GBNF) and JSON schemas, bounded and checked before native code sees them.

llama.cpp parses grammars by recursion, looks for left recursion without remembering where it has been, and prints
what it dislikes to stderr. So a grammar is read here first: an error has a line and a column, and what would crash or
hang the process is refused. The limits are well below what was measured to break (20,000 nested parentheses and a
chain of 100,000 rules overflow an 8 MiB stack; 65,000 ways to begin take 13 s). Single tokens (`<[5]>`, `<name>`) are
refused too: where one may follow text, llama.cpp lets any token begin with that text, and aborts when it is taken.
"""

from __future__ import annotations

import re
from functools import lru_cache

from diptych.errors import GrammarError
from diptych.llama import ambiguity, schema
from diptych.llama.pattern import Ranges, others
from diptych.llama.rules import EMPTY, Rules
from diptych.types import Sampling

ROOT = "root"
MAX_BYTES = 200_000
MAX_DEPTH = 100  # of nested parentheses
MAX_TIMES = 2000  # of a repetition; llama.cpp drops a larger upper bound without a word (MAX_REPETITION_THRESHOLD)
MAX_SIZE = 500_000  # elements once repetitions are written out, eight bytes each

_NAME = re.compile(r"[A-Za-z0-9-]+")
_SPACE, _LINES = re.compile(r"(?:[ \t]|#[^\r\n]*)*"), re.compile(r"(?:[ \t\r\n]|#[^\r\n]*)*")
_CHARACTER = re.compile(r"""\\(?:x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|[trn\\"\[\]-])|[^\\]""", re.S)
_ESCAPES = {"t": 9, "r": 13, "n": 10}
_TO = -1  # the - of a range
_TIMES = re.compile(r"\{[ \t]*(\d+)[ \t]*(?:(,)[ \t]*(\d*)[ \t]*)?\}")


def of(sampling: Sampling) -> str | None:
    """The GBNF that a request asks for, checked; None where it asks for none. Raises GrammarError."""
    if sampling.grammar is not None and sampling.json_schema is not None:
        raise GrammarError("both a grammar and a JSON schema were given; give one")
    gbnf = schema.to_gbnf(sampling.json_schema) if sampling.json_schema is not None else sampling.grammar
    if gbnf is not None:
        check(gbnf)
    elif sampling.grammar_triggers:
        raise GrammarError("there are grammar_triggers and no grammar; give one, or none of them")
    return gbnf


@lru_cache(maxsize=32)
def check(gbnf: str) -> None:
    """Raise GrammarError, with line and column, for a grammar that llama.cpp cannot take or must not be given."""
    if (size := len(gbnf.encode("utf-8", "replace"))) > MAX_BYTES:
        raise GrammarError(f"the grammar has {size} bytes; at most {MAX_BYTES} are taken")
    if (bad := re.search("[\0\ud800-\udfff]", gbnf)) is not None:
        raise GrammarError(f"the grammar holds {bad[0]!r} at {_place(gbnf, bad.start())}, which is not text")
    rules = _Reader(gbnf).read()
    rules.check(ROOT, lambda offset: _place(gbnf, offset))
    if (rule := ambiguity.endless(rules)) is not None:
        raise GrammarError(
            f"the grammar's rule {rules.name(rule)} can be come to in ever more ways by the same text; "
            "let its alternatives begin differently, and what they begin with alike stand before them once"
        )


class _Reader:
    """Reads GBNF as llama.cpp does, as `Rules` that the checks go over."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.rules = Rules()

    def read(self) -> Rules:
        self._skip(_LINES)
        while self.at < len(self.text):
            self._rule()
        if not self.rules.alternatives:
            raise GrammarError("the grammar is empty; it needs a rule root ::= …")
        return self.rules

    def _rule(self) -> None:
        start = self.at
        name = self._match(_NAME, "the name of a rule (letters, digits and -)")[0]
        self._skip(_SPACE)
        if not self.text.startswith("::=", self.at):
            raise self._error("expected ::= behind the name of a rule")
        self.at += 3
        self._skip(_LINES)
        number = self.rules.number(name, start)
        if number in self.rules.alternatives:
            raise self._error(f"the rule {name} is defined twice", start)
        self._alternates(number, 0)
        if self.at < len(self.text) and self.text[self.at] not in "\r\n":
            raise self._error("expected the end of the line; a rule goes on behind | or inside parentheses")
        self._skip(_LINES)

    def _alternates(self, number: int, depth: int) -> None:
        found = [self._sequence(depth)]
        while self.text.startswith("|", self.at):
            self.at += 1
            self._skip(_LINES)
            found.append(self._sequence(depth))
        self.rules.alternatives[number] = found

    def _sequence(self, depth: int) -> list[int]:
        """The symbols of one alternative. `weight` is llama.cpp's count of the rules that a repetition would copy."""
        out: list[int] = []
        weight = size = 1
        while self.at < len(self.text) and (c := self.text[self.at]) not in "|)\r\n":
            start = self.at
            if c in "*+?{":
                weight, size = self._repetition(out, weight, size)
            else:
                before, n_rules = self.rules.size, self.rules.symbols
                self.rules.size += 1
                out.append(self._symbol(c, depth))
                weight, size = max(1, self.rules.symbols - n_rules) if c == "(" else 1, self.rules.size - before
            if self.rules.size > MAX_SIZE:
                raise self._error(f"the grammar has over {MAX_SIZE} elements once repetitions are written out", start)
            self._skip(_LINES if depth else _SPACE)
        return out

    def _symbol(self, c: str, depth: int) -> int:
        if c == '"':
            found = self._characters('"', "text in quotes")
            return self.rules.text(tuple([(code, code)] for code in found))
        if c == "[":
            return self._set()
        if c == ".":
            self.at += 1
            return self.rules.text((others([]),))
        if c == "(":
            return self._group(depth)
        if c in "<!":
            raise self._error('single tokens are not taken here; write the text of the token in quotes, as in "<|im_end|>"')
        start = self.at
        return self.rules.number(self._match(_NAME, 'a rule, "text", [characters], . or (')[0], start)

    def _set(self) -> int:
        negated = self.text.startswith("[^", self.at)
        self.at += negated
        found = self._characters("]", "characters in brackets")
        if not found:
            raise self._error("brackets without a character in them", self.at - 2)
        ranges = _ranges(found)
        return self.rules.text((others(ranges) if negated else ranges,))

    def _characters(self, end: str, what: str) -> list[int]:
        """The characters up to the closing `end` of a literal or a set, which is passed; a bare - in a set is _TO."""
        start = self.at
        self.at += 1
        found: list[int] = []
        while not self.text.startswith(end, self.at):
            if self.at >= len(self.text):
                raise self._error(f"{what} without an end", start)
            match = self._match(
                _CHARACTER, 'a character, or an escape: \\x.. \\u.... \\U........ \\t \\r \\n \\\\ \\" \\[ \\] \\-'
            )
            found.append(_TO if match[0] == "-" and end == "]" else _code(match[0]))
        self.at += 1
        self.rules.size += len(found)
        return found

    def _group(self, depth: int) -> int:
        if depth >= MAX_DEPTH:
            raise self._error(f"parentheses are nested over {MAX_DEPTH} deep")
        start = self.at
        self.at += 1
        self._skip(_LINES)
        number = self.rules.made()
        self._alternates(number, depth + 1)
        if not self.text.startswith(")", self.at):
            raise self._error("a ( without its )", start)
        self.at += 1
        return number

    def _repetition(self, out: list[int], weight: int, size: int) -> tuple[int, int]:
        """Put what a repetition makes in the place of the symbol before it."""
        start = self.at
        low, high = self._times()
        if not out or out[-1] == EMPTY:
            raise self._error("nothing stands before the repetition", start)
        times = high or low or 1
        if max(low, high or 0) > MAX_TIMES or weight * times > MAX_TIMES:
            raise self._error(f"repeated over {MAX_TIMES} times (nested repetitions multiply)", start)
        copies = low + (1 if high is None else high - low)
        self.rules.size += copies * (size + 3)
        out[-1] = self.rules.repeated(out[-1], low, high, start)
        return weight * times, copies * (size + 3)

    def _times(self) -> tuple[int, int | None]:
        c = self.text[self.at]
        if c != "{":
            self.at += 1
            return {"*": (0, None), "+": (1, None), "?": (0, 1)}[c]
        start = self.at
        match = self._match(_TIMES, "{n}, {n,} or {n,m}")
        if max(len(match[1]), len(match[3] or "")) > 9:
            raise self._error(f"repeated over {MAX_TIMES} times", start)
        low = int(match[1])
        high = low if match[2] is None else int(match[3]) if match[3] else None
        if high is not None and high < low:
            raise self._error(f"repeated at least {low} and at most {high} times", start)
        return low, high

    def _skip(self, space: re.Pattern[str]) -> None:
        match = space.match(self.text, self.at)
        assert match is not None  # it matches nothing at all too
        self.at = match.end()

    def _match(self, pattern: re.Pattern[str], what: str) -> re.Match[str]:
        match = pattern.match(self.text, self.at)
        if match is None:
            raise self._error(f"expected {what}")
        self.at = match.end()
        return match

    def _error(self, what: str, at: int | None = None) -> GrammarError:
        return GrammarError(f"the grammar at {_place(self.text, self.at if at is None else at)}: {what}")


def _code(written: str) -> int:
    """The code point of a character as it is written in a grammar."""
    if len(written) == 1:
        return ord(written)
    return _ESCAPES[written[1]] if written[1] in _ESCAPES else int(written[2:], 16) if len(written) > 2 else ord(written[1])


def _ranges(found: list[int]) -> Ranges:
    """What stands in brackets, as llama.cpp reads it: a - between two characters is a range, elsewhere itself."""
    out: Ranges = []
    i = 0
    while i < len(found):
        low = ord("-") if found[i] == _TO else found[i]
        if i + 2 < len(found) and found[i + 1] == _TO:
            out.append((low, ord("-") if found[i + 2] == _TO else found[i + 2]))
            i += 3
        else:
            out.append((low, low))
            i += 1
    return out


def _place(text: str, offset: int) -> str:
    line = text.count("\n", 0, offset) + 1
    return f"line {line}, column {offset - text.rfind(chr(10), 0, offset)}"
