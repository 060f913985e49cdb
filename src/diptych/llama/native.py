"""Owners of what llama.cpp allocates: freed once, what depends on it first, at the latest when Python exits."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, Self

from diptych.errors import EngineError

Pointer = Any  # an address as int, or a ctypes pointer: llama_cpp uses both


class Native:
    """Something of llama.cpp's behind a pointer. Closing it closes what was made from it first."""

    def __init__(self, what: str, pointer: Pointer, free: Callable[[Pointer], object], parent: Native | None = None) -> None:
        self._what = what
        self._pointer = pointer
        self._children: weakref.WeakSet[Native] = weakref.WeakSet()
        # The finalizer holds the parent, so a parent is never collected before what was made from it; and finalizers
        # run at exit in reverse order of creation.
        self._free = weakref.finalize(self, _release, free, pointer, parent)
        if parent is not None:
            parent._children.add(self)

    @property
    def pointer(self) -> Pointer:
        """The C pointer. Raises EngineError once closed."""
        if not self._free.alive:
            raise EngineError(f"the {self._what} is closed; load it again before using it")
        return self._pointer

    def close(self) -> None:
        """Free it, and before it everything made from it; a second call does nothing."""
        for child in list(self._children):
            child.close()
        self._free()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


def _release(free: Callable[[Pointer], object], pointer: Pointer, _parent: Native | None) -> None:
    free(pointer)
