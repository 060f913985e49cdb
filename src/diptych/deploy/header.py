"""What an ONNX file takes and gives, read without its weights: the few fields of its protobuf that say so.

Numbers of fields and types are those of onnx.proto, IR version 10.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from diptych.errors import FileError

_AGAIN = "it is truncated or damaged, or no ONNX file; get or export it again"
_TYPES = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 9: "bool", 10: "float16",
    11: "float64", 12: "uint32", 13: "uint64", 16: "bfloat16", 17: "float8", 18: "float8", 19: "float8", 20: "float8",
    21: "uint4", 22: "int4",
}  # fmt: skip
_BITS = {
    "float64": 64,
    "int64": 64,
    "uint64": 64,
    "float16": 16,
    "bfloat16": 16,
    "int16": 16,
    "uint16": 16,
    "int4": 4,
    "uint4": 4,
}
_BYTE = ("int8", "uint8", "bool", "float8")
_MAX_NAME = 1 << 20  # bytes of a name, or of a text of the metadata
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types


@dataclass(frozen=True)
class Port:
    """An input or output: its type, and its shape with names for axes of any length."""

    name: str
    type: str
    shape: tuple[int | str, ...]

    def __str__(self) -> str:
        return f"{self.type} ({', '.join(map(str, self.shape))})"


@dataclass(frozen=True)
class Header:
    """An ONNX file's inputs, outputs and metadata.

    `files` are the files of weights beside it and the bytes each must have; `types` how many weights there are of each type.
    """

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    metadata: Mapping[str, str]
    files: Mapping[str, int]
    types: Mapping[str, int]


def read_header(path: Path) -> Header:
    """Read an ONNX file's header, and see that the files of its weights are there and whole.

    Raises FileError when it is missing, truncated or no ONNX file, or such a file is missing, short, or in another folder.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            header = _model(_Message(path, file, 0, size))
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror}") from error
    for name, n_bytes in header.files.items():
        _check_data(path, name, n_bytes)
    return header


@dataclass
class _Found:
    """What is gathered while reading a graph."""

    inputs: list[Port] = field(default_factory=list)
    outputs: list[Port] = field(default_factory=list)
    weights: set[str] = field(default_factory=set)
    files: dict[str, int] = field(default_factory=dict)
    types: dict[str, int] = field(default_factory=dict)


class _Message:
    """A protobuf message in a file: its fields, read where they stand."""

    def __init__(self, path: Path, file: BinaryIO, start: int, end: int) -> None:
        self.path, self.file, self.start, self.end = path, file, start, end

    def fields(self) -> Iterator[tuple[int, int | _Message]]:
        """Number and value of each field: a message where its length is told, a whole number otherwise."""
        at = self.start
        while at < self.end:
            self.file.seek(at)
            number, wire = divmod(self._varint(), 8)
            value: int | _Message = 0
            if wire == _VARINT:
                value = self._varint()
            elif wire == _BYTES:
                n = self._varint()
                at = self.file.tell()
                value = _Message(self.path, self.file, at, at + n)
            elif wire not in (_FIXED64, _FIXED32):
                raise self.bad()
            at = value.end if isinstance(value, _Message) else self.file.tell() + {_FIXED64: 8, _FIXED32: 4}.get(wire, 0)
            if at > self.end or not number:
                raise self.bad()
            yield number, value

    def messages(self, number: int) -> Iterator[_Message]:
        """The fields of one number that are messages or text."""
        return (value for n, value in self.fields() if n == number and isinstance(value, _Message))

    def text(self) -> str:
        """The message as text."""
        if self.end - self.start > _MAX_NAME:
            raise self.bad()
        self.file.seek(self.start)
        return self.file.read(self.end - self.start).decode("utf-8", "replace")

    def bad(self) -> FileError:
        return FileError(f"{self.path} cannot be read as ONNX; {_AGAIN}")

    def _varint(self) -> int:
        value = 0
        for shift in range(0, 64, 7):
            byte = self.file.read(1)
            if not byte:
                raise self.bad()
            value |= (byte[0] & 127) << shift
            if byte[0] < 128:
                return value
        raise self.bad()


