"""GGUF in and out. The bytes before the tensors are parsed here: gguf-py maps the file and takes seconds over a vocabulary.

Metadata keeps its GGUF types without a wrapper: a `bool`, a `str`, an `int` (uint32) and a `float` (float32) are
Python's, a scalar of any other type is NumPy's of that type, an array of strings is a list, any other array is NumPy's.
What is read can so be written as it was. A list of numbers may be written too: int32 or float32, as gguf-py does.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType
from numpy.typing import NDArray

from diptych.errors import FileError
from diptych.files import whole_file
from diptych.weights.tensor import AGAIN, Tensor, Weights, byte_count, opened, stored

Progress = Callable[[int, int], None]  # (bytes done, bytes in all)

_MAGIC, _VERSIONS = b"GGUF", (2, 3)  # version 1, of 2023, had narrower counts
_ALIGNMENT = 32  # GGUF's, where general.alignment does not say otherwise
_MAX_HEADER = 64 << 20  # bytes; a vocabulary of 262,144 tokens with its merges takes 20 MB
_SCALARS: dict[int, np.dtype[Any]] = {
    GGUFValueType.UINT8: np.dtype("<u1"),
    GGUFValueType.INT8: np.dtype("<i1"),
    GGUFValueType.UINT16: np.dtype("<u2"),
    GGUFValueType.INT16: np.dtype("<i2"),
    GGUFValueType.UINT32: np.dtype("<u4"),
    GGUFValueType.INT32: np.dtype("<i4"),
    GGUFValueType.UINT64: np.dtype("<u8"),
    GGUFValueType.INT64: np.dtype("<i8"),
    GGUFValueType.FLOAT32: np.dtype("<f4"),
    GGUFValueType.FLOAT64: np.dtype("<f8"),
    GGUFValueType.BOOL: np.dtype("?"),
}
_TYPES = {dtype: kind for kind, dtype in _SCALARS.items()}
_PYTHON: dict[int, Callable[[Any], Any]] = {GGUFValueType.UINT32: int, GGUFValueType.FLOAT32: float, GGUFValueType.BOOL: bool}
_LENGTH = struct.Struct("<Q")


def read_gguf(path: Path) -> Weights:
    """Read what stands before the tensors of one GGUF file, of little-endian version 2 or 3.

    Raises FileError when it is missing, no GGUF, of another version, truncated or damaged.
    """
    with opened(path) as file:
        header = _Header(path, file)
        n_tensors, n_values = header.counts()
        metadata = dict(header.pairs(n_values))
        infos = [header.tensor() for _ in range(n_tensors)]
        end, size = header.position, header.size
    _check_unique(path, n_values, metadata, "metadata keys")
    alignment = metadata.get("general.alignment", _ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 8 or alignment & (alignment - 1):
        raise FileError(f"{path} has general.alignment {alignment!r:.40}, and a power of two is expected; {AGAIN}")
    start = end + -end % alignment
    tensors = {i.name: _placed(path, i, start, size, alignment) for i in infos}
    _check_unique(path, n_tensors, tensors, "tensors")
    return Weights(metadata, tensors)


def write_gguf(
    path: Path,
    weights: Weights,
    *,
    force: bool = False,
    inputs: Iterable[Path] = (),
    progress: Progress | None = None,
) -> None:
    """Write a GGUF, whole or not at all. Tensors are read one at a time and written once.

    Raises OutputError as `files.whole_file` does, and FileError when a metadata value has no GGUF type.
    """
    alignment = int(weights.metadata.get("general.alignment", _ALIGNMENT))
    header = _packed(weights, alignment)
    total, done = sum(t.nbytes for t in weights.tensors.values()), 0
    with whole_file(path, force=force, inputs=inputs) as part, part.open("wb") as file:
        file.write(header)
        for tensor in weights.tensors.values():
            _write(file, tensor, alignment)
            done += tensor.nbytes
            if progress:
                progress(done, total)


def _check_unique(path: Path, n: int, found: Mapping[str, object], what: str) -> None:
    if len(found) != n:
        raise FileError(f"{path} has {n} {what}, and only {len(found)} different ones; {AGAIN}")


@dataclass(frozen=True)
class _Info:
    name: str
    shape: tuple[int, ...]
    type: int
    offset: int


class _Header:
    """What stands before the tensors, read in order; never more than the file has, nor than any model needs."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path, self.file = path, file
        self.size = file.seek(0, 2)
        file.seek(0)
        self.left = min(self.size, _MAX_HEADER)

    @property
    def position(self) -> int:
        return self.file.tell()

    def counts(self) -> tuple[int, int]:
        """Check the beginning; the numbers of tensors and of metadata values."""
        if self.size < 24 or (magic := self.take(4)) != _MAGIC:
            found = f"begins with {magic!r}" if self.size >= 24 else f"has {self.size} bytes"
            raise FileError(f"{self.path} is no GGUF: it {found}, and {_MAGIC!r} is expected")
        version = self.u32()
        if version not in _VERSIONS:
            what = "big-endian" if version & 0xFFFF == 0 else f"GGUF version {version}"
            raise FileError(f"{self.path} is {what}, and little-endian version 2 or 3 is expected; convert the model again")
        n_tensors, n_values = self.u64(), self.u64()
        if n_tensors * 24 + n_values * 13 > self.left:  # the least bytes each takes
            raise FileError(f"{self.path} claims {n_tensors} tensors and {n_values} metadata values, too many; {AGAIN}")
        return n_tensors, n_values

    def pairs(self, n: int) -> Iterator[tuple[str, Any]]:
        for _ in range(n):
            key = self.string()
            yield key, self.value(key)

    def value(self, key: str) -> Any:  # noqa: ANN401
        kind = self.u32()
        if kind == GGUFValueType.STRING:
            return self.string()
        if kind != GGUFValueType.ARRAY:
            scalar = self.numbers(key, kind, 1)[0]
            return _PYTHON.get(kind, lambda v: v)(scalar)
        kind, n = self.u32(), self.u64()
        return self.strings(n) if kind == GGUFValueType.STRING else self.numbers(key, kind, n)

    def numbers(self, key: str, kind: int, n: int) -> NDArray[Any]:
        if kind not in _SCALARS:
            raise FileError(f"{self.path}: {key!r:.80} has the unknown type {kind}; {AGAIN}")
        dtype = _SCALARS[kind]
        data = self.take(n * dtype.itemsize)
        if dtype == np.bool_:  # a byte other than 0 and 1 would be no NumPy bool
            return np.frombuffer(data, np.uint8).astype(np.bool_)
        return np.frombuffer(data, dtype)

    def strings(self, n: int) -> list[str]:
        """Written out rather than by way of `string`: a vocabulary has hundreds of thousands."""
        read, left, out = self.file.read, self.left, []
        for _ in range(n):
            if left < 8:
                raise self.short(8)
            (length,) = _LENGTH.unpack(read(8))
            left -= 8 + length
            if left < 0:
                raise self.short(length)
            out.append(read(length).decode("utf-8", "surrogateescape"))
        self.left = left
        return out

    def tensor(self) -> _Info:
        name, n_dims = self.string(), self.u32()
        if n_dims > 4:
            raise FileError(f"{self.path}: tensor {name!r:.80} has {n_dims} axes, and GGUF has 4 at most; {AGAIN}")
        shape = struct.unpack(f"<{n_dims}Q", self.take(8 * n_dims))[::-1]
        return _Info(name, shape, self.u32(), self.u64())

    def string(self) -> str:
        return self.take(self.u64()).decode("utf-8", "surrogateescape")

    def u32(self) -> int:
        return int.from_bytes(self.take(4), "little")

    def u64(self) -> int:
        return int.from_bytes(self.take(8), "little")

    def take(self, n: int) -> bytes:
        if n > self.left:
            raise self.short(n)
        self.left -= n
        return self.file.read(n)

    def short(self, n: int) -> FileError:
        if self.size > _MAX_HEADER:
            return FileError(f"{self.path}: its header wants more than {_MAX_HEADER >> 20} MiB, and no model's does; {AGAIN}")
        return FileError(f"{self.path} ends inside its header: it has {self.size} bytes, and {n} more are expected; {AGAIN}")


