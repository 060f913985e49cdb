"""What goes in one run of the media half: pieces of one batch key, up to so many patches and tokens."""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass

from diptych.families.base import MediaHalf
from diptych.options import Options
from diptych.types import Piece


@dataclass(frozen=True)
class Limits:
    """How much goes in one run. What is first goes even where it is more."""

    max_patches: int
    max_tokens: int

    @classmethod
    def of(cls, half: MediaHalf, options: Options) -> Limits:
        """Those of the options, fewer patches where the half has memory for no more."""
        return cls(min(half.max_patches, options.encode_max_patches), options.encode_max_tokens)


class Run:
    """Pieces that go together, of the batch keys of those that came first."""

    def __init__(self, batch_key: Callable[[Piece], Hashable], limits: Limits) -> None:
        self.pieces: list[Piece] = []
        self.n_patches = self.n_tokens = 0
        self._batch_key, self._limits = batch_key, limits
        self._keys: frozenset[Hashable] = frozenset()

    def add(self, pieces: Sequence[Piece], n_tokens: int) -> bool:
        """Take pieces that make `n_tokens` rows in all, or none where they do not fit."""
        n_patches, n_tokens = self.n_patches + sum(piece.n_patches for piece in pieces), self.n_tokens + n_tokens
        if self.pieces and (n_patches > self._limits.max_patches or n_tokens > self._limits.max_tokens):
            return False
        keys = frozenset(map(self._batch_key, pieces))
        if self.pieces and not keys <= self._keys:
            return False
        self._keys = self._keys or keys
        self.pieces += pieces
        self.n_patches, self.n_tokens = n_patches, n_tokens
        return True


def runs(pieces: Sequence[Piece], max_patches: int) -> Iterator[list[Piece]]:
    """Cut pieces of one batch key, in order, into runs of at most `max_patches` patches; a larger piece goes alone."""
    limits = Limits(max_patches, sys.maxsize)
    run = Run(lambda _: None, limits)
    for piece in pieces:
        if not run.add([piece], 0):
            yield run.pieces
            run = Run(lambda _: None, limits)
            run.add([piece], 0)
    if run.pieces:
        yield run.pieces
