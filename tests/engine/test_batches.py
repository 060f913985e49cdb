"""Pictures of several requests in one run of the encoder, and what the limits of a run do to that."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest
from asking import Load, png, request, tokens, wait_until

from diptych.engine import Engine
from diptych.families.base import Rows
from diptych.types import Piece, Request

ASKED = [request(f"what {i} ", png(i, 56, 56), "is this", n=6) for i in range(5)]  # 16 patches, 4 tokens each


@pytest.fixture
def shut(load: Load) -> Callable[..., tuple[Engine, Event]]:
    """A function from options to an engine without a cache whose encoder does nothing until the event is set."""

    def shut(**options: object) -> tuple[Engine, Event]:
        engine, opened = load(n_parallel=5, encode_cache_mib=0, **options), Event()
        half = engine._half
        assert half is not None
        encode = half.encode

        def later(pieces: Sequence[Piece]) -> list[Rows]:
            assert opened.wait(20)
            return encode(pieces)

        half.encode = later  # type: ignore[method-assign]
        return engine, opened

    return shut


def ask_at_once(engine: Engine, opened: Event, asked: Sequence[Request]) -> list[tuple[int, ...]]:
    """The answers to requests whose pictures all wait before the first is encoded."""
    with ThreadPoolExecutor(len(asked)) as pool:
        answers = [pool.submit(tokens, engine, one) for one in asked]
        wait_until(lambda: engine.stats().encoder.waiting == len(asked))
        opened.set()
        return [answer.result(20) for answer in answers]


@pytest.mark.parametrize(
    ("options", "n_runs"),
    [
        ({}, 2),  # the first, which does not wait, and the four others
        ({"encode_max_patches": 32}, 3),
        ({"encode_max_tokens": 8}, 3),
        ({"encode_max_patches": 1}, 5),
        ({"encode_max_tokens": 1}, 5),
    ],
)
def test_pictures_of_several_requests_go_in_one_run_within_the_limits(
    load: Load, shut: Callable[..., tuple[Engine, Event]], options: dict[str, int], n_runs: int
) -> None:
    engine, opened = shut(**options)
    found = ask_at_once(engine, opened, ASKED)
    did = engine.stats().encoder
    assert (did.runs, did.pieces, did.patches) == (n_runs, 5, 5 * 16)
    alone = load(encode_cache_mib=0)
    assert found == [tokens(alone, one) for one in ASKED]
    assert alone.stats().encoder.runs == 5
