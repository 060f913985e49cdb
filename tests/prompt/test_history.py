"""Which pictures stay in a conversation."""

from __future__ import annotations

import pytest

from diptych.errors import InputError
from diptych.prompt import seen
from diptych.types import Message, Source

A, B, C = (Source("image", url=name) for name in "abc")
SOUND = Source("audio", url="s")
TURNS = (
    Message("user", (A, "one", SOUND)),
    Message("assistant", ("1",)),
    Message("tool", (B, "two", C), tool_call_id="x"),
    Message("user", ("three", SOUND)),
)


def test_all_pictures_stay():
    assert seen(TURNS, "all") == TURNS


def test_only_those_of_the_last_message_that_has_any_stay():
    assert seen(TURNS, "last") == (Message("user", ("one", SOUND)), *TURNS[1:])
    assert seen(TURNS[:1], "last") == TURNS[:1]
    assert seen(TURNS[1:2], "last") == TURNS[1:2]
    assert seen((), "last") == ()


@pytest.mark.parametrize("choice", ["", "none", "LAST", "first"])
def test_other_choices_are_refused(choice):
    with pytest.raises(InputError, match=rf"^vision_history is '{choice}'; it must be one of all, last$"):
        seen(TURNS, choice)