def _placed(path: Path, info: _Info, start: int, size: int, alignment: int) -> Tensor:
    try:
        type = GGMLQuantizationType(info.type)
    except ValueError as error:
        raise FileError(f"{path}: tensor {info.name!r:.80} has the unknown type {info.type}; update the gguf package") from error
    block, _ = GGML_QUANT_SIZES[type]
    if info.offset % alignment or (block > 1 and (not info.shape or info.shape[-1] % block)):
        raise FileError(f"{path}: tensor {info.name!r:.80} of shape {info.shape} at {info.offset} cannot be {type.name}; {AGAIN}")
    end = start + info.offset + byte_count(info.shape, type)
    if end > size:
        raise FileError(f"{path}: tensor {info.name!r:.80} would end at byte {end}, and the file ends at {size}; {AGAIN}")
    return stored(info.name, info.shape, type, path, start + info.offset)


def _packed(weights: Weights, alignment: int) -> bytes:
    """Everything before the first tensor, padding included."""
    out = bytearray(_MAGIC + struct.pack("<IQQ", _VERSIONS[-1], len(weights.tensors), len(weights.metadata)))
    for key, value in weights.metadata.items():
        try:
            out += _string(key) + _value(value)
        except (OverflowError, TypeError, ValueError) as error:
            raise FileError(f"{key} is {value!r:.80}, which GGUF has no place for: {error}") from error
    offset = 0
    for t in weights.tensors.values():
        shape = t.shape or (1,)
        out += _string(t.name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape[::-1], t.type, offset)
        offset += t.nbytes + -t.nbytes % alignment
    return bytes(out) + bytes(-len(out) % alignment)


