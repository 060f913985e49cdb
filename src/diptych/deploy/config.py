"""config.json of a deployment: read into halves, and written. Keys are SMT's where it has them, ours stand under `diptych`.

architectures, text_model, vision_model, vision_preprocess    as in smt.py; model_path may be an mmproj
diptych.format                                                1
diptych.metadata, .tensors, .learned                          what the mmproj told of the media half, see Declared
diptych.files                                                 bytes and SHA-256 of each file
diptych.family, .projector, .n_embd, .n_pos, .versions        for people
"""

from __future__ import annotations

import os
from pathlib import Path

from diptych.deploy.deployment import Declared, Deployment, OnnxHalf
from diptych.deploy.jsonc import Section, read
from diptych.deploy.smt import Resolve, encoders, providers, read_smt

FORMAT = 1
FILE = "config.json"
_BINDS = ("text_model", "vision_model", "audio_model", "diptych")


def read_config(folder: Path) -> Section | None:
    """The config.json of a folder, if it is about a deployment. Raises FileError when it cannot be read."""
    if not (folder / FILE).is_file():
        return None
    config = read(folder / FILE)
    return config if any(config.has(name) for name in _BINDS) else None


def bound(config: Section, *, absolute: bool, text: Path | None = None) -> Deployment:
    """The halves a configuration binds, with another text half where one is given.

    Raises FileError with key and line for what is missing or wrong, and for files outside the folder unless `absolute`.
    """

    def resolve(section: Section, name: str) -> Path:
        return _inside(section, name, absolute)

    folder = config.path.parent
    if text is None and config.has("text_model"):
        text = _text(config.section("text_model"), folder, resolve)
    if not config.has("vision_model"):
        mmproj = folder / "mmproj.gguf"
        return Deployment(text, mmproj if mmproj.is_file() and not config.has("audio_model") else None, notes=_notes(config))
    vision = config.section("vision_model")
    if not vision.has("models") and vision.get("model_path", str).lower().endswith(".gguf"):
        return Deployment(text, resolve(vision, "model_path"), notes=_notes(config))
    ours = config.section("diptych") if config.has("diptych") else None
    onnx = _declared(config, ours, resolve) if ours and ours.has("metadata") else read_smt(config, resolve)
    return Deployment(text, onnx=onnx, notes=_notes(config))


def _text(section: Section, folder: Path, resolve: Resolve) -> Path | None:
    """The text half that a configuration names, or the only one there is."""
    if section.has("model_path"):
        return resolve(section, "model_path")
    found = [p for p in sorted(folder.glob("*.gguf")) if "mmproj" not in p.name]
    return found[0] if len(found) == 1 else None


def _declared(config: Section, ours: Section, resolve: Resolve) -> OnnxHalf:
    """A media half that tells of itself as an mmproj does."""
    if ours.get("format", int) != FORMAT:
        raise ours.wrong("format", f"this version of diptych knows {FORMAT}; a newer one may know it")
    tensors = ours.section("tensors") if ours.has("tensors") else None
    shapes = {name: _shape(tensors, name) for name in tensors.values} if tensors else {}
    vision = config.section("vision_model")
    learned = resolve(ours, "learned") if ours.has("learned") else None
    model = Declared(ours.get("metadata", dict), shapes, learned)
    n_embd = ours.get("n_embd", int, 0) or None
    named = tuple(p for p in providers(config, vision) if p.named)
    return OnnxHalf(config.path, encoders(vision, resolve), model, n_embd, named)


def _shape(tensors: Section, name: str) -> tuple[int, ...]:
    shape = tensors.get(name, list)
    if not all(isinstance(n, int) and n > 0 for n in shape):
        raise tensors.wrong(name, "a shape is expected")
    return tuple(shape)


def _inside(section: Section, name: str, absolute: bool) -> Path:
    """The file that a key names, relative to the folder. Raises FileError when it is elsewhere or not there."""
    given, folder = section.get(name, str), section.path.parent
    path = Path(os.path.normpath(folder / given))
    if not absolute and (Path(given).is_absolute() or not path.is_relative_to(os.path.normpath(folder))):
        raise section.wrong(name, "a file of this folder is expected; allow others with --allow-absolute-paths if you trust it")
    if not path.is_file():
        raise section.wrong(name, f"there is no file {path}; get all files of the model")
    return path


def _notes(config: Section) -> tuple[str, ...]:
    if not config.has("audio_model"):
        return ()
    return (f"{config.path} has an audio_model, and audio is not run yet; the model answers without it",)
