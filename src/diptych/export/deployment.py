"""A whole deployment: both halves and the config.json that binds them, in one folder."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from diptych import convert, families
from diptych.deploy.check import check_pair
from diptych.deploy.find import find
from diptych.deploy.hashes import FileInfo, hashed
from diptych.deploy.text import text_facts
from diptych.errors import InputError
from diptych.export import graphs
from diptych.export.bind import config_text
from diptych.export.graphs import DATA, Size
from diptych.families.base import Family
from diptych.files import check_output, whole_folder
from diptych.weights import Progress, Weights, open_gguf, write_gguf
from diptych.weights.split import part_names

TEXT, MMPROJ, LEARNED, CONFIG = "text.gguf", "mmproj.gguf", "learned.gguf", "config.json"
_BLOCK = 1 << 22


@dataclass(frozen=True, eq=False)
class Source:
    """What a deployment is made of: the media half's family, and each half as a GGUF file or as weights to be written.

    `text_files` are the parts of a text half that is there, `text` one that is converted; neither for a media half alone.
    """

    family: Family
    architecture: str
    inputs: tuple[Path, ...]
    text_files: tuple[Path, ...] = ()
    text: Weights | None = None
    mmproj: Path | None = None


def open_source(
    source: Path | None = None, *, model: Path | None = None, mmproj: Path | None = None, outtype: str | None = None
) -> Source:
    """A checkpoint's folder, a deployment's, an mmproj alone, or the two files of a model; nothing is converted yet.

    `outtype` is the type of a checkpoint's weights; without one the media half keeps its own and the text half is f16.
    Raises InputError when a model is named in two ways or none, FileError, UnknownModel and MismatchedHalves when halves
    cannot be used or do not fit.
    """
    if (source is None) == (mmproj is None):
        raise InputError("name what to export: a checkpoint, a deployment or an mmproj; or -m TEXT.gguf --mmproj MMPROJ.gguf")
    if source and source.is_dir() and any(source.glob("*.safetensors")):
        made = _checkpoint(source, outtype)
    elif outtype:
        raise InputError("--outtype is for checkpoints; GGUFs keep their types, and diptych quantize changes them")
    elif source and (source.is_dir() or str(source) == "reader"):
        found = find(source, model=model)
        if found.mmproj is None:
            raise InputError(f"{source} has no mmproj to export; name a checkpoint, an mmproj, or a deployment with one")
        made = _files(found.mmproj, found.text)
    else:
        made = _files(mmproj or Path(source or ""), model)
    if text := made.text or (open_gguf(made.text_files[0]) if made.text_files else None):
        check_pair("the media half", made.family, "the text half", text_facts(text))
    return made


def deploy(
    source: Source,
    folder: Path,
    *,
    sizes: Sequence[Size] = (),
    any_size: bool = False,
    gguf: bool = False,
    link: bool = False,
    force: bool = False,
    progress: Progress | None = None,
) -> list[Path]:
    """Write a deployment into a folder, all of it or nothing. Returns its files.

    The media half becomes ONNX as `graphs.drawn` says, or stays an mmproj with `gguf`. With `link` GGUFs are linked and not
    copied. Raises InputError for a size the model does not take, OutputError when a file may not be written.
    """
    if gguf and sizes:
        raise InputError("--size makes ONNX graphs, and the media half is to stay an mmproj; leave one of the two out")
    made = [] if gguf else graphs.drawn(source.family, sizes, any_size=any_size)
    kept = _kept(source, folder)
    names = _names(source, made, gguf)
    for name in names:  # whole_folder looks when the work is done
        if name not in kept:
            check_output(folder / name, force=force, inputs=source.inputs, parent=False)
    count = _Count(progress, _total(source, made, gguf))
    inputs = [path for path in source.inputs if path.name not in kept]
    with whole_folder(folder, force=force, inputs=inputs) as part:
        _write_text(source, part, kept, link, count)
        if gguf:
            _write_mmproj(source, part, kept, link, count)
        else:
            graphs.write(source.family, part, made, count.part())
            _write_learned(source.family, part)
        there = {name: folder / name if name in kept else part / name for name in names if name != CONFIG}
        files = {name: FileInfo(path.stat().st_size, hashed(path, count.part())) for name, path in there.items()}
        count.end()
        (part / CONFIG).write_text(config_text(source.family, source.architecture, _text_name(source), made, files))
    return [folder / name for name in names]


def _checkpoint(folder: Path, outtype: str | None) -> Source:
    checkpoint = convert.read_checkpoint(folder)
    family = families.for_architecture(checkpoint.architecture)(convert.mmproj(checkpoint, outtype))
    text = convert.text(checkpoint, outtype or "f16")
    return Source(family, checkpoint.architecture, checkpoint.files, text=text)


def _files(mmproj: Path, text: Path | None) -> Source:
    family = families.open_family(mmproj)
    parts = tuple(text.with_name(name) for name in part_names(text.name)) if text else ()
    return Source(family, type(family).architectures[0], (mmproj, *parts), text_files=parts, mmproj=mmproj)


def _kept(source: Source, folder: Path) -> frozenset[str]:
    """The names of GGUFs that lie in the folder as they are to be: they are left there."""
    files = [*source.text_files, *([source.mmproj] if source.mmproj else [])]
    return frozenset(p.name for p in files if (folder / p.name).exists() and p.samefile(folder / p.name))


def _names(source: Source, made: Sequence[graphs.Drawn], gguf: bool) -> list[str]:
    """The names of a deployment's files, config.json last."""
    text = [TEXT] if source.text else [p.name for p in source.text_files]
    if gguf:
        return [*text, _mmproj_name(source), CONFIG]
    learned = [LEARNED] if _learned(source.family) else []
    return [*text, *(d.name for d in made), DATA, *learned, CONFIG]


