"""Which tokens would repeat an n-gram of the answer: found without going over the answer again."""

from __future__ import annotations

from collections import defaultdict

_BASE, _MODULUS = 1_000_003, 2**61 - 1  # of a rolling hash; what it finds is compared before it is believed


class Ngrams:
    """The n-grams of an answer, as transformers bans them, and vLLM for document models: the prompt does not count."""

    def __init__(self, n: int) -> None:
        self._width = n - 1  # tokens of the part that stands before the last
        self._tokens: list[int] = []
        self._hash = 0  # of the last `_width` tokens
        self._lead = pow(_BASE, self._width, _MODULUS)
        self._ends: defaultdict[int, list[int]] = defaultdict(list)  # hash → where tokens with it end

    def push(self, token: int) -> None:
        """Take a token of the answer."""
        end = len(self._tokens)
        if end >= self._width:
            self._ends[self._hash].append(end)
        self._tokens.append(token)
        self._hash = (self._hash * _BASE + token + 1) % _MODULUS
        if end >= self._width:
            self._hash = (self._hash - (self._tokens[end - self._width] + 1) * self._lead) % _MODULUS

    def banned(self) -> list[int]:
        """The tokens that would complete an n-gram that is there already."""
        end, width = len(self._tokens), self._width
        if end < width:
            return []
        last = self._tokens[end - width :]
        return [self._tokens[e] for e in self._ends.get(self._hash, ()) if self._tokens[e - width : e] == last]
