"""Media halves written out for a runtime that wants files: graph and weights in the cache, so that it is done once.

An entry is a folder named by what it was made of: the content of the source, the family's graph, the form of the weights.
It appears whole or not at all, and several processes may make the same one.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import BinaryIO

import numpy as np

from diptych import files
from diptych.encoder import content
from diptych.encoder.precision import Precision
from diptych.families.base import Family
from diptych.graph.graph import Graph, Place, Stored

log = logging.getLogger(__name__)

MODEL, DATA = "model.onnx", "weights.bin"
_ALIGN = 64  # bytes; runtimes use aligned weights where they lie in the file
_KEPT = 90 * 86400  # seconds an entry stays that nobody uses
_FORM = 1  # counts changes of how graphs and weights are written


@contextmanager
def prepared(family: Family, kind: str, precision: Precision) -> Iterator[Path]:
    """The ONNX file of a family's graph for one kind of piece, portable, its weights in the type of `precision` beside it.

    It stays valid inside the block. What has no file to be known by, or no place in the cache, is written to a temporary
    folder. Raises FileError when a weight cannot be read.
    """
    entry = _entry(family, kind, precision)
    if entry is not None and _is_there(entry):
        with suppress(OSError):
            os.utime(entry)
        yield entry / MODEL
        return
    part = _folder(entry)
    try:
        _write(family, kind, precision, part)
        if entry is None:
            yield part / MODEL
            return
        with suppress(OSError):  # another process was faster
            part.rename(entry)
        _tidy(entry)
        yield entry / MODEL if _is_there(entry) else part / MODEL
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _entry(family: Family, kind: str, precision: Precision) -> Path | None:
    """Where a media half's files are kept; None where its weights lie in no file."""
    places = [tensor.place for tensor in family.weights.tensors.values()]
    sources = sorted({place[0].resolve() for place in places if place})
    if not sources or None in places:
        return None
    told = [_FORM, version("diptych"), type(family).__name__, kind, precision, *(content.sha256(path) for path in sources)]
    return files.home() / "encoders" / hashlib.sha256("\n".join(map(str, told)).encode()).hexdigest()[:32]


def _folder(entry: Path | None) -> Path:
    """A new folder to write to, beside the entry where that can be."""
    if entry is not None:
        try:
            entry.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            return Path(tempfile.mkdtemp(prefix=".part-", dir=entry.parent))
        except OSError as error:
            log.warning("the encoder's weights are not kept for the next start: %s: %s", entry.parent, error.strerror)
    return Path(tempfile.mkdtemp(prefix="diptych-encoder-"))


def _write(family: Family, kind: str, precision: Precision, folder: Path) -> None:
    graph = Graph(family.weights, unpack=True, portable=True, products=precision, wide=family.wide)
    family.graph(graph, kind)
    with (folder / DATA).open("wb") as out:
        places = {name: _stored(out, stored) for name, stored in graph.stored.items()}
    (folder / MODEL).write_bytes(graph.serialize(places))


def _stored(out: BinaryIO, stored: Stored) -> Place:
    out.write(bytes(-out.tell() % _ALIGN))
    start = out.tell()
    out.write(np.ascontiguousarray(stored.read()).view(np.uint8).data)
    return DATA, start


def _is_there(entry: Path) -> bool:
    return (entry / MODEL).is_file() and (entry / DATA).is_file()


def _tidy(entry: Path) -> None:
    """Remove entries that nobody has used for long, and what broken processes left."""
    for other in entry.parent.iterdir():
        with suppress(OSError):
            if other != entry and time.time() - other.stat().st_mtime > _KEPT:
                shutil.rmtree(other, ignore_errors=True)
