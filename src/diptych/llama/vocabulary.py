"""What the tokens of a model are in bytes, looked up once a model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from diptych.llama.model import TextModel

_known: WeakKeyDictionary[TextModel, Vocabulary] = WeakKeyDictionary()


class Vocabulary:
    """The bytes of all tokens, special ones too. `byte` has the token of each single byte there is one for."""

    def __init__(self, model: TextModel) -> None:
        self.pieces = [model.piece(token, special=True) for token in range(model.n_vocab)]
        self.byte = {piece[0]: token for token, piece in enumerate(self.pieces) if len(piece) == 1}
        self._lengths = np.array([len(piece) for piece in self.pieces], np.int32)

    def by_length(self, tokens: NDArray[np.int32]) -> Iterator[NDArray[np.intp]]:
        """Where in (n,) tokens those of each length stand, short ones first."""
        lengths = self._lengths[tokens]
        order = np.argsort(lengths, kind="stable")
        yield from np.split(order, np.flatnonzero(np.diff(lengths[order])) + 1)


def of(model: TextModel) -> Vocabulary:
    """The vocabulary of a model; a tenth of a second or two the first time."""
    if model not in _known:
        _known[model] = Vocabulary(model)
    return _known[model]
