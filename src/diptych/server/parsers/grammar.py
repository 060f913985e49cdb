"""Grammars (GBNF) that hold a model to well-formed calls, and what may stand before them."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from diptych.errors import GrammarError
from diptych.llama import schema
from diptych.llama.schema import literal
from diptych.server.parsers.tool import Schema, Tool

GAP = r"[ \t\n]{0,20}"  # white space between the parts of a call; as a regular expression it means the same
_SYMBOL = re.compile(r'(#[^\n]*|"(?:\\.|[^"\\])*"|\[(?:\\.|[^\]\\])*\]|<[^>]*>)|[A-Za-z][A-Za-z0-9-]*')  # not: the name of a rule
_OWN = re.compile(r"root|r[0-9]+")  # rules that the grammar of each schema makes anew; all others are the same in all


class Rules:
    """The rules of a grammar. `strict`: a schema that cannot be kept is an error; otherwise any JSON of its kind will do."""

    def __init__(self, strict: bool) -> None:
        self._strict = strict
        self._rules: dict[str, str] = {}
        self._others: list[str] = []

    def add(self, name: str, body: str) -> str:
        """A rule; its name."""
        self._rules[name] = body
        return name

    def made(self, body: str) -> str:
        """A rule without a name of its own."""
        return self.add(f"part{len(self._rules)}", body)

    def several(self, one: str, between: str, parallel: bool) -> str:
        """One of a kind, or where `parallel` several with something between them."""
        return self.made(f"{one} ({between} {one})*" if parallel else one)

    def text(self, root: str) -> str:
        """The whole grammar."""
        rules = "".join(f"{name} ::= {body}\n" for name, body in {"root": root, **self._rules}.items())
        return "\n".join([rules, *self._others])

    def whole(self, gbnf: str) -> str:
        """Another grammar, its rules renamed; the name of the one it begins with."""
        self._others.append(_SYMBOL.sub(lambda m: m[1] or f"given-{m[0]}", gbnf))
        return "given-root"

    def arguments(self, tool: Tool) -> str:
        """A JSON object of a tool's arguments. Raises GrammarError where its schema cannot be kept and must be."""
        return self._json(tool, tool.parameters, f"arguments of {tool.name}", "object")

    def argument(self, tool: Tool, parameter: str) -> str:
        """One argument as JSON."""
        definitions = {key: tool.parameters[key] for key in ("$defs", "definitions") if key in tool.parameters}
        return self._json(tool, {**definitions, **tool.parameters["properties"][parameter]}, parameter, "value")

    def _json(self, tool: Tool, wanted: Schema, what: str, otherwise: str) -> str:
        try:
            gbnf = schema.to_gbnf(json.dumps(wanted))
        except GrammarError as error:
            if self._strict:
                raise GrammarError(f"{what}, tool {tool.name}: {error}") from error
            gbnf = schema.to_gbnf(json.dumps({"type": "object"} if otherwise == "object" else {}))
        at = len(self._rules)
        renamed = _SYMBOL.sub(lambda m: m[1] or (f"json{at}-{m[0]}" if _OWN.fullmatch(m[0]) else m[0]), gbnf)
        self._rules |= dict(line.split(" ::= ", 1) for line in renamed.splitlines())
        return f"json{at}-root"

    def without(self, words: Sequence[str], then: Sequence[str] = (), may_end: bool = True) -> str:
        """Text that holds none of the words; behind the i-th of them `then[i]` follows, if there are any.

        A rule for each beginning of a word that the text may end in. Where it may not end, a word must come.
        """
        starts = sorted({word[:n] for word in words for n in range(len(word))}, key=len)
        names = {start: f"text{len(self._rules) + i}" for i, start in enumerate(starts)}
        letters = sorted({c for word in words for c in word})
        for start, name in names.items():
            ways = {""} if may_end else set()
            plain = []
            for c in letters:
                found = next((i for i, word in enumerate(words) if (start + c).endswith(word)), None)
                if found is None:
                    after = next(start[i:] + c for i in range(len(start) + 1) if start[i:] + c in names or i == len(start))
                    if after in names:
                        ways.add(f"{literal(c)} {names[after]}")
                    else:
                        plain.append(c)
                elif then:
                    ways.add(f"{literal(c)} {then[found]}".rstrip())
            other = "".join(f"\\U{ord(c):08X}" for c in letters if c not in plain)
            self._rules[name] = " | ".join(sorted({*ways, f"[^{other}] {names['']}"}))
        return names[""]
