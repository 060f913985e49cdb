"""Work begun ahead by a pool: in order, as far ahead as said, and never waiting for a thread that does not come."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from diptych.engine.ahead import Ahead


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


def test_items_are_done_at_the_same_time_and_come_in_order(pool: ThreadPoolExecutor) -> None:
    meeting = threading.Barrier(3, timeout=20)  # none goes on before three are at work

    def work(item: int) -> int:
        meeting.wait()
        return item * item

    with Ahead(work, range(3), pool, 2) as ahead:
        assert [ahead(item) for item in range(3)] == [0, 1, 4]


@pytest.mark.parametrize("n", [0, 1, 2])
def test_no_more_is_begun_than_asked_for_and_n_ahead(pool: ThreadPoolExecutor, n: int) -> None:
    begun: list[int] = []
    with Ahead(begun.append, range(20), pool, n) as ahead:
        for item in range(5):
            ahead(item)
    pool.submit(int).result()
    assert list(range(5)) == sorted(begun)[:5]
    assert len(begun) <= 5 + n


def test_equal_items_are_begun_once_and_others_in_any_order(pool: ThreadPoolExecutor) -> None:
    begun: list[str] = []
    with Ahead(lambda item: begun.append(item) or item, ["a", "a", "b", "c"], pool, 2) as ahead:
        assert [ahead(item) for item in ("c", "a", "b", "d")] == ["c", "a", "b", "d"]
    assert sorted(begun) == ["a", "b", "c", "d"]


def test_who_waits_for_one_item_does_the_next_meanwhile() -> None:
    third = threading.Event()

    def work(item: int) -> int:
        if item == 1:
            assert third.wait(20)  # ends only when the third is done, for which the pool has no thread
        elif item == 2:
            third.set()
        return item

    with ThreadPoolExecutor(1) as pool, Ahead(work, range(4), pool, 2) as ahead:
        assert [ahead(item) for item in range(4)] == [0, 1, 2, 3]


def test_threads_of_a_full_pool_do_their_work_themselves() -> None:
    def whole(start: int) -> list[int]:
        with Ahead(lambda item: item + 1, range(start, start + 4), full, 3) as ahead:
            return [ahead(item) for item in range(start, start + 4)]

    with ThreadPoolExecutor(1) as full:
        found = [full.submit(whole, start) for start in (0, 10, 20)]
        assert [one.result(20) for one in found] == [[1, 2, 3, 4], [11, 12, 13, 14], [21, 22, 23, 24]]


def test_an_error_is_raised_where_its_item_is_asked_for_and_the_rest_is_dropped() -> None:
    done: list[int] = []

    def work(item: int) -> int:
        done.append(item)
        return 1 // (1 - item)

    free = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(free.wait, 20)  # so that none is begun
        with Ahead(work, range(9), pool, 4) as ahead, pytest.raises(ZeroDivisionError):
            assert ahead(0) == 1
            ahead(1)
        free.set()
    assert done == [0, 1]


def test_when_the_pool_is_closed_items_are_done_one_by_one() -> None:
    pool = ThreadPoolExecutor(1)
    pool.shutdown()
    with Ahead(str, range(3), pool, 2) as ahead:
        assert [ahead(item) for item in range(3)] == ["0", "1", "2"]
