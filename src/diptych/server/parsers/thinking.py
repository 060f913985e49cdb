"""How a model marks its reasoning, and whether it is in it when an answer begins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ReasoningFormat = Literal["none", "auto", "deepseek", "deepseek-legacy"]

_TAGS = (("<think>", "</think>"), ("[THINK]", "[/THINK]"), ("<seed:think>", "</seed:think>"))
_MARKS_ANSWERS = "<|begin_of_image|>"  # in the templates of GLM's vision models, which write these around answers
_BLOCKS = ("<answer>", "</answer>")
_MARKUP = ("<|begin_of_box|>", "<|end_of_box|>")


@dataclass(frozen=True)
class Thinking:
    """The tags around reasoning. `known` tells whether the template has them; answers of other models may too.

    `opened` is what the prompt ends with, from the opening tag on, where the answer begins inside; "" otherwise.
    `settled`: the prompt has been through reasoning already, so the answer has none. `blocks` and `markup` are
    left out of content, the former with the white space beside them.
    """

    open: str
    close: str
    known: bool
    opened: str
    settled: bool
    blocks: tuple[str, ...]
    markup: tuple[str, ...]


def of_template(source: str, opening: str) -> Thinking:
    """How the model of a template thinks, in an answer behind a prompt that ends with `opening`."""
    tags = next((pair for pair in _TAGS if pair[1] in source), _TAGS[0])
    opened, closed = (opening.rfind(tag) for tag in tags)
    return Thinking(
        *tags,
        known=tags[1] in source,
        opened=opening[opened:] if opened > closed else "",
        settled=closed >= 0 and closed > opened,
        blocks=_BLOCKS if _MARKS_ANSWERS in source else (),
        markup=_MARKUP if _MARKS_ANSWERS in source else (),
    )
