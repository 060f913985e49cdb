"""Whose turn it is in the encoder: requests in turn, the pieces of each in order, nobody for ever."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from diptych.encoder.limits import Limits
from diptych.encoder.work import Encoding, Task, Work
from diptych.types import Grid, MediaChunk, Piece

ONE = 4  # patches of a piece
ALL = 1 << 20  # tokens: only patches are limited


def chunk(name: str, n_pieces: int = 1, kind: str = "image") -> MediaChunk:
    pieces = tuple(Piece(kind, {}, (1, 2, 2), f"{name}/{i}".encode()) for i in range(n_pieces))
    return MediaChunk("image", n_pieces, Grid(1, 1, n_pieces), name.encode(), pieces)


def group(piece: Piece) -> str:
    return piece.kind


def take(work: Work, max_patches: int = ONE) -> list[str]:
    """Take what goes in one run, do it, and name its pieces."""
    tasks = work.take(group, Limits(max_patches, ALL))
    done(work, tasks)
    return [task.piece.key.decode().removesuffix("/0") for task in tasks]


def done(work: Work, tasks: Sequence[Task]) -> None:
    for task in tasks:
        task.job.arrays[task.index] = None  # type: ignore[assignment]
    for job in {task.job for task in tasks}:
        if not job.missing:
            work.end(job)


def served(work: Work, max_patches: int = ONE) -> list[list[str]]:
    out = []
    while len(work):
        out.append(take(work, max_patches))
    return out


def test_one_picture_does_not_wait_for_fifty_of_another_request() -> None:
    work = Work()
    for i in range(50):
        work.add(chunk(f"many {i}"), "many", Encoding())
    assert take(work) == ["many 0"]
    running = work.take(group, Limits(ONE, ALL))
    work.add(chunk("one"), "one", Encoding())
    done(work, running)
    assert [running[0].piece.key, *map(str, take(work))] == [b"many 1/0", "one"]
    assert take(work) == ["many 2"]


def test_requests_take_turns_and_each_is_served_in_order() -> None:
    work = Work()
    for owner in "abc":
        for i in range(3):
            work.add(chunk(f"{owner}{i}"), owner, Encoding())
    assert served(work) == [[f"{owner}{i}"] for i in range(3) for owner in "abc"]


def test_a_run_with_room_for_several_has_some_of_each_request() -> None:
    work = Work()
    for name in ("a0", "a1", "a2", "b0", "b1", "c0"):
        work.add(chunk(name), name[0], Encoding())
    assert served(work, 4 * ONE) == [["a0", "b0", "c0", "a1"], ["b1", "a2"]]


def test_the_pieces_of_a_large_picture_let_others_pass() -> None:
    work = Work()
    work.add(chunk("tiles", 3), "a", Encoding())
    work.add(chunk("small"), "b", Encoding())
    assert served(work) == [["tiles"], ["small"], ["tiles/1"], ["tiles/2"]]


def test_a_picture_that_two_ask_for_has_the_better_place_of_the_two() -> None:
    work = Work()
    for i in range(4):
        work.add(chunk(f"a{i}"), "a", Encoding())
    assert not work.add(chunk("a3"), "b", Encoding())
    assert work.holds(b"a3")
    assert served(work) == [["a0"], ["a3"], ["a1"], ["a2"]]


def test_what_all_have_cancelled_is_left_out() -> None:
    work, waiters = Work(), [Encoding() for _ in range(3)]
    for owner, name, waiter in zip("aba", ("x", "x", "y"), waiters, strict=True):
        work.add(chunk(name), owner, waiter)
    waiters[0].cancel()
    waiters[2].cancel()
    assert served(work) == [["x"]]


def test_pieces_of_another_kind_wait_for_a_run_of_their_own() -> None:
    work = Work()
    for name in ("a0", "b0", "c0"):
        work.add(chunk(name, kind="sound" if name == "b0" else "image"), name[0], Encoding())
    assert served(work, 100) == [["a0", "c0"], ["b0"]]


def test_a_run_makes_no_more_tokens_than_it_may_and_a_piece_counts_by_its_share() -> None:
    work = Work()
    work.add(chunk("a", 3), "a", Encoding())  # a token each
    work.add(chunk("b"), "b", Encoding())
    runs = []
    while tasks := work.take(group, Limits(100, 2)):
        runs.append([(task.piece.key.decode(), task.n_tokens) for task in tasks])
        done(work, tasks)
    assert runs == [[("a/0", 1), ("b/0", 1)], [("a/1", 1), ("a/2", 1)]]


def test_without_names_it_is_first_come_first_served() -> None:
    work = Work()
    for i in range(4):
        work.add(chunk(str(i)), "", Encoding())
    assert served(work, 2 * ONE) == [["0", "1"], ["2", "3"]]


@given(st.lists(st.one_of(st.none(), st.tuples(st.integers(0, 3), st.integers(1, 3))), max_size=40), st.integers(1, 4))
def test_nobody_waits_longer_than_a_round(events: list[tuple[int, int] | None], room: int) -> None:
    """A run (None) or a chunk of so many pieces of a request: while n requests wait, each is served in n runs at the latest."""
    work, named = Work(), 0
    waited: dict[str, int] = {}
    seen: list[str] = []
    for event in [*events, *[None] * 200]:
        if event is not None:
            named += 1
            work.add(chunk(f"{event[0]} {named}", event[1]), str(event[0]), Encoding())
            waited.setdefault(str(event[0]), 0)
            continue
        owners = {owner for job in work.jobs() for owner in job.owners}
        tasks = work.take(group, Limits(room * ONE, ALL))
        assert bool(tasks) == bool(owners)
        got = {task.job.owners[0] for task in tasks}
        waited = {owner: 0 if owner in got else waited[owner] + 1 for owner in owners}
        assert max(waited.values(), default=0) < 4
        seen += [task.piece.key.decode() for task in tasks]
        done(work, tasks)
    assert len(work) == 0
    assert len(seen) == len(set(seen))
    for owner in "0123":  # each in order
        own = [tuple(map(int, key.split(" ")[1].split("/"))) for key in seen if key.startswith(owner)]
        assert own == sorted(own)
