"""Model weights by name: GGUF and safetensors in, GGUF out. A tensor is read when asked for, never before."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray


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

    def float32(self) -> NDArray[np.float32]:
        """The values, dequantised when they are quantised."""
        raise NotImplementedError


@dataclass(frozen=True)
class Weights:
    """The metadata and the tensors of a model, by GGUF (or, straight from a checkpoint, Hugging Face) name."""

    metadata: Mapping[str, Any]
    tensors: Mapping[str, Tensor]


def open_gguf(path: Path) -> Weights: ...


def open_safetensors(folder: Path) -> Weights: ...


def write_gguf(
    path: Path, weights: Weights, *, force: bool = False, progress: Callable[[int, int], None] | None = None
) -> None: ...
