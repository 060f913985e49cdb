"""JSON as people write configurations: with comments. What is wrong in it is told with its key and line."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from diptych.errors import FileError

T = TypeVar("T", str, int, float, bool, list[Any], dict[str, Any])
Keys = tuple[str | int, ...]  # the way from the outermost object to a value: names, and places in arrays

MAX_BYTES = 32 << 20  # the list of a model's tensors takes 100 kB
_STRING = r'"(?:[^"\\\n]|\\.)*"'
_COMMENT = re.compile(rf"({_STRING})|//[^\n]*|#[^\n]*|/\*.*?\*/", re.DOTALL)
_TOKEN = re.compile(rf"{_STRING}|[{{}}\[\],:\n]")
_NAMES = {str: "a string", int: "a whole number", float: "a number", bool: "true or false", list: "an array", dict: "an object"}
_ABSENT: Any = object()


@dataclass(frozen=True)
class Section:
    """An object of a JSON file, whose values are read by name and type."""

    path: Path
    values: dict[str, Any]
    lines: dict[Keys, int] = field(repr=False)
    keys: Keys = ()

    def get(self, name: str, kind: type[T], default: T = _ABSENT) -> T:
        """A value of a type; a float may be a whole number. Raises FileError when it is missing or of another type."""
        value = self.values.get(name)
        if value is None:
            if default is not _ABSENT:
                return default
            raise self.error(f"there is no {_dotted((*self.keys, name))}, {_NAMES[kind]}; add it")
        if not isinstance(value, (int, float) if kind is float else kind) or (isinstance(value, bool) and kind is not bool):
            raise self.wrong(name, f"{_NAMES[kind]} is expected")
        return float(value) if kind is float else value  # type: ignore[arg-type, return-value]

    def numbers(self, name: str) -> tuple[float, ...]:
        """An array of numbers, empty where there is none."""
        values = self.get(name, list, [])
        if not all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
            raise self.wrong(name, "an array of numbers is expected")
        return tuple(map(float, values))

    def section(self, name: str) -> Section:
        """An object in this one. Raises FileError when it is missing or something else."""
        return Section(self.path, self.get(name, dict), self.lines, (*self.keys, name))

    def sections(self, name: str) -> list[Section]:
        """The objects of an array, none where there is no such array. Raises FileError when it is something else."""
        values = self.get(name, list, [])
        if not all(isinstance(v, dict) for v in values):
            raise self.wrong(name, "an array of objects is expected")
        return [Section(self.path, v, self.lines, (*self.keys, name, i)) for i, v in enumerate(values)]

    def has(self, name: str) -> bool:
        """Whether there is a value of this name, other than null."""
        return self.values.get(name) is not None

    def wrong(self, name: str, expected: str) -> FileError:
        """The error for a value that is not as expected."""
        shown = json.dumps(self.values.get(name))
        keys = (*self.keys, name)
        return self._at(keys, f"{_dotted(keys)} is {shown if len(shown) < 60 else shown[:57] + '…'}, and {expected}")

    def error(self, message: str) -> FileError:
        """An error about this object."""
        return self._at(self.keys, message)

    def _at(self, keys: Keys, message: str) -> FileError:
        return FileError(f"{self.path}, line {self.lines.get(keys, 1)}: {message}")


def read(path: Path) -> Section:
    """The object that a file holds; `//`, `#` and `/* */` comments are passed over. Raises FileError when there is none."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror}") from error
    if len(data) > MAX_BYTES:
        raise FileError(f"{path} is larger than any configuration ({MAX_BYTES >> 20} MB); name another folder")
    try:
        text = _COMMENT.sub(_blank, data.decode("utf-8-sig"))
        value = json.loads(text, parse_constant=_refuse)
    except json.JSONDecodeError as error:
        raise FileError(f"{path}, line {error.lineno}: not JSON: {error.msg}; mend it") from error
    except (ValueError, RecursionError) as error:
        raise FileError(f"{path} is not JSON: {' '.join(str(error).split())}; mend it") from error
    if not isinstance(value, dict):
        raise FileError(f"{path} holds no JSON object; mend it or remove it")
    return Section(path, value, dict(_lines(text)))


def _blank(match: re.Match[str]) -> str:
    """A string as it is; of a comment its line ends."""
    return match[1] or "\n" * match[0].count("\n")


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number")


def _lines(text: str) -> Iterator[tuple[Keys, int]]:
    """The line of each key, and of each object in an array, of JSON that is known to be good."""
    line, keys, last = 1, list[str | int](), ""
    for token in _TOKEN.findall(text):
        if token == "\n":
            line += 1
        elif token == ":":
            keys[-1] = json.loads(last)
            yield tuple(keys), line
        elif token in "{[":
            yield tuple(keys), line
            keys.append(0 if token == "[" else "")
        elif token in "}]":
            keys.pop()
        elif token == "," and isinstance(keys[-1], int):
            keys[-1] += 1
        elif token != ",":
            last = token


def _dotted(keys: Keys) -> str:
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys).removeprefix(".")
