"""A tensor that lies in a file, and the weights of a model."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import gguf.quants
import ml_dtypes
import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from numpy.typing import NDArray

from diptych.errors import FileError

AGAIN = "it is truncated or damaged; download or convert it again"

DTYPES: dict[int, np.dtype[Any]] = {
    GGMLQuantizationType.F32: np.dtype(np.float32),
    GGMLQuantizationType.F16: np.dtype(np.float16),
    GGMLQuantizationType.BF16: np.dtype(ml_dtypes.bfloat16),
    GGMLQuantizationType.F64: np.dtype(np.float64),
    GGMLQuantizationType.I8: np.dtype(np.int8),
    GGMLQuantizationType.I16: np.dtype(np.int16),
    GGMLQuantizationType.I32: np.dtype(np.int32),
    GGMLQuantizationType.I64: np.dtype(np.int64),
}  # every other type is quantised


@dataclass(frozen=True)
class Tensor:
    """A tensor that lies in a file. `shape` is NumPy's, slowest axis first: a linear weight is (out, in).

    `read` gives the array in its stored type (float32, float16, bfloat16 of ml_dtypes); of a quantised type it gives
    the raw blocks, (…, bytes a row) uint8. `place` is (file, offset, bytes) where those bytes stand as they are.
    """

    name: str
    shape: tuple[int, ...]
    type: GGMLQuantizationType
    read: Callable[[], NDArray[Any]]
    place: tuple[Path, int, int] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the stored form."""
        return byte_count(self.shape, self.type)

    def float32(self) -> NDArray[np.float32]:
        """The values, dequantised when they are quantised. Raises FileError for a quantisation gguf-py cannot undo."""
        stored = self.read()
        if self.type in DTYPES:
            return stored.astype(np.float32, copy=False)
        try:
            values: NDArray[np.float32] = gguf.quants.dequantize(stored, self.type)
        except NotImplementedError as error:
            raise FileError(f"tensor {self.name} is {self.type.name}, which cannot be dequantised; use q8_0 or f16") from error
        return values


@dataclass(frozen=True)
class Weights:
    """The metadata and the tensors of a model, by GGUF (or, straight from a checkpoint, Hugging Face) name."""

    metadata: Mapping[str, Any]
    tensors: Mapping[str, Tensor]


def stored(name: str, shape: tuple[int, ...], type: GGMLQuantizationType, path: Path, offset: int) -> Tensor:
    """A tensor whose bytes stand in `path` from `offset` on."""
    nbytes, dtype, rows = byte_count(shape, type), DTYPES.get(type), shape
    if dtype is None:
        block, size = GGML_QUANT_SIZES[type]
        dtype, rows = np.dtype(np.uint8), (*shape[:-1], shape[-1] // block * size)
    return Tensor(name, shape, type, partial(_read, path, offset, nbytes, dtype, rows), (path, offset, nbytes))


def in_memory(name: str, array: NDArray[Any]) -> Tensor:
    """A tensor of an array at hand, of a type that is not quantised."""
    return Tensor(name, array.shape, next(GGMLQuantizationType(t) for t, d in DTYPES.items() if d == array.dtype), lambda: array)


def elsewhere(name: str, shape: tuple[int, ...]) -> Tensor:
    """A tensor of which name and shape are known, and no values: reading it raises FileError."""

    def read() -> NDArray[Any]:
        raise FileError(f"the values of {name} are not here, and its model's family reads them; export the model again")

    return Tensor(name, shape, GGMLQuantizationType.F32, read)


def byte_count(shape: Sequence[int], type: GGMLQuantizationType) -> int:
    """Bytes that a shape takes in a type."""
    block: int
    size: int
    block, size = GGML_QUANT_SIZES[type]
    return math.prod(shape) // block * size


def _read(path: Path, offset: int, nbytes: int, dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    try:
        raw = np.fromfile(path, np.uint8, nbytes, offset=offset)
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror or error}") from error
    if raw.size != nbytes:
        raise FileError(f"{path} has become shorter since it was opened; leave it alone while it is read")
    return raw.view(dtype).reshape(shape)


def opened(path: Path) -> BinaryIO:
    """Open a file to read. Raises FileError when that cannot be."""
    try:
        return path.open("rb", buffering=1 << 20)
    except FileNotFoundError as error:
        raise FileError(f"there is no {path}; check the path") from error
    except IsADirectoryError as error:
        raise FileError(f"{path} is a folder, and a file is expected") from error
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror}") from error
