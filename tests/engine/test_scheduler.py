"""The scheduler as a pure function: whatever comes, all are served, in order, once, within the limits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prompts import N_EMBD, picture, rows_of, sequence, text

from diptych.engine.scheduler import Step, schedule
from diptych.engine.sequence import Sequence
from diptych.types import Chunk, MediaChunk, TextChunk


def running(*sequences: Sequence) -> list[Sequence]:
    for slot, one in enumerate(sequences):
        one.slot = slot
    return list(sequences)


def decode(step: Step) -> None:
    """What the engine does with a step, less llama.cpp: the cursor moves, and who asked for logits gets a token."""
    for one, segment in zip(step.sequences, step.batch.segments, strict=True):
        one.cursor += segment.n_rows
        if segment.wants_logits:
            one.output.append(1000 + len(one.output))


def n_rows(step: Step) -> list[int]:
    return [segment.n_rows for segment in step.batch.segments]


def test_text_is_prefilled_in_batches_and_the_last_row_alone_asks_for_logits() -> None:
    sequences = running(sequence([text(10)]))
    seen = []
    for _ in range(3):
        step = schedule(sequences, 4)
        assert step is not None
        seen += [(s.n_rows, s.wants_logits) for s in step.batch.segments]
        decode(step)
    assert seen == [(4, False), (4, False), (2, True)]


def test_a_token_of_every_decoding_sequence_goes_before_prompts() -> None:
    prompt, reader, other = running(sequence([text(10)]), sequence([text(3)]), sequence([text(3)]))
    for one in (reader, other):
        one.cursor, one.output = 3, [7]
    step = schedule([prompt, reader, other], 8)
    assert step is not None
    assert step.sequences == (reader, other, prompt)
    assert n_rows(step) == [1, 1, 6]
    assert step.batch.segments[0].positions[:, 0].tolist() == [3, 3, 3, 0]


def test_while_somebody_is_answered_prompts_go_in_small_parts() -> None:
    talking, new = running(sequence([text(4)]), sequence([text(40)]))
    talking.cursor, talking.output = 4, [1000]
    step = schedule([talking, new], 32, n_prefill=5)
    assert step is not None
    assert n_rows(step) == [1, 5]
    step = schedule([new], 32, n_prefill=5)
    assert step is not None
    assert n_rows(step) == [32]  # nobody would notice


def test_rows_of_several_pictures_go_in_one_batch() -> None:
    sequences = running(sequence([picture("a", 2, 3), text(2)]), sequence([picture("b", 1, 4), text(2)]))
    step = schedule(sequences, 64)
    assert step is not None
    assert step.kind == "media"
    assert n_rows(step) == [6, 4]
    for segment, name in zip(step.batch.segments, ("a", "b"), strict=True):
        assert segment.embeddings is not None
        assert segment.embeddings[0, 0] == picture(name, 1, 1).key[0]


def test_a_picture_longer_than_the_batch_is_cut_with_its_positions() -> None:
    (one,) = running(sequence([text(2), picture("a", 3, 2), text(1)]))
    one.cursor = 2
    planes: list[Any] = []
    values: list[Any] = []
    for n in (4, 2):
        step = schedule([one], 4)
        assert step is not None
        assert n_rows(step) == [n]
        planes.append(step.batch.segments[0].positions)
        values.append(step.batch.segments[0].embeddings)
        decode(step)
    assert np.concatenate(planes, 1).tolist() == [[2] * 6, [2, 2, 3, 3, 4, 4], [2, 3, 2, 3, 2, 3], [0] * 6]
    np.testing.assert_array_equal(np.concatenate(values), rows_of(picture("a", 3, 2)))
    step = schedule([one], 4)
    assert step is not None
    assert step.batch.segments[0].positions[:, 0].tolist() == [5, 5, 5, 0]  # 2 + max(3, 2), not 2 + 6


def test_the_rows_of_a_picture_that_see_each_other_go_whole_and_alone() -> None:
    whole = sequence([picture("a", 3, 3), text(1)], n_pos=1, causal=False)
    sequences = running(whole, sequence([picture("b", 1, 2), text(1)], n_pos=1))
    step = schedule(sequences, 4)
    assert step is not None
    assert not step.batch.causal
    assert step.sequences == (whole,)
    assert n_rows(step) == [9]


def test_both_kinds_take_turns() -> None:
    sequences = running(sequence([text(40)]), sequence([picture("a", 5, 8), text(1)]))
    last, kinds = None, []
    for _ in range(6):
        step = schedule(sequences, 4, last)
        assert step is not None
        last = step.kind
        kinds.append(step.kind)
        decode(step)
    assert kinds == ["tokens", "media"] * 3


def test_text_before_a_picture_is_prefilled_while_it_is_being_encoded() -> None:
    (one,) = running(sequence([text(3), picture("a", 2, 2), text(1)], encoded=False))
    step = schedule([one], 8)
    assert step is not None
    assert n_rows(step) == [3]
    decode(step)
    assert schedule([one], 8) is None
    one.rows[1] = rows_of(picture("a", 2, 2))
    step = schedule([one], 8)
    assert step is not None
    assert step.kind == "media"


def test_a_prompt_that_ends_in_a_picture_asks_for_the_logits_of_its_last_row() -> None:
    (one,) = running(sequence([text(1), picture("a", 2, 2)]))
    one.cursor = 1
    step = schedule([one], 3)
    assert step is not None
    assert not step.batch.segments[0].wants_logits
    decode(step)
    step = schedule([one], 3)
    assert step is not None
    assert step.batch.segments[0].wants_logits


chunks = st.one_of(
    st.builds(text, st.integers(1, 9), st.integers(1, 99)),
    st.builds(picture, st.text("abc", min_size=1, max_size=3), st.integers(1, 4), st.integers(1, 4)),
)
prompts = st.lists(chunks, min_size=1, max_size=5)
requests = st.lists(st.tuples(prompts, st.integers(1, 6), st.integers(0, 12), st.booleans()), min_size=1, max_size=5)


class Run:
    """Requests served to their end: each comes at its own time, and is encoded some steps later."""

    def __init__(
        self, wanted: list[tuple[list[Chunk], int, int, bool]], n_batch: int, n_pos: int, n_prefill: int | None = None
    ) -> None:
        self.n_batch, self.n_pos, self.n_prefill = n_batch, n_pos, n_prefill
        self.todo = [(sequence(c, n_pos, causal or n_pos == 4, encoded=False), n, delay) for c, n, delay, causal in wanted]
        self.seen: dict[int, list[Any]] = {slot: [] for slot in range(len(self.todo))}
        self.places: dict[int, list[list[int]]] = {slot: [] for slot in range(len(self.todo))}
        self.steps = 0
        running(*(one for one, _, _ in self.todo))

    def serve(self) -> None:
        last, clock = None, 0
        limit = sum(2 * (one.n_prompt + n) + delay for one, n, delay in self.todo)
        while any(len(one.output) < n for one, n, _ in self.todo):
            clock += 1
            assert clock <= limit, "somebody starves"
            for one, _, delay in self.todo:
                for i, _, chunk in one.media if clock >= delay else ():
                    one.rows[i] = rows_of(chunk)
            step = schedule([one for one, n, _ in self.todo if len(one.output) < n], self.n_batch, last, self.n_prefill)
            if step is not None:
                last = step.kind
                self.check(step)
                decode(step)

    def check(self, step: Step) -> None:
        batch = step.batch
        assert len({s.seq_id for s in batch.segments}) == len(batch.segments)
        assert {s.tokens is None for s in batch.segments} == {step.kind == "media"}
        if batch.causal:
            n_decoding = sum(one.decoding for one, n, _ in self.todo if len(one.output) < n)
            part = n_decoding + self.n_prefill if n_decoding and self.n_prefill is not None else self.n_batch
            assert sum(n_rows(step)) <= min(self.n_batch, part)
        else:
            assert len(batch.segments) == 1
        for one, segment in zip(step.sequences, batch.segments, strict=True):
            assert segment.seq_id == one.slot
            assert segment.n_rows > 0
            rows = segment.tokens if segment.tokens is not None else segment.embeddings
            assert rows is not None
            assert len(rows) == segment.n_rows
            if not batch.causal:
                assert segment.n_rows == one.spans[one._index].chunk.n_tokens
            self.seen[segment.seq_id] += rows.tolist()
            self.places[segment.seq_id] += segment.positions.T.tolist()


@settings(max_examples=300, deadline=None)
@given(requests, st.integers(1, 12), st.sampled_from([1, 4]), st.none() | st.integers(1, 6))
def test_every_row_of_every_request_is_decoded_once_in_order_and_nobody_starves(
    wanted: list[tuple[list[Chunk], int, int, bool]], n_batch: int, n_pos: int, n_prefill: int | None
) -> None:
    run = Run(wanted, n_batch, n_pos, n_prefill)
    run.serve()
    for slot, (prompt, n, _, _) in enumerate(wanted):
        expected: list[Any] = []
        for chunk in prompt:
            expected += list(chunk.tokens) if isinstance(chunk, TextChunk) else rows_of(chunk).tolist()
        expected += [1000 + i for i in range(n - 1)]  # the last token is never decoded
        assert run.seen[slot] == expected


@settings(max_examples=200, deadline=None)
@given(requests, st.integers(1, 12), st.sampled_from([1, 4]))
def test_positions_only_grow(wanted: list[tuple[list[Chunk], int, int, bool]], n_batch: int, n_pos: int) -> None:
    run = Run(wanted, n_batch, n_pos)
    run.serve()
    for slot, (prompt, n, _, _) in enumerate(wanted):
        planes = np.array(run.places[slot]).T
        row = top = 0
        for chunk in [*prompt, *([text(n - 1)] if n > 1 else [])]:
            own = planes[:, row : row + chunk.n_tokens]
            assert (own[: min(n_pos, 3)] >= top).all()
            assert own[0, 0] == top  # and leave no gap
            grid = chunk.grid if isinstance(chunk, MediaChunk) and n_pos == 4 else None
            top += max(grid.t, grid.h, grid.w) if grid else chunk.n_tokens
            row += chunk.n_tokens
        assert row == planes.shape[1]


@pytest.mark.parametrize("n_batch", [1, 5])
def test_a_sequence_that_left_the_cache_is_decoded_again_with_its_answer_so_far(n_batch: int) -> None:
    (one,) = running(sequence([text(3), picture("a", 2, 2), text(2)]))
    one.output = [1000, 1001, 1002]
    tokens: list[int] = []
    while len(one.output) == 3:
        step = schedule([one], n_batch)
        assert step is not None
        if step.batch.segments[0].tokens is not None:
            tokens += step.batch.segments[0].tokens.tolist()
        decode(step)
    assert tokens == [1, 2, 3, 1, 2, 1000, 1001, 1002]
    assert one.rows[1].shape == (4, N_EMBD)
