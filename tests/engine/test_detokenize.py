"""Text comes in whole characters, and stops before a stop string, however the bytes are cut."""

from __future__ import annotations

import time

from hypothesis import example, given
from hypothesis import strategies as st

from diptych.engine.detokenize import Detokenizer


def said(pieces: list[bytes], stop: tuple[str, ...] = ()) -> tuple[list[str], bool]:
    """What is given out after each piece, and at the end; and whether it stopped."""
    text = Detokenizer(stop)
    return [text.push(piece) for piece in pieces] + [text.push(b"", final=True)], text.stopped


def test_a_character_is_given_out_when_it_is_whole() -> None:
    euro = "€".encode()
    assert said([b"a", euro[:1], euro[1:2], euro[2:] + b"b"]) == (["a", "", "", "€b", ""], False)


def test_half_a_character_at_the_end_is_a_replacement_character() -> None:
    assert said([b"a", b"\xe2\x82"])[0] == ["a", "", "\ufffd"]


def test_bytes_that_are_no_text_do_not_hold_up_what_follows() -> None:
    assert "".join(said([b"a\xff", b"b"])[0]) == "a\ufffdb"


def test_what_may_begin_a_stop_string_is_held_back() -> None:
    assert said([b"ab", b"cX", b"c"], ("cd",)) == (["ab", "cX", "", "c"], False)


def test_a_stop_string_in_several_tokens_is_not_given_out_nor_what_follows() -> None:
    assert said([b"one ", b"<", b"end", b"> two"], ("<end>",)) == (["one ", "", "", "", ""], True)


def test_the_first_of_several_stop_strings_counts() -> None:
    assert said([b"a1b2"], ("2", "1"))[0] == ["a", ""]
    assert said([b"xabcab", b"d"], ("abcabcd", "abd"))[0] == ["x", "abc", ""]


def test_the_stop_string_that_ended_the_answer_is_told() -> None:
    for stop, pieces, told in [
        (("b", "1"), [b"a1b"], "1"),
        (("cd", "bcd"), [b"ab", b"cd"], "bcd"),
        (("",), [b"ab"], None),
        (("abcd", "bc"), [b"abcd"], "bc"),
    ]:
        text = Detokenizer(stop)
        for piece in pieces:
            text.push(piece)
        assert (text.stopped_by, text.stopped) == (told, told is not None)


def test_many_stop_strings_and_a_long_answer_take_no_time() -> None:
    stop = tuple(f"{'ab' * i}c" for i in range(1, 33))
    text, started = Detokenizer(stop), time.process_time()
    for _ in range(10_000):
        text.push(b"ababx")
    assert time.process_time() - started < 1


def test_a_stop_string_of_cut_characters_is_found() -> None:
    end = "fin→".encode()
    assert said([b"a", end[:4], end[4:]], ("fin→",)) == (["a", "", "", ""], True)


@example("aabaab", ["aab", "ab"], [1] * 6)
@given(st.text("abé€", max_size=20), st.lists(st.text("abé€", min_size=1, max_size=4), max_size=3), st.lists(st.integers(1, 5)))
def test_the_text_does_not_depend_on_where_tokens_are_cut(text: str, stop: list[str], cuts: list[int]) -> None:
    data, pieces = text.encode(), []
    for n in cuts:
        pieces.append(data[:n])
        data = data[n:]
    out, stopped = said([*pieces, data], tuple(stop))
    whole = "".join(out)
    ends = [(i + len(s), -len(s)) for i in range(len(text)) for s in stop if text.startswith(s, i)]
    assert stopped == bool(ends)
    end, size = min(ends, default=(len(text), 0))  # the one that is complete first, the longest of several
    assert whole == text[: end + size]