def _string(text: str) -> bytes:
    data = text.encode("utf-8", "surrogateescape")
    return _LENGTH.pack(len(data)) + data


def _value(value: Any) -> bytes:  # noqa: ANN401
    match value:
        case str():
            return struct.pack("<I", GGUFValueType.STRING) + _string(value)
        case list() | tuple() if all(isinstance(v, str) for v in value):
            head = struct.pack("<IIQ", GGUFValueType.ARRAY, GGUFValueType.STRING, len(value))
            return head + b"".join(map(_string, value))
        case list() | tuple() | np.ndarray():
            array = _typed(value, np.int32)
            return struct.pack("<IIQ", GGUFValueType.ARRAY, _TYPES[array.dtype], array.size) + array.tobytes()
        case _:
            array = _typed(value, np.uint32)
            return struct.pack("<I", _TYPES[array.dtype]) + array.tobytes()


def _typed(value: Any, of_int: type[np.generic]) -> NDArray[Any]:  # noqa: ANN401
    """NumPy's types stay; Python's take GGUF's usual ones."""
    array = np.asarray(value)
    if not isinstance(value, np.ndarray | np.generic):
        kinds: dict[str, type[np.generic]] = {"b": np.bool_, "i": of_int, "u": of_int, "f": np.float32}
        array = np.array(value, kinds.get(array.dtype.kind, np.object_))
    if array.dtype not in _TYPES:
        raise TypeError(f"{array.dtype} is no GGUF type")
    return array


def _write(file: BinaryIO, tensor: Tensor, alignment: int) -> None:
    data = np.ascontiguousarray(tensor.read()).reshape(-1).view(np.uint8)
    assert data.size == tensor.nbytes, f"{tensor.name}: {data.size} bytes read, {tensor.nbytes} declared"
    file.write(data.data)
    file.write(bytes(-data.size % alignment))
