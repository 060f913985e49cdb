"""The `general.*` metadata of both halves: names from the folder and the model card, sampling from generation_config.json."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import gguf
import numpy as np
from gguf import GGUFValueType, LlamaFileType
from gguf.metadata import yaml

from diptych.convert.checkpoint import Checkpoint
from diptych.errors import FileError
from diptych.weights import Tensor

_NUMPY = {GGUFValueType.INT32: np.int32, GGUFValueType.UINT64: np.uint64, GGUFValueType.INT64: np.int64}


def general(
    checkpoint: Checkpoint, architecture: str, kind: str, tensors: Mapping[str, Tensor], file_type: LlamaFileType
) -> dict[str, Any]:
    """What llama.cpp's converter writes about any model; gguf-py gathers it."""
    n_values = sum(math.prod(t.shape) for t in tensors.values())
    folder = checkpoint.folder.resolve()
    try:
        found = gguf.Metadata.load(model_path=folder, total_params=n_values)
        found.name = found.name or folder.name
        found.size_label = found.size_label or _size_label(tensors)
        collected = gguf.GGUFWriter(None, architecture)
        found.set_gguf_meta_model(collected)
        values = {key: _plain(value) for key, value in collected.kv_data[0].items()}
    except (yaml.YAMLError, TypeError, ValueError, OverflowError, AttributeError) as error:
        said = " ".join(str(error).split())
        raise FileError(
            f"{folder}: README.md or generation_config.json cannot be understood ({said}); mend or remove it"
        ) from error
    return {
        **values,
        "general.type": kind,
        "general.file_type": int(file_type),
        "general.quantization_version": int(gguf.GGML_QUANT_VERSION),
    }


def _size_label(tensors: Mapping[str, Tensor]) -> str:
    """The number of values in words, as `7B` or, with experts, their number and the size with one of them, as `6x334K`."""
    sizes = {name: math.prod(t.shape) for name, t in tensors.items()}
    experts = {name: t.shape[0] for name, t in tensors.items() if "_exps." in name}
    one_of_each = sum(sizes[name] // n for name, n in experts.items())
    shared = sum(n for name, n in sizes.items() if name not in experts)
    n_expert = sum(experts.values()) // len(experts) if experts else 0
    label: str = gguf.size_label(shared + one_of_each, shared, one_of_each, n_expert)
    return label


def _plain(value: Any) -> Any:  # noqa: ANN401 - gguf-py's value and type → ours
    if value.type == GGUFValueType.FLOAT32:
        return float(value.value)
    return _NUMPY[value.type](value.value) if value.type in _NUMPY else value.value
