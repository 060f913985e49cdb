"""Bytes of tokens → text that can be shown: whole characters only, and nothing that may begin a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Iterable


class Detokenizer:
    """The text of one answer. `stopped` is set by the first stop string, which is not given out, nor is what follows."""

    def __init__(self, stop: Iterable[str] = ()) -> None:
        self.stopped = False
        self._stop = tuple(stop)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""

    def push(self, piece: bytes, final: bool = False) -> str:
        """Take the bytes of a token; the text that is now sure. `final` gives out what was held back too."""
        if self.stopped:
            return ""
        text = self._held + self._decoder.decode(piece, final)
        ends = [at for at in map(text.find, self._stop) if at >= 0]
        self.stopped = bool(ends)
        keep = min(ends) if ends else len(text) - (0 if final else self._doubtful(text))
        self._held = "" if ends else text[keep:]
        return text[:keep]

    def _doubtful(self, text: str) -> int:
        """The length of the longest end of `text` that a stop string begins with."""
        return max((n for stop in self._stop for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0)
