"""The tensors of a Hugging Face checkpoint, in one or several safetensors files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gguf import GGMLQuantizationType

from diptych.errors import FileError
from diptych.weights.tensor import AGAIN, Tensor, Weights, opened, stored

_MAX_JSON = 16 << 20  # bytes of a header; 100,000 tensors fit
_SAFETENSORS = {"F32": GGMLQuantizationType.F32, "F16": GGMLQuantizationType.F16, "BF16": GGMLQuantizationType.BF16}


def open_safetensors(folder: Path) -> Weights:
    """The tensors of a checkpoint in one or several safetensors files, f32, f16 or bf16; it has no metadata.

    Raises FileError when a file is missing, truncated or damaged, or holds another type.
    """
    tensors: dict[str, Tensor] = {}
    expected: dict[str, str] = {}
    if (folder / "model.safetensors").is_file():
        shards = ["model.safetensors"]
    else:
        expected = _index(folder)
        shards = sorted(set(expected.values()))
    if missing := [s for s in shards if not (folder / s).is_file()]:
        raise FileError(f"{folder} lacks {len(missing)} of its {len(shards)} shards: {', '.join(missing)}; download them")
    for shard in shards:
        tensors.update((t.name, t) for t in _shard(folder / shard))
    if absent := sorted(expected.keys() - tensors.keys()):
        raise FileError(f"{folder / expected[absent[0]]} has no {absent[0]}, which the index says it holds; download it again")
    return Weights({}, tensors)


def _index(folder: Path) -> dict[str, str]:
    """model.safetensors.index.json's map of tensor names to shards."""
    path = folder / "model.safetensors.index.json"
    if not path.is_file():
        raise FileError(f"{folder} has neither model.safetensors nor model.safetensors.index.json; name a checkpoint's folder")
    try:
        names = json.loads(path.read_bytes())["weight_map"]
        if all(isinstance(k, str) and Path(v).name == v for k, v in names.items()):
            return dict(names)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    raise FileError(f"{path} has no weight_map from tensors to files beside it; download it again")


def _shard(path: Path) -> Iterator[Tensor]:
    with opened(path) as file:
        size = file.seek(0, 2)
        file.seek(0)
        n = int.from_bytes(file.read(8), "little")
        if size < 8 or n > min(size - 8, _MAX_JSON):
            raise FileError(f"{path} is no safetensors file of {size} bytes: its header would have {n}; {AGAIN}")
        try:
            header = json.loads(file.read(n))
            fields = [_field(k, v) for k, v in header.items() if k != "__metadata__"]
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise FileError(f"{path}: the header is not that of a safetensors file; {AGAIN}") from error
    for name, dtype, shape, begin, end in fields:
        if dtype not in _SAFETENSORS:
            known = ", ".join(_SAFETENSORS)
            raise FileError(f"{path}: tensor {name} is {dtype}, and {known} can be read; use the checkpoint as it was trained")
        tensor = stored(name, shape, _SAFETENSORS[dtype], path, 8 + n + begin)
        if begin < 0 or min(shape, default=0) < 0 or end - begin != tensor.nbytes or 8 + n + end > size:
            raise FileError(f"{path}: tensor {name} does not fit: bytes {begin} to {end} of {size - 8 - n}; {AGAIN}")
        yield tensor


def _field(name: str, entry: Mapping[str, Any]) -> tuple[str, str, tuple[int, ...], int, int]:
    begin, end = entry["data_offsets"]
    return name, str(entry["dtype"]), tuple(map(int, entry["shape"])), int(begin), int(end)
