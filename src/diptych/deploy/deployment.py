"""What a deployment is made of: a text half, and a media half as an mmproj or as ONNX files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diptych.errors import FileError

Size = tuple[int, int]  # (width, height) in pixels


@dataclass(frozen=True)
class Encoder:
    """One ONNX file: a graph for pictures of one size, or of any."""

    path: Path
    size: Size | None = None
    kind: str = "image"  # of the pieces it takes


@dataclass(frozen=True)
class Provider:
    """An execution provider that a configuration speaks of; `named` when it gives options for it."""

    name: str
    options: Mapping[str, str]
    named: bool = True


@dataclass(frozen=True)
class Declared:
    """A media half of a family, told by what its mmproj told: metadata, and the tensors' names and shapes.

    `learned` is a GGUF with those tensors that are read outside the graph.
    """

    metadata: Mapping[str, Any]
    tensors: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    learned: Path | None = None


@dataclass(frozen=True)
class Smt:
    """A media half told by the keys of an SMT configuration; None where it leaves something to the architecture."""

    architecture: str
    rescale: float | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()


@dataclass(frozen=True)
class OnnxHalf:
    """A media half as ONNX files. `config` is the file that told of it, `n_embd` the width it says the rows have."""

    config: Path
    encoders: tuple[Encoder, ...]
    model: Declared | Smt
    n_embd: int | None = None
    providers: tuple[Provider, ...] = ()


@dataclass(frozen=True)
class Deployment:
    """The halves of a model, one of them at least; with `mmproj` and `onnx` both, the ONNX files go first.

    `notes` are what its configuration holds and is not used, a line each.
    """

    text: Path | None
    mmproj: Path | None = None
    onnx: OnnxHalf | None = None
    notes: tuple[str, ...] = ()

    @property
    def media_files(self) -> tuple[Path, ...]:
        """The files of the media half that are named: an mmproj, ONNX files, and the configuration that tells of them."""
        onnx = (self.onnx.config, *(encoder.path for encoder in self.onnx.encoders)) if self.onnx else ()
        return (*([self.mmproj] if self.mmproj else []), *onnx)

    @property
    def text_half(self) -> Path:
        """The text half. Raises FileError where there is none."""
        if self.text is None:
            place = self.onnx.config.parent if self.onnx else (self.mmproj or Path()).parent
            raise FileError(f"{place} has no text half, which answers; give one as -m TEXT.gguf")
        return self.text
