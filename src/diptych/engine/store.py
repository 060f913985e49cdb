"""Slots in files: what the KV cache holds of a prompt, its pictures too, for a later run of the same model.

A file has a line with the hash of all that stands behind it, so that nothing damaged comes to native code, a line of JSON
that says what it is of, the ids of the rows as 64-bit integers, and the bytes of the cache.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diptych.engine.loop import Loop
from diptych.engine.slots import Held
from diptych.errors import InputError
from diptych.files import whole_file
from diptych.llama.model import TextModel
from diptych.options import Options

_FORMAT = b"diptych slot 1"
_SAMPLE = 2**20  # bytes of either end of a model's file, which tell it from others
_LINE = 200  # bytes, at most, of the line with the hash


@dataclass(frozen=True)
class Kept:
    """What was written to a file or read from it."""

    n_tokens: int
    n_bytes: int
    ms: float


class Store:
    """Saves and restores the slots of an engine. A slot must be idle: else Unavailable is raised, and InputError where there
    is no such slot."""

    def __init__(self, loop: Loop, text: TextModel, media_backend: str | None, options: Options) -> None:
        self._loop, self._text, self._media_backend, self._options = loop, text, media_backend, options

    def save(self, number: int, path: Path) -> Kept:
        """Write what was left in a slot, over a file that is there. Raises OutputError where that cannot be done."""
        start = time.perf_counter()
        held, state = self._loop.between(lambda slots: slots.state(number)).result()
        ids = held.ids.astype("<i8").tobytes()
        head = {
            "model": self._model, "media_backend": self._media_backend, "n_rows": len(held.ids),
            "media": [[row, key.hex(), n] for row, (key, n) in held.media.items()],
        }  # fmt: skip
        told = json.dumps(head).encode() + b"\n" + ids
        with whole_file(path, force=True) as part, part.open("wb") as file:
            file.write(_FORMAT + b" " + _hash(told, state.data) + b"\n" + told)
            file.write(state.data)
        return Kept(len(held.ids), path.stat().st_size, 1e3 * (time.perf_counter() - start))

    def restore(self, number: int, path: Path) -> Kept:
        """Leave in a slot what a file holds. Raises InputError for a file that is not there, is none of these, or is of another
        model."""
        start = time.perf_counter()
        head, rest = _read(path)
        self._check(head, path)
        n = 8 * head["n_rows"]
        held = Held(rest[:n].view("<i8").astype(np.int64), {row: (bytes.fromhex(key), n) for row, key, n in head["media"]})
        self._loop.between(lambda slots: slots.restore(number, held, rest[n:])).result()
        return Kept(len(held.ids), path.stat().st_size, 1e3 * (time.perf_counter() - start))

    def erase(self, number: int) -> int:
        """Forget what was left in a slot; how many tokens that was."""
        return self._loop.between(lambda slots: slots.erase(number)).result()

    @cached_property
    def _model(self) -> dict[str, object]:
        """What the bytes of the cache depend on."""
        with self._text.path.open("rb") as file:
            first = file.read(_SAMPLE)
            size = file.seek(0, 2)
            file.seek(max(0, size - _SAMPLE))
            last = file.read()
        options = self._options
        return {
            "size": size,
            "sha256": hashlib.sha256(first + last).hexdigest(),
            "cache_types": [options.cache_type_k, options.cache_type_v],
            "n_streams": 1 if options.kv_unified else options.n_parallel,
        }

    def _check(self, head: Mapping[str, Any], path: Path) -> None:
        if head["media"] and self._media_backend is None:
            raise InputError(f"Cannot restore media tokens without an mmproj: {path.name} holds some; start with --mmproj")
        if head["media"] and head["media_backend"] != self._media_backend:
            raise InputError(
                f"{path.name} holds rows of the media backend {head['media_backend']}, and {self._media_backend} runs; "
                "start with the other --media-backend"
            )
        if head["model"] != self._model:
            raise InputError(
                f"{path.name} was saved with another model or KV cache; start with the model, cache types, and without "
                "--kv-unified the number of slots, that it was saved with"
            )


def _read(path: Path) -> tuple[Mapping[str, Any], NDArray[np.uint8]]:
    """What a file is of, and the bytes of ids and cache."""
    try:
        with path.open("rb") as file:
            first, told = file.readline(_LINE), file.read()
    except OSError as error:
        raise InputError(f"cannot read {path.name}: {error.strerror}; save a slot under this name first") from error
    if not first.startswith(_FORMAT):
        raise InputError(f"{path.name} is no slot that Diptych saved; save the slot again")
    if first != _FORMAT + b" " + _hash(told) + b"\n":
        raise InputError(f"{path.name} is damaged: its bytes do not have the hash that stands in it; save the slot again")
    end = told.index(b"\n")
    return json.loads(told[:end]), np.frombuffer(told, np.uint8)[end + 1 :]


def _hash(*parts: bytes | memoryview) -> bytes:
    out = hashlib.sha256()
    for part in parts:
        out.update(part)
    return out.hexdigest().encode()