def _text_name(source: Source) -> str | None:
    return TEXT if source.text else source.text_files[0].name if source.text_files else None


def _mmproj_name(source: Source) -> str:
    return source.mmproj.name if source.mmproj else MMPROJ


def _learned(family: Family) -> Weights | None:
    """The tensors that are read outside the graph, if there are any."""
    tensors = {name: family.weights.tensors[name] for name in family.learned if name in family.weights.tensors}
    return Weights({"general.architecture": "clip", "general.type": "mmproj"}, tensors) if tensors else None


def _write_learned(family: Family, part: Path) -> None:
    if learned := _learned(family):
        write_gguf(part / LEARNED, learned)


def _write_text(source: Source, part: Path, kept: frozenset[str], link: bool, count: _Count) -> None:
    if source.text:
        write_gguf(part / TEXT, source.text, progress=count.part())
    for path in source.text_files:
        if path.name not in kept:
            _place(path, part / path.name, link, count)


def _write_mmproj(source: Source, part: Path, kept: frozenset[str], link: bool, count: _Count) -> None:
    name = _mmproj_name(source)
    if source.mmproj is None:
        write_gguf(part / name, source.family.weights, progress=count.part())
    elif name not in kept:
        _place(source.mmproj, part / name, link, count)


def _place(path: Path, to: Path, link: bool, count: _Count) -> None:
    """Copy a file, or give it another name: a hard link, which moves and copies as a file, else a symbolic one."""
    path = path.resolve()
    if link:
        with suppress(OSError):
            os.link(path, to)
        if not to.exists():
            to.symlink_to(path)
        return
    moved, size = count.part(), path.stat().st_size
    with path.open("rb") as source, to.open("wb") as target:
        while block := source.read(_BLOCK):
            target.write(block)
            moved(target.tell(), size)
    shutil.copymode(path, to)


def _total(source: Source, made: Sequence[graphs.Drawn], gguf: bool) -> int:
    """Bytes to write, and to read again for their hashes."""
    media = sum(t.nbytes for t in source.family.weights.tensors.values()) if gguf else 0
    media += sum(w.n_bytes for w in graphs.stored(made))
    made_text = source.text.tensors.values() if source.text else ()
    return 2 * (media + sum(p.stat().st_size for p in source.text_files) + sum(t.nbytes for t in made_text))


class _Count:
    """Progress of several jobs as that of the whole."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress, self._total, self._done, self._now = progress, total, 0, 0

    def end(self) -> None:
        """Everything is done: what was linked took no work."""
        if self._progress:
            self._progress(self._total, self._total)

    def part(self) -> Progress:
        """The progress of the next job."""
        self._done, self._now = self._done + self._now, 0

        def moved(done: int, _total: int) -> None:
            self._now = done
            if self._progress:
                self._progress(min(self._done + done, self._total), self._total)

        return moved
