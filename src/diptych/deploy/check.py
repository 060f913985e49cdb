"""Whether the halves of a model fit, by what their headers say."""

from __future__ import annotations

from typing import Protocol

from diptych.deploy.text import TextFacts
from diptych.errors import MismatchedHalves


class Half(Protocol):
    """What of a media half has to fit."""

    @property
    def n_embd(self) -> int: ...
    @property
    def n_pos(self) -> int: ...


def misfit(half: Half, text: TextFacts) -> str | None:
    """What does not fit between two halves, if anything."""
    if half.n_embd != text.n_embd:
        return f"gives rows of width {half.n_embd}, and {{}} takes rows of width {text.n_embd}"
    if half.n_pos != text.n_pos:
        return f"gives {half.n_pos} positions a row, and {{}} takes {text.n_pos}"
    return None


def check_pair(media_name: str, half: Half, text_name: str, text: TextFacts) -> None:
    """Raise MismatchedHalves for halves that are not of one model."""
    if found := misfit(half, text):
        raise MismatchedHalves(
            f"the halves are not of one model: {media_name} {found.format(text_name)}; take two that were made together"
        )
