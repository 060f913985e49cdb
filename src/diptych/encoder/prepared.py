"""Media halves written out for a runtime that wants files: graph and weights in the cache, so that it is done once.

An entry is a folder named by what decides its bytes: the content of the source, and the graph with the types and places of
its weights. It appears whole or not at all, and several processes may make the same one.
"""

from __future__ import annotations

import atexit
import hashlib
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from diptych import files
from diptych.encoder import content
from diptych.encoder.precision import Choice
from diptych.errors import FileError
from diptych.families.base import Family
from diptych.graph.graph import Graph, Kernel, Place, Stored

log = logging.getLogger(__name__)

MODEL, DATA = "model.onnx", "weights.bin"
_PART = ".part-"
_ALIGN = 64  # bytes; runtimes use aligned weights where they lie in the file
_KEPT = 90 * 86400  # seconds an entry stays that nobody uses
_ABANDONED = 86400  # seconds after which what is half written belongs to a process that died
_FORM = 2  # counts changes of how the bytes of weights are made from those of the source


@dataclass(frozen=True)
class _Files:
    """What the two files are to hold: the ONNX file's bytes, and weights with their offsets."""

    model: bytes
    weights: Mapping[str, Stored]
    offsets: Mapping[str, int]

    @property
    def n_bytes(self) -> int:
        return max((self.offsets[name] + stored.n_bytes for name, stored in self.weights.items()), default=0)

    def write(self, folder: Path) -> None:
        with (folder / DATA).open("wb") as out:
            for name, stored in self.weights.items():
                out.write(bytes(self.offsets[name] - out.tell()))
                out.write(np.ascontiguousarray(stored.read()).view(np.uint8).data)
            out.flush()
            os.fsync(out.fileno())
        (folder / MODEL).write_bytes(self.model)

    def are_in(self, folder: Path) -> bool:
        with suppress(OSError):
            return (folder / DATA).stat().st_size == self.n_bytes and (folder / MODEL).read_bytes() == self.model
        return False


@contextmanager
def prepared(family: Family, kind: str, choice: Choice) -> Iterator[Path]:
    """The ONNX file of a family's graph for one kind of piece, its weights in the type of the precision beside it.

    It stays valid inside the block. What has no file to be known by, or no place in the cache, is written to a temporary
    folder. Raises FileError when a weight cannot be read, or there is no room for it anywhere.
    """
    made = _files(family, kind, choice)
    if model := _in_cache(family, made):
        yield model
        return
    with _elsewhere(made) as folder:
        yield folder / MODEL


def kept(family: Family, kind: str, choice: Choice) -> Path | None:
    """The same file in the cache alone; None for what has no file to be known by, or no place there."""
    return _in_cache(family, _files(family, kind, choice))


def _in_cache(family: Family, made: _Files) -> Path | None:
    entry = _entry(family, made.model)
    return entry / MODEL if entry is not None and (_used(entry, made) or _kept(entry, made)) else None


def _files(family: Family, kind: str, choice: Choice) -> _Files:
    """OpenVINO takes a portable graph; ONNX Runtime has faster ops of its own, and the kernels are ops too."""
    kernels: set[Kernel] = {"linear"} if choice.runtime == "kernels" else set()
    if kernels and choice.rest == "bf16":
        kernels.add("attention")
    graph = Graph(
        family.weights,
        unpack=True,
        widen=(choice.precision, choice.runtime) == ("f32", "onnxruntime"),
        portable=choice.runtime == "openvino",
        kernels=frozenset(kernels),
        products=choice.precision,
        wide=family.wide,
    )
    family.graph(graph, kind)
    offsets, end = {}, 0
    for name, stored in graph.stored.items():
        offsets[name] = end + -end % _ALIGN
        end = offsets[name] + stored.n_bytes
    places: dict[str, Place] = {name: (DATA, offset) for name, offset in offsets.items()}
    return _Files(graph.serialize(places), graph.stored, offsets)


def _entry(family: Family, model: bytes) -> Path | None:
    """Where a media half's files are kept; None where its weights lie in no file."""
    places = [tensor.place for tensor in family.weights.tensors.values()]
    sources = sorted({place[0].resolve() for place in places if place})
    if not sources or None in places:
        return None
    told = [_FORM, hashlib.sha256(model).hexdigest(), *(content.sha256(path) for path in sources)]
    # resolved, since ONNX Runtime refuses links
    return files.home().absolute().resolve() / "encoders" / hashlib.sha256("\n".join(map(str, told)).encode()).hexdigest()[:32]


def _used(entry: Path, made: _Files) -> bool:
    """Whether the entry is there and whole; if so it counts as used now."""
    if not made.are_in(entry):
        return False
    with suppress(OSError):
        os.utime(entry)
    return True


def _kept(entry: Path, made: _Files) -> bool:
    """Make the entry; False where the cache does not take it."""
    part = None
    try:
        entry.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        part = Path(tempfile.mkdtemp(prefix=_PART, dir=entry.parent))
        made.write(part)
        if not made.are_in(entry):  # or another process was faster
            _remove(entry)
            with suppress(OSError):
                part.rename(entry)
    except OSError as error:
        log.warning("the encoder's weights are not kept for the next start: %s: %s", entry.parent, error.strerror or error)
        return False
    finally:
        if part is not None:
            shutil.rmtree(part, ignore_errors=True)
    _tidy(entry)
    return made.are_in(entry)


@contextmanager
def _elsewhere(made: _Files) -> Iterator[Path]:
    """The files in a temporary folder; a runtime may go on reading what it has mapped when that is removed."""
    try:
        folder = Path(tempfile.mkdtemp(prefix="diptych-encoder-")).resolve()
    except OSError as error:
        raise FileError(f"there is no temporary folder for the encoder's weights: {error}; set TMPDIR") from error
    try:
        try:
            made.write(folder)
        except OSError as error:
            raise FileError(
                f"{made.n_bytes / 1e6:.0f} MB of the encoder's weights cannot be written to {folder.parent}: "
                f"{error.strerror or error}; free some space, or set DIPTYCH_HOME or TMPDIR to where there is some"
            ) from error
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if folder.exists():  # Windows removes no file that is mapped
            atexit.register(shutil.rmtree, folder, ignore_errors=True)


def _tidy(entry: Path) -> None:
    """Remove entries that nobody has used for long, and what killed processes left half written."""
    with suppress(OSError):
        for other in entry.parent.iterdir():
            with suppress(OSError):
                last = max(path.stat().st_mtime for path in (other, *other.iterdir()))
                kept = _ABANDONED if other.name.startswith(_PART) else _KEPT
                if other != entry and time.time() - last > kept:
                    _remove(other)


def _remove(folder: Path) -> None:
    """Remove a folder that may be there, in one step for those who look for it; on Windows not while it is in use."""
    with suppress(OSError):
        gone = Path(tempfile.mkdtemp(prefix=_PART, dir=folder.parent))
        with suppress(OSError):
            folder.rename(gone / folder.name)
        shutil.rmtree(gone, ignore_errors=True)