def _model(model: _Message) -> Header:
    graph, metadata = None, {}
    for number, value in model.fields():
        if number == 7 and isinstance(value, _Message):
            graph = value
        elif number == 14 and isinstance(value, _Message):
            key, text = _pair(value)
            metadata[key] = text
    if graph is None:
        raise model.bad()
    found = _graph(graph)
    inputs = tuple(port for port in found.inputs if port.name not in found.weights)
    if not found.outputs:
        raise model.bad()
    return Header(inputs, tuple(found.outputs), metadata, found.files, found.types)


def _graph(graph: _Message) -> _Found:
    found = _Found()
    for number, value in graph.fields():
        if not isinstance(value, _Message):
            continue
        if number == 5:
            _weight(value, found)
        elif number == 11:
            found.inputs.append(_port(value))
        elif number == 12:
            found.outputs.append(_port(value))
    return found


def _weight(tensor: _Message, found: _Found) -> None:
    """Note the name and type of an initializer, and what file it lies in."""
    shape: list[int] = []
    type, name, places = "", "", dict[str, str]()
    for number, value in tensor.fields():
        if number == 1:
            shape += [value] if isinstance(value, int) else _packed(value)
        elif number == 2 and isinstance(value, int):
            type = _TYPES.get(value, f"type {value}")
        elif number == 8 and isinstance(value, _Message):
            name = value.text()
        elif number == 13 and isinstance(value, _Message):
            key, text = _pair(value)
            places[key] = text
    found.weights.add(name)
    found.types[type] = found.types.get(type, 0) + 1
    if "location" in places:
        bits = _BITS.get(type) or int(re.sub(r"\D", "", type) or 32)
        n_bytes = math.prod(shape) * bits // 8
        try:
            end = int(places.get("offset", "0")) + int(places.get("length", str(n_bytes)))
        except ValueError:
            raise tensor.bad() from None
        found.files[places["location"]] = max(end, found.files.get(places["location"], 0))


def _packed(value: _Message) -> list[int]:
    """The whole numbers of a packed field."""
    out = []
    value.file.seek(value.start)
    while value.file.tell() < value.end:
        out.append(value._varint())
    return out


def _port(info: _Message) -> Port:
    name, type, shape = "", "unknown", list[int | str]()
    for number, value in info.fields():
        if number == 1 and isinstance(value, _Message):
            name = value.text()
        elif number == 2 and isinstance(value, _Message):
            for tensor in value.messages(1):
                type, shape = _tensor(tensor)
    return Port(name, type, tuple(shape))


def _tensor(kind: _Message) -> tuple[str, list[int | str]]:
    """The type and shape of a port that is a tensor."""
    type, shape = "unknown", list[int | str]()
    for number, value in kind.fields():
        if number == 1 and isinstance(value, int):
            type = _TYPES.get(value, f"type {value}")
        elif number == 2 and isinstance(value, _Message):
            shape = [_axis(axis, i) for i, axis in enumerate(value.messages(1))]
    return type, shape


def _axis(axis: _Message, i: int) -> int | str:
    for number, value in axis.fields():
        if number == 1 and isinstance(value, int):
            return value
        if number == 2 and isinstance(value, _Message):
            return value.text()
    return f"axis{i}"


def _pair(entry: _Message) -> tuple[str, str]:
    parts = {number: value.text() for number, value in entry.fields() if isinstance(value, _Message)}
    return parts.get(1, ""), parts.get(2, "")


def _check_data(path: Path, name: str, n_bytes: int) -> None:
    file = path.parent / name
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise FileError(f"{path} has weights in {name}, outside its folder; get or export it again")
    if not file.is_file():
        raise FileError(f"{path} has its weights in {name}, which is not beside it; get all files of the model")
    if (size := file.stat().st_size) < n_bytes:
        raise FileError(f"{file} has {size} bytes, and {path.name} needs {n_bytes}; it is truncated, get or export it again")
