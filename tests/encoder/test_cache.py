"""The cache of encoded media: never over its bytes, the one used last stays, and what was handed out stays valid."""

from __future__ import annotations

import threading
from collections import OrderedDict

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from diptych.encoder.cache import Cache
from diptych.families.base import Rows

WIDTH = 4  # numbers in a row: 16 bytes


def rows(n: int, value: float = 1.0) -> Rows:
    return np.full((n, WIDTH), value, np.float32)


def key(i: int) -> bytes:
    return bytes([i])


def test_rows_are_found_again_by_their_key() -> None:
    cache, one = Cache(100), rows(2)
    cache.put(key(1), one)
    assert cache.get(key(1)) is one
    assert cache.get(key(2)) is None
    assert (len(cache), cache.n_bytes, cache.n_evicted) == (1, 32, 0)


def test_the_one_not_used_for_longest_makes_room() -> None:
    cache = Cache(3 * 16)
    for i in range(3):
        cache.put(key(i), rows(1, i + 1))
    first = cache.get(key(0))
    cache.put(key(3), rows(1))
    assert [i for i in range(4) if cache.get(key(i)) is not None] == [0, 2, 3]
    cache.put(key(4), rows(2))
    assert [i for i in range(5) if cache.get(key(i)) is not None] == [3, 4]
    assert cache.n_evicted == 3
    assert first is not None
    assert (first == 1).all()


def test_rows_larger_than_the_cache_are_not_kept_and_throw_nothing_out() -> None:
    cache = Cache(3 * 16)
    cache.put(key(1), rows(3))
    cache.put(key(2), rows(4))
    assert cache.get(key(1)) is not None
    assert cache.get(key(2)) is None
    assert cache.n_evicted == 0


def test_a_cache_of_nothing_keeps_nothing() -> None:
    cache = Cache(0)
    cache.put(key(1), rows(1))
    assert cache.get(key(1)) is None
    assert (len(cache), cache.n_bytes) == (0, 0)


@given(
    st.integers(0, 12),
    st.lists(st.tuples(st.booleans(), st.integers(0, 6), st.integers(1, 8)), max_size=60),
)
def test_bytes_and_order_are_those_of_a_plain_list(room: int, calls: list[tuple[bool, int, int]]) -> None:
    """Against a model: (put or get, key, number of rows), with room for so many rows."""
    cache = Cache(16 * room)
    model: OrderedDict[int, int] = OrderedDict()
    for put, i, n in calls:
        if put and n <= room:
            model.pop(i, None)
            model[i] = n
            while sum(model.values()) > room:
                model.popitem(last=False)
        elif not put and i in model:
            model.move_to_end(i)
        if put:
            cache.put(key(i), rows(n))
        else:
            found = cache.get(key(i))
            assert (None if found is None else len(found)) == model.get(i)
        assert cache.n_bytes == 16 * sum(model.values()) <= cache.max_bytes
        assert len(cache) == len(model)


def test_threads_put_and_get_at_once() -> None:
    cache = Cache(16 * 20)
    faults: list[int] = []

    def work(seed: int) -> None:
        random = np.random.default_rng(seed)
        for i in random.integers(0, 30, 2000):
            found = cache.get(key(int(i)))
            if found is None:
                cache.put(key(int(i)), rows(1 + i % 3, float(i + 1)))
            elif len(found) != 1 + i % 3 or (found != i + 1).any():
                faults.append(i)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    held = [found for i in range(30) if (found := cache.get(key(i))) is not None]
    assert faults == []
    assert cache.n_bytes == sum(one.nbytes for one in held) <= cache.max_bytes
