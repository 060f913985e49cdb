"""GGUFs that lie in several files, as llama.cpp's gguf-split writes them: `X-00001-of-00003.gguf` and its sisters."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from diptych.errors import FileError
from diptych.weights.gguf import read_gguf
from diptych.weights.tensor import AGAIN, Tensor, Weights

_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)  # llama.cpp finds the rest by it
_NUMBER, _COUNT, _TENSORS = "split.no", "split.count", "split.tensors.count"


def open_gguf(path: Path) -> Weights:
    """Read what stands before the tensors of a GGUF: little-endian, version 2 or 3, in one file or named by its first part.

    A split model comes as a whole: the metadata of its first part, without the keys that tell of the split, and the
    tensors of all parts. Raises FileError when a file is missing, no GGUF, of another version, truncated or damaged,
    when `path` is a later part, or when the parts are not of one model.
    """
    first = read_gguf(path)
    count = _value(path, first, _COUNT, 0)
    if count < 2:
        return first
    files = _files(path, _value(path, first, _NUMBER, 0), count)
    tensors = dict(first.tensors)
    for number, file in enumerate(files[1:], 1):
        tensors.update(_tensors(file, number, count))
    expected = _value(path, first, _TENSORS, len(tensors))
    if len(tensors) != expected:
        raise FileError(f"the {count} parts of {path} hold {len(tensors)} tensors, and {expected} are expected; {AGAIN}")
    metadata = {k: v for k, v in first.metadata.items() if k not in (_NUMBER, _COUNT, _TENSORS)}
    return Weights(metadata, tensors)


def check_parts(path: Path) -> None:
    """Raise FileError, as `open_gguf` does, for a file named like a part of a split model that cannot be loaded by it.

    Any other name passes unread: opening a file with a large vocabulary takes a while.
    """
    if _PART.fullmatch(path.name):
        open_gguf(path)


def part_names(name: str) -> list[str]:
    """The names of all parts of the split model that the file `name` is a part of, in order; `name` alone when it is not."""
    found = _PART.fullmatch(name)
    if not found:
        return [name]
    return [_part_name(found["stem"], i, int(found["count"])) for i in range(int(found["count"]))] or [name]


def _value(path: Path, weights: Weights, key: str, absent: int) -> int:
    value = weights.metadata.get(key, absent)
    if not isinstance(value, int | np.integer):
        raise FileError(f"{path} has {key} {value!r:.40}, and a whole number is expected; {AGAIN}")
    return int(value)


def _part_name(stem: str, number: int, count: int) -> str:
    """The name of part `number`, counted from 0."""
    return f"{stem}-{number + 1:05}-of-{count:05}.gguf"


def _files(path: Path, number: int, count: int) -> list[Path]:
    """The files of a split model, all there, whose metadata says that `path` is the first of `count`."""
    named = _PART.fullmatch(path.name)
    if not named or (int(named["number"]), int(named["count"])) != (number + 1, count):
        right = _part_name(named["stem"] if named else path.stem, number, count)
        raise FileError(f"{path} is part {number + 1} of {count} of a model, which are found by name; call it {right}")
    files = [path.with_name(name) for name in part_names(path.name)]
    if number:
        raise FileError(f"{path} is part {number + 1} of {count} of a model; give the first, {files[0]}")
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise FileError(f"{path} is the first of {count} parts, and {', '.join(missing[:3])} is not beside it; get all parts")
    return files


def _tensors(file: Path, number: int, count: int) -> dict[str, Tensor]:
    """The tensors of a later part."""
    part = read_gguf(file)
    if (_value(file, part, _NUMBER, 0), _value(file, part, _COUNT, 0)) != (number, count):
        raise FileError(f"{file} is not part {number + 1} of {count}, as its name says; {AGAIN}")
    return dict(part.tensors)
