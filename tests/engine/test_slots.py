"""Slots: what of an earlier prompt is used again, and what must not be."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from prompts import picture, sequence, text

from diptych.engine.sequence import Sequence
from diptych.engine.slots import Slots
from diptych.types import Chunk, MediaChunk, Request


class Recorder:
    """A cache that keeps account of what was removed and copied; a `stubborn` one forgets whole sequences only, and a
    `divided` one copies nothing."""

    def __init__(self, stubborn: bool = False, divided: bool = False) -> None:
        self.stubborn, self.divided = stubborn, divided
        self.removed: list[tuple[int, int]] = []
        self.copied: list[tuple[int, int, int]] = []

    @property
    def unified(self) -> bool:
        return not self.divided

    def remove(self, seq_id: int, start: int, end: int = -1) -> bool:
        self.removed.append((seq_id, start))
        return not (self.stubborn and start)

    def copy(self, source: int, target: int, end: int) -> bool:
        if not self.divided:
            self.copied.append((source, target, end))
        return not self.divided


def served(slots: Slots, chunks: list[Chunk], rows: int | None = None) -> Sequence:
    """A sequence that took a slot, decoded its prompt (or some rows of it), and left."""
    one = sequence(chunks)
    slots.take(one)
    one.cursor = one.n_prompt if rows is None else rows
    slots.give_back(one)
    return one


def reused(first: list[Chunk], second: list[Chunk], rows: int | None = None) -> int:
    slots = Slots(1, Recorder())
    served(slots, first, rows)
    one = sequence(second)
    slots.take(one)
    assert slots.n_reused == one.cursor
    return one.cursor


def test_the_common_prefix_is_used_again_and_the_rest_removed_by_position() -> None:
    cache = Recorder()
    slots = Slots(1, cache)
    served(slots, [text(3), picture("a", 2, 3), text(5, first=10)])
    one = sequence([text(3), picture("a", 2, 3), text(2, first=10), text(3, first=50)])
    slots.take(one)
    assert one.cursor == 3 + 6 + 2
    assert cache.removed == [(0, 3 + 3 + 2)]  # the picture takes six rows and three positions


def test_an_answer_is_a_prefix_of_the_next_turn() -> None:
    slots = Slots(1, Recorder())
    one = sequence([text(3)])
    slots.take(one)
    one.output, one.cursor = [70, 71, 72], 5  # the last token is never decoded
    slots.give_back(one)
    assert slots.n_idle_rows == 5
    two = sequence([text(3), text(3, first=70), text(2, first=90)])
    slots.take(two)
    assert two.cursor == 5


def test_a_sequence_that_left_the_cache_finds_its_own_answer_there_again() -> None:
    cache = Recorder()
    slots = Slots(1, cache)
    served(slots, [text(2), picture("a", 2, 2), text(4, first=70)])
    one = sequence([text(2), picture("a", 2, 2)])
    one.output = [70, 71, 5, 6]
    slots.take(one)
    assert one.cursor == 2 + 4 + 2
    assert cache.removed == [(0, 2 + 2 + 2)]


def test_one_row_is_always_decoded_so_that_there_are_logits() -> None:
    assert reused([text(5)], [text(5)]) == 4


def test_a_prompt_that_ends_in_a_picture_decodes_all_of_it_again() -> None:
    same: list[Chunk] = [text(2), picture("a", 2, 2)]
    assert reused(same, same) == 2


def test_another_picture_of_the_same_size_reuses_only_what_stands_before_it() -> None:
    assert reused([text(3), picture("a", 2, 2), text(4)], [text(3), picture("b", 2, 2), text(4)]) == 3


def test_a_picture_that_was_decoded_in_part_is_not_reused() -> None:
    chunks: list[Chunk] = [text(3), picture("a", 2, 3), text(4)]
    assert reused(chunks, chunks, rows=7) == 3


def test_stand_ins_are_not_trusted_without_the_whole_key() -> None:
    original = picture("a", 2, 2)
    twin = replace(original, key=original.key[:8] + bytes(24))
    assert np.array_equal(twin.ids, original.ids)
    assert reused([text(3), original, text(2)], [text(3), twin, text(2)]) == 3


def test_a_cache_that_cannot_forget_a_tail_starts_afresh() -> None:
    cache = Recorder(stubborn=True)
    slots = Slots(1, cache)
    served(slots, [text(6)])
    one = sequence([text(3), text(3, first=50)])
    slots.take(one)
    assert one.cursor == 0
    assert cache.removed == [(0, 3), (0, 0)]


def test_a_cache_that_holds_nothing_more_is_not_asked_to_forget() -> None:
    cache = Recorder(stubborn=True)
    slots = Slots(1, cache)
    served(slots, [text(6)])
    one = sequence([text(6), text(3, first=50)])
    slots.take(one)
    assert one.cursor == 6
    assert cache.removed == []


def test_the_slot_that_holds_the_longest_prefix_is_taken_and_else_the_one_that_idles_longest() -> None:
    slots = Slots(3, Recorder())
    a, b, c = (sequence([text(5, first=n)]) for n in (10, 20, 30))
    for one in (a, b, c):
        slots.take(one)
        one.cursor = 5
    assert slots.free == []
    for one in (b, c, a):
        slots.give_back(one)
    again, new = sequence([text(9, first=30)]), sequence([text(9, first=90)])
    slots.take(again)
    assert (again.slot, again.cursor) == (2, 5)
    slots.take(new)
    assert (new.slot, new.cursor) == (1, 0)


def test_conversations_that_begin_alike_do_not_drive_each_other_out() -> None:
    slots = Slots(3, Recorder())
    first, second = ([text(20), text(9, first=n)] for n in (100, 200))
    served(slots, first)
    turns = (second, [*first, text(3, first=300)], [*second, text(3, first=300)])
    assert [served(slots, turn).n_cached for turn in turns] == [20, 29, 29]
    unasked = sequence(first)
    unasked.request = replace(unasked.request, cache_prompt=False)
    slots.take(unasked)
    assert (unasked.slot, unasked.cursor) == (2, 0)


def test_where_nothing_can_be_copied_a_prefix_is_taken_with_all_that_stands_behind_it() -> None:
    slots = Slots(2, Recorder(divided=True))
    served(slots, [text(9), text(20, first=100)])
    assert served(slots, [text(9), text(20, first=200)]).n_cached == 9


def test_where_nothing_can_be_copied_a_slot_keeps_what_it_has_itself() -> None:
    slots = Slots(2, Recorder(divided=True))
    for number, n in ((0, 5), (1, 9)):
        one = replace(sequence([text(n)]), request=Request(slot=number))
        slots.take(one)
        one.cursor = n
        slots.give_back(one)
    again = replace(sequence([text(12)]), request=Request(slot=0))
    slots.take(again)
    assert (again.slot, again.cursor) == (0, 5)


def test_room_is_made_by_forgetting_the_slot_that_idles_longest() -> None:
    cache = Recorder()
    slots = Slots(2, cache)
    a, b = sequence([text(5)]), sequence([text(5, first=50)])
    for one in (a, b):
        slots.take(one)
        one.cursor = 5
    for one in (b, a):
        slots.give_back(one)
    cache.removed.clear()
    assert slots.forget_idle()
    assert cache.removed == [(1, 0)]
    assert slots.forget_idle()
    assert not slots.forget_idle()
    assert slots.reusable(sequence([text(5)])) == 0


def test_what_is_to_be_forgotten_is_not_reused() -> None:
    cache = Recorder()
    slots = Slots(1, cache)
    one = sequence([text(5)])
    slots.take(one)
    one.cursor = 5
    slots.give_back(one, forget=True)
    assert cache.removed == [(0, 0)]
    assert slots.reusable(sequence([text(5)])) == 0


words = st.one_of(
    st.builds(text, st.integers(1, 3), st.integers(1, 3)), st.builds(picture, st.sampled_from("ab"), *[st.integers(1, 2)] * 2)
)


@given(st.lists(words, min_size=1, max_size=5), st.lists(words, min_size=1, max_size=5), st.data())
def test_what_is_reused_is_equal_and_never_a_part_of_a_picture(
    first: list[Chunk], second: list[Chunk], data: st.DataObject
) -> None:
    held = data.draw(st.integers(0, sum(c.n_tokens for c in first)))
    n = reused(first, second, held)
    old, new = sequence(first), sequence(second)
    assert n <= min(held, new.n_prompt - 1)
    assert old.ids[:n].tolist() == new.ids[:n].tolist()
    for one in (old, new):
        assert not any(row < n < row + chunk.n_tokens for _, row, chunk in one.media if isinstance(chunk, MediaChunk))
    assert old.position(n) == new.position(n)


def test_what_a_running_sequence_has_decoded_is_copied_to_who_shares_it() -> None:
    cache = Recorder()
    slots = Slots(2, cache)
    first = sequence([text(3), picture("a", 2, 3), text(5, first=10)])
    slots.take(first)
    first.cursor = 3 + 6 + 1  # it is still being prefilled
    second = sequence([text(3), picture("a", 2, 3), text(5, first=10)])
    slots.take(second)
    assert cache.copied == [(first.slot, second.slot, 3 + 3 + 1)]  # up to a position, not a row
    assert second.cursor == second.n_cached == slots.n_reused == 10


def test_a_picture_that_is_being_decoded_is_not_copied_in_part() -> None:
    cache = Recorder()
    slots = Slots(2, cache)
    first, second = (sequence([text(3), picture("a", 2, 3)]) for _ in range(2))
    slots.take(first)
    first.cursor = 5
    slots.take(second)
    assert (second.cursor, cache.copied) == (3, [(first.slot, second.slot, 3)])


def test_where_nothing_can_be_copied_the_prompt_is_decoded_anew() -> None:
    for cache in (Recorder(divided=True), Recorder(stubborn=True)):
        slots = Slots(2, cache)
        first, second = (sequence([text(9)]) for _ in range(2))
        slots.take(first)
        first.cursor = 9
        slots.take(second)
        assert second.cursor == 0
        assert not cache.stubborn or cache.removed[-1] == (second.slot, 0)


def test_the_free_slot_that_holds_as_much_is_taken_without_a_copy() -> None:
    cache = Recorder()
    slots = Slots(2, cache)
    served(slots, [text(9)])
    slots.take(sequence([text(9), text(2, first=50)]))
    assert cache.copied == []


def test_a_request_may_name_its_slot_and_may_want_nothing_reused() -> None:
    cache = Recorder()
    slots = Slots(3, cache)
    served(slots, [text(9)])
    one = sequence([text(9)])
    one.request = replace(one.request, slot=4, cache_prompt=False)
    assert slots.is_free(4)
    assert slots.reusable(one) == 0
    slots.take(one)
    assert (one.slot, one.cursor) == (1, 0)
    assert not slots.is_free(4)
    assert slots.is_free(None)
