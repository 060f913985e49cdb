"""Find a deployment: the directory that binds both halves, or the two files themselves."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diptych import reader
from diptych.errors import FileError, InputError


@dataclass(frozen=True)
class Deployment:
    """The files of a model: the text half, and the media half of those that have one."""

    text: Path
    mmproj: Path | None = None


def find(name: str | Path | None = None, *, model: Path | None = None, mmproj: Path | None = None) -> Deployment:
    """The deployment of a directory (`reader` is the shipped one), or of two files.

    Raises InputError when not exactly one of the two ways is taken, FileError when a file is not there.
    """
    if name is not None and (model or mmproj):
        raise InputError(f"both the deployment {name} and the files of a model are named; name one of them")
    if name is not None:
        return _read(reader.FOLDER if str(name) == "reader" else Path(name))
    if model is None:
        raise InputError("there is no model to load; name a deployment (`reader` is the shipped one) or a text GGUF (-m)")
    return Deployment(_existing(model), _existing(mmproj) if mmproj else None)


def _read(folder: Path) -> Deployment:
    """`text.gguf` and `mmproj.gguf`, or whatever config.json says they are called."""
    if not folder.exists():
        raise FileError(f"there is no deployment {folder}; name a directory with text.gguf and mmproj.gguf, or `reader`")
    if not folder.is_dir():
        raise FileError(f"{folder} is a file, and a deployment is a directory; a text GGUF is given as -m, or model=")
    config = _config(folder)
    text = folder / _path(config, folder, "text_model", "text.gguf")
    mmproj = folder / _path(config, folder, "vision_model", "mmproj.gguf")
    if not text.is_file():
        found = ", ".join(sorted(p.name for p in folder.iterdir())[:10]) or "nothing"
        raise FileError(f"{folder} has no {text.name}, the text half; it holds {found}; convert the model into it")
    named = "vision_model" in config
    return Deployment(text, _existing(mmproj) if named or mmproj.is_file() else None)


def _config(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    if not file.is_file():
        return {}
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise FileError(f"{file} is not JSON: {error}; mend it or remove it") from error
    if not isinstance(config, dict):
        raise FileError(f"{file} holds no JSON object; mend it or remove it")
    return config


def _path(config: dict[str, Any], folder: Path, half: str, default: str) -> str:
    if half not in config:
        return default
    path = config[half].get("model_path") if isinstance(config[half], dict) else None
    if not isinstance(path, str) or not path:
        raise FileError(
            f'{folder / "config.json"} names no file for its {half}; write {{"{half}": {{"model_path": "{default}"}}}}'
        )
    return path


def _existing(path: Path) -> Path:
    if not path.exists():
        raise FileError(f"there is no file {path}; check the path")
    return path
