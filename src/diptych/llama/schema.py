"""JSON schema → GBNF. Every text the grammar allows satisfies the schema; a keyword it cannot keep is an error.

It may allow less than the schema does: properties come in the order they are declared, none is added to an object that
declares some (unless additionalProperties says so), white space is short, and `format`s other than dates, times and
UUIDs are taken for the annotations they are. The converter that ships with llama-cpp-python is not used: it loses
backslashes in literals, allows line breaks inside strings, ignores bounds, mixes up references that end alike, and
turns a maxLength of 20,000 into as many parentheses, which crash llama.cpp. One liberty: oneOf is read as anyOf.
"""

from __future__ import annotations

import json
from typing import Any, cast
from urllib.parse import unquote

from diptych.errors import GrammarError
from diptych.llama import numeral, pattern
from diptych.llama.merge import merged

Schema = dict[str, Any]  # what json.loads gives: the wire format

MAX_BYTES = 200_000
MAX_DEPTH = 100  # of nested schemas
MAX_PARTS = 20_000  # schemas looked at; parts that are combined are looked at once a combination

_REFUSED = {
    "multipleOf", "uniqueItems", "minProperties", "maxProperties", "patternProperties", "propertyNames", "dependentRequired",
    "dependentSchemas", "dependencies", "if", "then", "else", "not", "contains", "unevaluatedItems", "unevaluatedProperties",
    "$dynamicRef", "$recursiveRef",
}  # fmt: skip
_ALLOWED_FALSE = ("uniqueItems", "unevaluatedItems", "unevaluatedProperties")  # false is what the grammar does anyway
_KINDS = {
    "object": ("properties", "required", "additionalProperties"),
    "array": ("items", "prefixItems", "minItems", "maxItems", "additionalItems"),
    "string": ("pattern", "minLength", "maxLength"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
}
_PYTHON = {"string": str, "boolean": bool, "null": type(None), "object": dict, "array": list}
_FORMATS = ("date", "time", "date-time", "uuid")

# Rules of JSON itself. A \u escape is of no surrogate: half a pair is no character, and a pair would count as two.
_CHAR = pattern.bare()
_JSON = {
    "ws": r'| " " | "\n"{1,2} [ \t]{0,20}',
    "hex": "[0-9a-fA-F]",
    "char": rf'{_CHAR} | "\\" (["\\/bfnrt] | "u" ([0-9abcefABCEF] hex{{3}} | [dD] [0-7] hex{{2}}))',
    "string": r'"\"" char* "\""',
    "number": r'"-"? ("0" | [1-9] [0-9]{0,15}) ("." [0-9]{1,16})? ([eE] [-+]? [0-9]{1,2})?',
    "integer": r'"-"? ("0" | [1-9] [0-9]{0,15})',
    "boolean": '"true" | "false"',
    "null": '"null"',
    "value": "object | array | string | number | boolean | null",
    "object": r'"{" ws (string ws ":" ws value ws ("," ws string ws ":" ws value ws)*)? "}"',
    "array": r'"[" ws (value ws ("," ws value ws)*)? "]"',
    "day": '"0" [1-9] | "1" [0-9] | "2" [0-9]',
    "month-day": '("0" [13578] | "1" [02]) "-" (day | "3" [01]) | ("0" [469] | "11") "-" (day | "30") | "02-" day',
    "date": '[0-9]{4} "-" month-day',
    "hour-minute": '([01] [0-9] | "2" [0-3]) ":" [0-5] [0-9]',
    "time": 'hour-minute ":" [0-5] [0-9] ("." [0-9]{3})? ("Z" | [-+] hour-minute)',
    "date-time": 'date "T" time',
    "uuid": 'hex{8} "-" hex{4} "-" hex{4} "-" hex{4} "-" hex{12}',
}


def to_gbnf(text: str) -> str:
    """A JSON schema as JSON text → a grammar with the start symbol root. Raises GrammarError that names the place."""
    if len(text) > MAX_BYTES:
        raise GrammarError(f"the JSON schema has {len(text)} characters; at most {MAX_BYTES} are taken")
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise GrammarError(f"the JSON schema is not JSON: {error}") from None
    return _Converter(schema).grammar()


class _Converter:
    """Makes a rule of every schema; a schema that is referred to, once."""

    def __init__(self, root: Any) -> None:  # noqa: ANN401 - JSON
        self.root = root
        self.rules = dict(_JSON)
        self.refs: dict[str, str] = {}
        self.depth = self.made = 0

    def grammar(self) -> str:
        """All rules as one text."""
        self.refs["#"] = "root"
        self.rules["root"] = self.expression(self.root, "#")
        return "".join(f"{name} ::= {body}\n" for name, body in self.rules.items())

    def rule(self, schema: Any, at: str) -> str:  # noqa: ANN401 - JSON
        """The name of a rule for a schema."""
        return self.add(self.expression(schema, at))

    def add(self, body: str) -> str:
        """The name of a rule with this body; a body that is a name stands for itself."""
        if body in self.rules:
            return body
        name = f"r{len(self.rules)}"
        self.rules[name] = body
        return name

    def expression(self, schema: Any, at: str) -> str:  # noqa: ANN401 - JSON
        """GBNF for a schema that stands at a JSON pointer."""
        if schema is True:
            return "value"
        if not isinstance(schema, dict):
            raise GrammarError(f"the JSON schema at {at} is {_short(schema)}, which nothing satisfies or which is no schema")
        self.made += 1
        if self.depth >= MAX_DEPTH or self.made > MAX_PARTS:
            raise GrammarError(f"the JSON schema is nested over {MAX_DEPTH} deep, or has over {MAX_PARTS} parts, at {at[:60]}")
        for keyword in sorted(_REFUSED & set(schema)):
            if not (keyword in _ALLOWED_FALSE and schema[keyword] is False):
                raise GrammarError(f"the JSON schema at {at} uses {keyword}, which a grammar cannot keep; leave it out")
        self.depth += 1
        try:
            return self._combined(schema, at)
        except (TypeError, ValueError, AttributeError, KeyError) as error:
            raise GrammarError(f"the JSON schema at {at} is not sound: {error}") from error
        finally:
            self.depth -= 1

    def _combined(self, schema: Schema, at: str) -> str:
        """Resolve what a schema is made of others by, then look at its type."""
        if "$ref" in schema:
            rest = {k: v for k, v in schema.items() if k != "$ref"}
            if not _constrains(rest):
                return self._referred(schema["$ref"], at)
            return self.expression(merged(self._resolve(schema["$ref"], at), rest, at), at)
        if "allOf" in schema:
            whole = {k: v for k, v in schema.items() if k != "allOf"}
            for i, part in enumerate(schema["allOf"]):
                whole = merged(whole, self._followed(part, at), f"{at}/allOf/{i}")
            return self.expression(whole, at)
        for keyword in "anyOf", "oneOf":
            if keyword in schema:
                rest = {k: v for k, v in schema.items() if k != keyword}
                parts = [
                    (self._part(rest, p, f"{at}/{keyword}/{i}"), f"{at}/{keyword}/{i}") for i, p in enumerate(schema[keyword])
                ]
                return self._either(parts, at)
        if "const" in schema or "enum" in schema:
            return self._listed(schema, at)
        return self._typed(schema, at)

    def _part(self, rest: Schema, part: Any, at: str) -> Any:  # noqa: ANN401 - JSON
        """One alternative, together with what stands beside the list of them."""
        return merged(rest, self._followed(part, at), at) if _constrains(rest) else part

    def _followed(self, schema: Any, at: str) -> Any:  # noqa: ANN401 - JSON
        """What a schema that only refers to another comes to."""
        for _ in range(MAX_DEPTH):
            if not (isinstance(schema, dict) and "$ref" in schema and not _constrains(schema)):
                return schema
            schema = self._resolve(schema["$ref"], at)
        raise GrammarError(f"the JSON schema at {at} refers to itself and to nothing else")

    def _either(self, parts: list[tuple[Any, str]], at: str) -> str:
        if not parts:
            raise GrammarError(f"the JSON schema at {at} lists no alternative")
        return " | ".join(self.rule(schema, place) for schema, place in parts)

    def _listed(self, schema: Schema, at: str) -> str:
        values = [schema["const"]] if "const" in schema else schema["enum"]
        types = schema.get("type", [])
        types = [types] if isinstance(types, str) else types
        values = [v for v in values if not types or any(_is(v, t) for t in types)]
        if not values:
            raise GrammarError(f"the JSON schema at {at} lists no value of its type")
        return " | ".join(literal(json.dumps(v, ensure_ascii=False)) for v in values)

    def _typed(self, schema: Schema, at: str) -> str:
        types = schema.get("type")
        if isinstance(types, list):
            return self._either([({**schema, "type": t}, at) for t in types], at)
        if types is None:
            types = next((kind for kind, words in _KINDS.items() if any(w in schema for w in words)), None)
            types = "string" if types is None and schema.get("format") in _FORMATS else types
        match types:
            case None:
                return "value"
            case "object":
                return self._object(schema, at)
            case "array":
                return self._array(schema, at)
            case "string":
                return self._string(schema, at)
            case "number" | "integer":
                return numeral.bounded(schema, at, whole=types == "integer") or types
            case "boolean" | "null":
                return str(types)
        raise GrammarError(f"the JSON schema at {at} has the type {_short(types)}, which JSON has not")

    def _object(self, schema: Schema, at: str) -> str:
        """Members in order. `after` rules stand behind a member and begin with a comma, `first` ones behind the brace."""
        properties = dict(schema.get("properties", {}))
        more = schema.get("additionalProperties", not properties and "required" not in schema)
        required = set(schema.get("required", ()))
        for name in sorted(required - set(properties)):
            properties[name] = more if isinstance(more, dict) else True
        if not properties and more is True:
            return "object"
        extra = None
        if more is not False:
            key = self._other_key(list(properties))
            extra = self.add(f'{key} ws ":" ws {self.rule(more, f"{at}/additionalProperties")} ws')
        after = self.add(f'("," ws {extra})*') if extra else ""
        first = self.add(f"({extra} {after})?") if extra else ""
        for name, value in reversed(properties.items()):
            body = self.rule(value, f"{at}/properties/{name}")
            member = self.add(f'{literal(json.dumps(name, ensure_ascii=False))} ws ":" ws {body} ws')
            if name in required:
                first, after = self.add(f"{member} {after}"), self.add(f'"," ws {member} {after}')
            else:
                first = self.add(f"{member} {after} | {first}" if first else f"({member} {after})?")
                after = self.add(f'("," ws {member})? {after}')
        return f'"{{" ws {first} "}}"'

    def _other_key(self, names: list[str]) -> str:
        """A key that is none of `names`, without escapes, which could spell one of them: a rule a node of their trie."""
        body = {
            c: self._rest_of_key([n[1:] for n in names if n.startswith(c)])
            for c in sorted({n[0] for n in names if n and pattern.plain(n)})
        }
        others = f"{pattern.bare(body)} {self.add(f'{_CHAR}*')}"
        empty = [] if "" in names else [r'"\"\""']
        some = [rf'"\"" {literal(c)} {rest} "\""' for c, rest in body.items()]
        return self.add(" | ".join([*empty, *some, rf'"\"" {others} "\""']))

    def _rest_of_key(self, names: list[str]) -> str:
        """What may follow in a key when none of `names` may."""
        names = [n for n in names if pattern.plain(n)]
        nexts = sorted({n[0] for n in names if n})
        options = [f"{literal(c)} {self._rest_of_key([n[1:] for n in names if n.startswith(c)])}" for c in nexts]
        options.append(f"{pattern.bare(nexts)} {self.add(f'{_CHAR}*')}")
        return self.add(" | ".join(([] if "" in names else [""]) + options))

    def _array(self, schema: Schema, at: str) -> str:
        low, high = int(schema.get("minItems", 0)), schema.get("maxItems")
        first, more = schema.get("prefixItems", []), schema.get("items")
        if isinstance(more, list):  # as tuples were written before 2020-12
            first, more = more, schema.get("additionalItems")
        if not first:
            more = True if more is None else more
        elif more is None:
            more = low > len(first)  # no more than declared, unless more are due
        if (high is not None and (high < low or high < 0)) or (more is False and low > len(first)):
            raise GrammarError(f"the JSON schema at {at} wants {low} to {high} items, which cannot be")
        first = first[:high]
        items = [self.rule(s, f"{at}/prefixItems/{i}") + " ws" for i, s in enumerate(first)]
        low, high = max(0, low - len(first)), None if high is None else high - len(first)
        if more is False or high == 0:
            return f'"[" ws {""" "," ws """.join(items)} "]"'
        item = self.rule(more, f"{at}/items") + " ws"
        if items:
            return f'"[" ws {""" "," ws """.join(items)} {self._times(f"""("," ws {item})""", low, high)} "]"'
        rest = self._times(f'("," ws {item})', max(0, low - 1), None if high is None else high - 1)
        return f'"[" ws {item} {rest} "]"' if low else f'"[" ws ({item} {rest})? "]"'

    def _string(self, schema: Schema, at: str) -> str:
        low, high = int(schema.get("minLength", 0)), schema.get("maxLength")
        if "pattern" in schema:
            if low or high is not None:
                raise GrammarError(f"the JSON schema at {at} has a pattern and a length; put the length into the pattern")
            return rf'"\"" {self.add(pattern.to_gbnf(schema["pattern"], at, self.add))} "\""'
        if schema.get("format") in _FORMATS:
            return rf'"\"" {schema["format"]} "\""'
        if high is not None and high < low:
            raise GrammarError(f"the JSON schema at {at} wants {low} to {high} characters, which cannot be")
        return rf'"\"" {self._times("char", low, high)} "\""' if low or high is not None else "string"

    def _times(self, item: str, low: int, high: int | None, step: int = 1000) -> str:
        """`item` from `low` to `high` times; in rules of a thousand where llama.cpp would not count as far."""
        if max(low, high or 0) <= step:
            return f"{item}{{{low},{'' if high is None else high}}}" if high != 0 else ""
        if max(low, high or 0) > step * step:
            raise GrammarError(
                f"the JSON schema wants up to {max(low, high or 0)} characters or items; at most {step * step} can be"
            )
        many = self.add(f"{item}{{{step}}}")
        always = (
            f"{many}{{{low // step}}} {self._times(item, low % step, low % step)}" if low >= step else self._times(item, low, low)
        )
        if high is None:
            return f"{always} {item}*"
        n, rest = divmod(high - low, step)
        if n == 0:
            return f"{always} {self._times(item, 0, rest)}"
        return f"{always} ({many}{{0,{n - 1}}} {item}{{0,{step - 1}}} | {many}{{{n}}} {self._times(item, 0, rest)})"

    def _referred(self, ref: str, at: str) -> str:
        if ref not in self.refs:
            name = self.refs[ref] = f"r{len(self.rules)}"
            self.rules[name] = ""  # taken before it is made, so that a schema may hold itself
            self.rules[name] = self.expression(self._resolve(ref, at), ref)
        return self.refs[ref]

    def _resolve(self, ref: str, at: str) -> Any:  # noqa: ANN401 - JSON
        """What a JSON pointer points at. Nothing is ever fetched."""
        if not ref.startswith("#"):
            raise GrammarError(
                f"the JSON schema at {at} refers to {_short(ref)}; only references within the schema (#/…) are taken"
            )
        found = self.root
        for step in ref[1:].split("/")[1:]:
            key = unquote(step).replace("~1", "/").replace("~0", "~")
            try:
                found = found[int(key)] if isinstance(found, list) else found[key]
            except (KeyError, IndexError, ValueError, TypeError):
                raise GrammarError(f"the JSON schema at {at} refers to {_short(ref)}, which is not there") from None
        return found


def literal(text: str) -> str:
    """Text in GBNF quotes."""
    return '"' + "".join(pattern.in_literal(c) for c in text) + '"'


def _constrains(schema: Schema) -> bool:
    """Whether a schema says anything besides its notes and what it refers to."""
    return any(
        k in schema for k in ("type", "enum", "const", "anyOf", "oneOf", "allOf", *(w for v in _KINDS.values() for w in v))
    )


def _is(value: object, kind: str) -> bool:
    if kind in ("number", "integer"):
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return number and (kind == "number" or float(cast(float, value)).is_integer())
    return isinstance(value, _PYTHON.get(kind, ()))


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) < 60 else text[:57] + "…"
