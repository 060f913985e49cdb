"""Whose turn it is: sequences in, the next batch out. A pure function; it holds no llama object and no state."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as List
from dataclasses import dataclass

from diptych.engine.sequence import Kind, Sequence
from diptych.types import Batch


@dataclass(frozen=True, eq=False)
class Step:
    """A batch, and for each of its segments the sequence it belongs to."""

    kind: Kind
    batch: Batch
    sequences: tuple[Sequence, ...]


def schedule(sequences: List[Sequence], n_batch: int, last: Kind | None = None, n_prefill: int | None = None) -> Step | None:
    """The next batch of at most `n_batch` rows, or None while all wait for the encoder.

    Sequences stand in the order they came, and earlier ones go first; where both kinds of batch are possible it is
    not the `last` kind again. So every sequence comes to its end in a bounded number of steps. While somebody is being
    answered at most `n_prefill` rows of prompts go into a step, so that the next token is not long in coming.
    """
    n_decoding = sum(s.decoding for s in sequences)
    if n_decoding and n_prefill is not None:
        n_batch = min(n_batch, n_decoding + n_prefill)
    steps = [step for step in (_tokens(sequences, n_batch), _media(sequences, n_batch)) if step is not None]
    return next((step for step in steps if step.kind != last), steps[0] if steps else None)


def _tokens(sequences: List[Sequence], n_batch: int) -> Step | None:
    """One token of every decoding sequence first: a long prompt must not make those who are reading wait."""
    waiting = [s for s in sequences if s.kind == "tokens"]
    return _fill("tokens", sorted(waiting, key=lambda s: not s.decoding), n_batch)


def _media(sequences: List[Sequence], n_batch: int) -> Step | None:
    """Rows of all pictures that are there; one whose rows all see each other goes whole and alone."""
    ready = [s for s in sequences if s.kind == "media" and s.n_ready]
    if ready and not ready[0].causal:
        alone = ready[0]
        return Step("media", Batch((alone.segment(alone.n_ready),), causal=False), (alone,))
    return _fill("media", [s for s in ready if s.causal], n_batch)


def _fill(kind: Kind, sequences: Iterable[Sequence], n_batch: int) -> Step | None:
    taken, segments, room = [], [], n_batch
    for sequence in sequences:
        if n := min(sequence.n_ready, room):
            taken.append(sequence)
            segments.append(sequence.segment(n))
            room -= n
    return Step(kind, Batch(tuple(segments)), tuple(taken)) if taken else None
