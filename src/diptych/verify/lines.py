"""Sides held against each other, and what may lie between them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diptych.verify.side import MEDIA, Answer, Side, parting

PIXELS = 1e-6  # absolute, normalised values: both sides compute in float32
# By the widest rounding on either side, relative to the largest value of the rows. At f32 sums are in another order;
# f16, bf16 and q8_0 have 11, 8 and about 7 bits a weight, and dozens of layers of them.
ROWS = {"F32": 1e-5, "F16": 1e-2, "BF16": 3e-2, "Q8_0": 1e-1}
# libmtmd rounds too: GELU by a table and attention in f16; and activations to 8 bits where weights have 8.
LIBMTMD = {"F32": 2e-3, "F16": 1e-2, "BF16": 3e-2, "Q8_0": 1e-1}
# A token that led the second by less than this share of the largest logit could be either.
LEADS = {"F32": 1e-3, "F16": 2e-2, "BF16": 5e-2, "Q8_0": 1e-1}


@dataclass(frozen=True)
class Line:
    """One comparison: what of which picture against whom, what was found, and whether that is within its bound.

    `ok` is None where no bound is known, as for the tokens of a text half with 4 bits a weight.
    """

    picture: str
    what: str
    against: str
    found: str
    bound: str
    ok: bool | None


def compared(picture: str, against: str, ours: Side, theirs: Side, rows: float, lead: float | None) -> Iterator[Line]:
    """Everything both sides tell about a picture: `rows` bounds the embeddings, `lead` the tokens of the answer."""
    if ours.pixels is not None and theirs.pixels is not None:
        yield _pixels(picture, against, ours.pixels, theirs.pixels)
    yield _tokens(picture, against, ours.tokens, theirs.tokens)
    yield _positions(picture, against, ours.positions, theirs.positions)
    yield _rows(picture, against, ours.rows, theirs.rows, rows)
    if ours.answer and theirs.answer:
        yield _answer(picture, against, ours.answer, theirs.answer, lead)


def _pixels(picture: str, against: str, ours: NDArray[Any], theirs: NDArray[Any]) -> Line:
    if ours.size != theirs.size:
        return Line(picture, "pixels", against, f"{ours.size} values, not {theirs.size}", f"{PIXELS:g}", False)
    apart = float(np.abs(ours - theirs).max(initial=0))
    if apart > PIXELS and np.abs(np.sort(ours) - np.sort(theirs)).max() <= PIXELS:  # patches may be fed in any order
        return Line(picture, "pixels", against, "equal, in another order", f"{PIXELS:g}", True)
    return Line(picture, "pixels", against, f"{apart:.2g} apart", f"{PIXELS:g}", apart <= PIXELS)


def _tokens(picture: str, against: str, ours: Sequence[int], theirs: Sequence[int]) -> Line:
    n = ours.count(MEDIA), theirs.count(MEDIA)
    if ours == theirs:
        return Line(picture, "tokens", against, f"{len(ours)} equal, {n[0]} of them media", "equal", True)
    at = parting(ours, theirs)
    found = f"{n[0]} media tokens, not {n[1]}" if n[0] != n[1] else f"differ from token {at} on, of {len(ours)} and {len(theirs)}"
    return Line(picture, "tokens", against, found, "equal", False)


def _positions(picture: str, against: str, ours: NDArray[Any], theirs: NDArray[Any]) -> Line:
    n = min(len(ours), len(theirs), 3)  # the fourth plane of llama.cpp is no position of transformers'
    if ours.shape[1] == theirs.shape[1] and (ours[:n] == theirs[:n]).all():
        return Line(picture, "positions", against, f"{n} plane{'s' * (n > 1)} of {ours.shape[1]} equal", "equal", True)
    same = ours.shape[1] == theirs.shape[1]
    found = f"{int((ours[:n] != theirs[:n]).any(0).sum())} of {ours.shape[1]} differ" if same else "of other tokens"
    return Line(picture, "positions", against, found, "equal", False)


def _rows(picture: str, against: str, ours: NDArray[Any], theirs: NDArray[Any], bound: float) -> Line:
    if ours.shape != theirs.shape:
        shapes = " × ".join(map(str, ours.shape)), " × ".join(map(str, theirs.shape))
        return Line(picture, "embeddings", against, f"{shapes[0]}, not {shapes[1]}", f"{bound:g}", False)
    apart = float(np.abs(ours - theirs).max() / (np.abs(theirs).max() or 1.0))
    cosine = float(((ours * theirs).sum(1) / (np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1) + 1e-30)).min())
    found = f"{apart:.2g} relative, least cosine {cosine:.6f}"
    return Line(picture, "embeddings", against, found, f"{bound:g}", bool(apart <= bound))


def _answer(picture: str, against: str, ours: Answer, theirs: Answer, bound: float | None) -> Line:
    at, n = parting(ours.tokens, theirs.tokens), max(len(ours.tokens), len(theirs.tokens))
    limit = "a toss-up" if bound is None else f"lead {bound:g}"
    if at == n:
        return Line(picture, "answer", against, f"{n} of {n} tokens equal", limit, True)
    if at == min(len(ours.tokens), len(theirs.tokens)):
        return Line(picture, "answer", against, f"ends after {len(ours.tokens)} tokens, not {len(theirs.tokens)}", limit, None)
    found = f"{at} of {n} tokens equal, then a lead of {theirs.leads[at]:.2g}"
    return Line(picture, "answer", against, found, limit, None if bound is None else theirs.leads[at] <= bound)
