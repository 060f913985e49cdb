"""Find a deployment: the directory that binds both halves, or the two files themselves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from diptych import reader
from diptych.deploy.config import bound, read_config
from diptych.deploy.deployment import Deployment
from diptych.errors import FileError, InputError

__all__ = ["Deployment", "find"]


def find(
    name: str | Path | None = None,
    *,
    model: Path | None = None,
    mmproj: Path | None = None,
    smt: Path | None = None,
    absolute: bool = False,
) -> Deployment:
    """The deployment of a directory (`reader` is the shipped one), or of two files.

    `model` takes the place of a directory's text half. `smt` is a directory too, and may have an mmproj beside it.
    `absolute` lets a configuration name files outside its directory. Raises InputError when a model is named in two ways
    or none, FileError when a file is not there or a configuration is not as it should be.
    """
    if name is not None and (mmproj or smt):
        raise InputError(f"both the deployment {name} and the files of a model are named; name one of them")
    if smt is not None:
        return replace(_read(smt, model, absolute), mmproj=_existing(mmproj) if mmproj else None)
    if name is not None:
        return _read(reader.FOLDER if str(name) == "reader" else Path(name), model, absolute)
    if model is None:
        raise InputError("there is no model to load; name a deployment (`reader` is the shipped one) or a text GGUF (-m)")
    return Deployment(_existing(model), _existing(mmproj) if mmproj else None)


def _read(folder: Path, model: Path | None, absolute: bool) -> Deployment:
    """What config.json binds; without one `text.gguf` and `mmproj.gguf`."""
    if not folder.exists():
        raise FileError(f"there is no deployment {folder}; name a directory with text.gguf and mmproj.gguf, or `reader`")
    if not folder.is_dir():
        raise FileError(f"{folder} is a file, and a deployment is a directory; a text GGUF is given as -m, or model=")
    text = _existing(model) if model else None
    config = read_config(folder)
    if config:
        found = bound(config, absolute=absolute, text=text)
    else:
        found = Deployment(text or _named(folder / "text.gguf"), _named(folder / "mmproj.gguf"))
    if found.text is None and found.mmproj is None and found.onnx is None:
        raise FileError(_nothing(folder))
    return found


def _named(path: Path) -> Path | None:
    return path if path.is_file() else None


def _nothing(folder: Path) -> str:
    """Why a directory is no deployment, and what helps."""
    names = sorted(p.name for p in folder.iterdir())
    models = [name for name in names if name.lower().endswith(".gguf")]
    if len(models) > 1:
        return (
            f"{folder} holds {', '.join(models[:10])} and no config.json that says which is which; call the halves text.gguf "
            "and mmproj.gguf, or give them as -m and --mmproj"
        )
    found = ", ".join(names[:10]) or "nothing"
    return f"{folder} has no text.gguf, the text half; it holds {found}; convert the model into it"


def _existing(path: Path) -> Path:
    if not path.exists():
        raise FileError(f"there is no file {path}; check the path")
    return path
