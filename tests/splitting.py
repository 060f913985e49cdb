"""Cut a GGUF into parts, as llama.cpp's gguf-split does: the metadata in the first, the tensors in turn."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from diptych.weights import Weights, open_gguf, write_gguf


def split(source: Path, stem: Path, count: int, *, tensors_first: bool = True) -> Path:
    """Write `count` parts beside each other, `STEM-00001-of-…`; the path of the first.

    Without `tensors_first` the first part has metadata alone, as with --no-tensor-first-split.
    """
    whole = open_gguf(source)
    names = list(whole.tensors)
    cuts = np.linspace(0, len(names), count + (1 if tensors_first else 0)).astype(int).tolist()
    if not tensors_first:
        cuts = [0, *cuts]
    for i in range(count):
        tensors = {name: whole.tensors[name] for name in names[cuts[i] : cuts[i + 1]]}
        keys = {"split.no": np.uint16(i), "split.count": np.uint16(count), "split.tensors.count": np.int32(len(names))}
        weights = Weights({**(whole.metadata if i == 0 else {}), **keys}, tensors)
        write_gguf(stem.with_name(f"{stem.name}-{i + 1:05}-of-{count:05}.gguf"), weights)
    return stem.with_name(f"{stem.name}-00001-of-{count:05}.gguf")
