"""Tensors made of others: stacked, cut, turned, reordered, computed. Nothing is read before the result is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from diptych.convert.tensor import retyped
from diptych.errors import FileError
from diptych.weights import Tensor, stored

F32: GGMLQuantizationType = GGMLQuantizationType.F32


@dataclass(frozen=True)
class Stack(Tensor):
    """Tensors of one shape and type along a new first axis. Each is read, and converted, alone."""

    parts: tuple[Tensor, ...] = ()


def stacked(tensors: Sequence[Tensor]) -> Stack:
    """(…) each → (n, …). Raises FileError when their shapes or types differ."""
    first = tensors[0]
    if other := next((t for t in tensors if (t.shape, t.type) != (first.shape, first.type)), None):
        raise FileError(
            f"tensor {other.name} is {other.type.name} {other.shape}, and {first.name} beside it {first.type.name} "
            f"{first.shape}; download it again"
        )

    def read() -> NDArray[Any]:
        out: NDArray[Any] | None = None
        for i, tensor in enumerate(tensors):
            part = tensor.read()
            out = np.empty((len(tensors), *part.shape), part.dtype) if out is None else out
            out[i] = part
        assert out is not None, "a stack has a part at least"
        return out

    return Stack(first.name, (len(tensors), *first.shape), first.type, read, parts=tuple(tensors))


def unstacked(tensor: Tensor) -> list[Tensor]:
    """(n, …) → n tensors (…), each read alone."""
    return [replace(part, shape=part.shape[1:], read=_squeezed(part)) for part in _single_rows(tensor)]


def rows(tensor: Tensor, start: int, stop: int) -> Tensor:
    """(n, …) → (stop - start, …): a span of the first axis, read alone where the tensor lies in a file."""
    shape = (stop - start, *tensor.shape[1:])
    if tensor.place is None:
        return replace(tensor, shape=shape, read=lambda: tensor.read()[start:stop])
    path, offset, nbytes = tensor.place
    row = nbytes // tensor.shape[0]
    return stored(tensor.name, shape, tensor.type, path, offset + start * row)


def transposed(tensor: Tensor) -> Tensor:
    """(m, n) → (n, m)."""
    return _made(tensor, tensor.shape[::-1], lambda a: np.ascontiguousarray(a.T))


def taken(tensor: Tensor, index: NDArray[np.intp], axis: int = 0) -> Tensor:
    """The entries of one axis in the order of `index`."""
    shape = (*tensor.shape[:axis], len(index), *tensor.shape[axis + 1 :])
    return _made(tensor, shape, lambda a: np.take(a, index, axis))


def reshaped(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The same values in another shape."""
    return _made(tensor, shape, lambda a: a.reshape(shape))


def computed(tensor: Tensor, function: Callable[[NDArray[np.float32]], NDArray[np.float32]]) -> Tensor:
    """A function of every value, computed and kept in float32."""
    return Tensor(tensor.name, tensor.shape, F32, lambda: function(tensor.float32()))


def named(tensor: Tensor, name: str) -> Tensor:
    """The same tensor under another name."""
    return replace(tensor, name=name)


def converted(tensor: Tensor, type: GGMLQuantizationType) -> Tensor:
    """The tensor in another type, converted when it is read: of a stack one part at a time."""
    if isinstance(tensor, Stack):
        return named(stacked([retyped(part, type) for part in tensor.parts]), tensor.name)
    return retyped(tensor, type)


def expect_shape(tensor: Tensor, *shape: int | None) -> tuple[int, ...]:
    """The tensor's shape. Raises FileError when it is empty or not the one given, None standing for any length."""
    fits = len(tensor.shape) == len(shape) and all(w in (None, n) for n, w in zip(tensor.shape, shape, strict=True))
    if fits and 0 not in tensor.shape:
        return tensor.shape
    wanted = ", ".join("any" if n is None else str(n) for n in shape)
    raise FileError(
        f"tensor {tensor.name} has the shape {tensor.shape}, and config.json wants ({wanted}); are they of the same model?"
    )


def _made(tensor: Tensor, shape: tuple[int, ...], function: Callable[[NDArray[Any]], NDArray[Any]]) -> Tensor:
    return Tensor(tensor.name, shape, tensor.type, lambda: function(tensor.read()))


def _single_rows(tensor: Tensor) -> list[Tensor]:
    return [rows(tensor, i, i + 1) for i in range(tensor.shape[0])]


def _squeezed(row: Tensor) -> Callable[[], NDArray[Any]]:
    return lambda: row.read()[0]
