"""A Hugging Face checkpoint folder: its configuration and, not yet read, its tensors."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from diptych.errors import FileError
from diptych.weights import Tensor, open_safetensors

T = TypeVar("T", int, float, str)

_PREFIXES = ("model.", "language_model.", "thinker.")  # in front or not, in any order, as the version that saved it had it
_COMPUTED = ("rotary_emb.inv_freq", "rotary_pos_emb.inv_freq")  # tables that early versions stored with the weights


@dataclass(frozen=True)
class Checkpoint:
    """What conversion reads. `tensors` go by their Hugging Face names without leading `model.`, `language_model.`, `thinker.`.

    `processor` is preprocessor_config.json, with the picture part of processor_config.json over it.
    """

    folder: Path
    config: Mapping[str, Any]
    processor: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    @property
    def architecture(self) -> str:
        """The first of config.json's architectures. Raises FileError when it has none."""
        match self.config.get("architectures"):
            case [str(name), *_]:
                return name
        raise FileError(f"{self.folder / 'config.json'} names no architecture; use the config.json the model came with")

    @property
    def text_config(self) -> dict[str, Any]:
        """The text half's settings: at the top in old checkpoints, under `text_config` in new ones (a thinker's under that)."""
        thinker = part(self.config, "thinker_config")
        return {**self.config, **part(self.config, "text_config"), **thinker, **part(thinker, "text_config")}

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file of the folder: none of them may be an output."""
        return tuple(p for p in sorted(self.folder.iterdir()) if p.is_file())


def read_checkpoint(folder: Path) -> Checkpoint:
    """Open a checkpoint folder. Raises FileError when a file is missing, damaged or not what its name says."""
    if not folder.is_dir():
        raise FileError(f"{folder} is no folder, and a checkpoint's folder is expected (config.json, *.safetensors, …)")
    config = read_json(folder / "config.json")
    processor = read_json(folder / "preprocessor_config.json", {})
    newer = read_json(folder / "processor_config.json", {})
    processor = {**processor, **newer, **part(newer, "image_processor")}
    tensors: dict[str, Tensor] = {}
    for name, tensor in open_safetensors(folder).tensors.items():
        bare = _bare(name)
        if bare in tensors:
            raise FileError(f"{folder} has {name} and {tensors[bare].name}, which are the same tensor; keep one")
        if not bare.endswith(_COMPUTED):
            tensors[bare] = tensor
    return Checkpoint(folder, config, processor, tensors)


def read_json(path: Path, default: dict[str, Any] | None = None) -> dict[str, Any]:
    """The object in a JSON file. Raises FileError when it is damaged, or missing and there is no default."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        if default is not None:
            return default
        raise FileError(f"there is no {path}; name the folder of a checkpoint with all its files") from error
    except (OSError, ValueError, RecursionError) as error:
        raise FileError(f"cannot read {path}: {error}; download it again") from error
    if not isinstance(value, dict):
        raise FileError(f"{path} holds a {type(value).__name__}, and an object is expected; download it again")
    return value


def part(whole: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The object under a name, empty where there is none. Raises FileError when it is something else."""
    value = whole.get(name)
    if value is None or isinstance(value, dict):
        return value or {}
    raise FileError(f"{name} is {value!r}, and a JSON object is expected there; use the files the model came with")


def setting(config: Mapping[str, Any], name: str, kind: type[T], default: T | None = None) -> T:
    """One value of config.json. Raises FileError when it is of another type, or missing and there is no default."""
    value = config.get(name)
    if value is None and default is not None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float if kind is float else kind):
        found = "nothing" if value is None else repr(value)
        raise FileError(f"config.json has {found} for {name}, and a {kind.__name__} is expected; use the model's own config.json")
    return kind(value)


@contextmanager
def read_by_family(checkpoint: Checkpoint) -> Iterator[None]:
    """What a family trips over in config.json or preprocessor_config.json becomes a FileError."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FileError(
            f"{checkpoint.folder}: config.json or preprocessor_config.json is not that of a {checkpoint.architecture} "
            f"({type(error).__name__}: {error}); use the files the model came with"
        ) from error


def _bare(name: str) -> str:
    while prefix := next((p for p in _PREFIXES if name.startswith(p)), ""):
        name = name[len(prefix) :]
    return name
