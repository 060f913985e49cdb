"""The encoder thread around a real media half: what is packed together, what fails alone, what is not encoded twice, and
what a trace tells of it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import wait
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny
from diptych import convert
from diptych.encoder.encoder import Encoder, Encoding
from diptych.encoder.half import FamilyHalf, open_half
from diptych.encoder.limits import Limits
from diptych.errors import EngineError, UnusableMedia
from diptych.families.base import MediaHalf, Rows
from diptych.options import Options
from diptych.trace import OFF, Trace, open_trace
from diptych.types import Media, MediaChunk, MediaSettings, Piece

TIMEOUT = 20  # seconds
ALL = 1 << 20  # tokens: only patches are limited


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MediaHalf]:
    folder = tmp_path_factory.mktemp("tiny")
    tiny.qwen2vl(folder / "checkpoint", tiny.Qwen2VL(v_depth=1, n_layer=1))
    convert.convert(folder / "checkpoint", folder / "out", outtype="f32")
    made = open_half(folder / "out" / "mmproj.gguf", Options(threads=1))
    yield made
    made.close()


class Door:
    """A media half that keeps the encoder outside until `open` is called, and notes what went in together."""

    def __init__(self, half: MediaHalf) -> None:
        self._half, self._door, self._inside = half, threading.Event(), threading.Event()
        self.runs: list[list[Piece]] = []
        self.open = self._door.set

    def __getattr__(self, name: str) -> Any:
        return getattr(self._half, name)

    def occupy(self, encoder: Encoder, one: MediaChunk) -> Encoding:
        """Send in a chunk, and return when the encoder is at work on it."""
        future = encoder.submit(one)
        assert self._inside.wait(TIMEOUT)
        return future

    def encode(self, pieces: Sequence[Piece]) -> list[Rows]:
        self._inside.set()
        assert self._door.wait(TIMEOUT)
        self.runs.append(list(pieces))
        return self._half.encode(pieces)


@pytest.fixture
def door(half: MediaHalf) -> Door:
    return Door(half)


@pytest.fixture
def start() -> Iterator[Callable[..., Encoder]]:
    made: list[Encoder] = []

    def start(half: Any, max_patches: int = 4096, cache_bytes: int = 0, trace: Trace = OFF) -> Encoder:
        made.append(Encoder(half, Limits(max_patches, ALL), cache_bytes, trace))
        return made[-1]

    yield start
    for encoder in made:
        encoder.close()


def chunk(half: MediaHalf, seed: int, width: int = 112, height: int = 84) -> MediaChunk:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)
    (made,) = half.preprocess(Media("image", pixels, bytes([seed]) * 32), MediaSettings())
    return made


def alone(half: MediaHalf, one: MediaChunk) -> Rows:
    return half.join(one, [half.encode([piece])[0] for piece in one.pieces])


def test_rows_are_those_of_each_picture_alone_and_all_that_wait_go_in_one_run(
    half: MediaHalf, door: Door, start: Callable[..., Encoder]
) -> None:
    encoder = start(door)
    first = door.occupy(encoder, chunk(half, 0))
    chunks = [chunk(half, 1, 84, 140), chunk(half, 2, 196, 56), chunk(half, 3)]
    others = [encoder.submit(one) for one in chunks]
    assert encoder.counters.waiting == 4
    door.open()
    for one, rows in zip(chunks, [f.result(TIMEOUT) for f in others], strict=True):
        assert rows.shape == (one.n_tokens, half.n_embd)
        np.testing.assert_allclose(rows, alone(half, one), rtol=1e-4, atol=1e-4)
    assert first.ms > 0
    assert [len(run) for run in door.runs] == [1, 3]
    counters = encoder.counters
    assert (counters.runs, counters.pieces, counters.waiting) == (2, 4, 0)
    assert counters.patches == sum(4 * one.n_tokens for one in (chunk(half, 0), *chunks))
    assert counters.encode_seconds == pytest.approx(sum(future.ms for future in [first, *others]) / 1e3)


def test_a_picture_in_work_is_not_encoded_again(half: MediaHalf, door: Door, start: Callable[..., Encoder]) -> None:
    encoder = start(door)
    both = [encoder.submit(chunk(half, 0)) for _ in range(2)]
    door.open()
    one, two = (f.result(TIMEOUT) for f in both)
    assert one is two
    assert len(door.runs) == 1
    assert both[0].ms > 0
    assert both[1].ms == 0


def test_runs_are_cut_at_the_patch_budget_and_a_larger_picture_goes_alone(
    half: MediaHalf, door: Door, start: Callable[..., Encoder]
) -> None:
    small = 4 * chunk(half, 0).n_tokens
    encoder = start(door, 2 * small)
    futures = [door.occupy(encoder, chunk(half, 0)), *(encoder.submit(chunk(half, seed)) for seed in range(1, 4))]
    futures.append(encoder.submit(chunk(half, 9, 280, 280)))
    door.open()
    wait(futures, TIMEOUT)
    sizes = [[len(piece.inputs["patches"]) for piece in run] for run in door.runs]
    assert sizes == [[small], [small, small], [small], [400]]
    assert max(map(sum, sizes[:-1])) == 2 * small


def test_pieces_are_joined_into_the_rows_of_their_chunk(half: MediaHalf, start: Callable[..., Encoder]) -> None:
    a, b = chunk(half, 0), chunk(half, 1, 56, 56)
    both = replace(a, key=bytes(32), pieces=(*a.pieces, *b.pieces), n_tokens=a.n_tokens + b.n_tokens)
    rows = start(half).submit(both).result(TIMEOUT)
    np.testing.assert_allclose(rows, np.concatenate([alone(half, a), alone(half, b)]), rtol=1e-4, atol=1e-4)


def test_a_piece_too_large_for_the_rest_of_a_run_waits_for_the_next(
    half: MediaHalf, door: Door, start: Callable[..., Encoder]
) -> None:
    small = 4 * chunk(half, 0).n_tokens
    encoder = start(door, 2 * small)
    futures = [door.occupy(encoder, chunk(half, 0))]
    futures += [encoder.submit(one) for one in (chunk(half, 1), chunk(half, 2, 140, 140), chunk(half, 3))]
    door.open()
    wait(futures, TIMEOUT)
    assert [[len(piece.inputs["patches"]) for piece in run] for run in door.runs] == [[small], [small, small], [100]]


def test_what_nobody_waits_for_any_more_is_not_encoded(half: MediaHalf, door: Door, start: Callable[..., Encoder]) -> None:
    encoder = start(door)
    first = door.occupy(encoder, chunk(half, 0))
    second, third = (encoder.submit(chunk(half, seed)) for seed in (1, 2))
    again = encoder.submit(chunk(half, 2))
    assert second.cancel()
    assert third.cancel()
    door.open()
    assert again.result(TIMEOUT).shape == first.result(TIMEOUT).shape
    assert [len(run) for run in door.runs] == [1, 1]
    assert again.ms > 0


class Faulty(Door):
    """A half that spoils what has the key of one chunk."""

    def __init__(self, half: MediaHalf, bad: MediaChunk, spoil: Callable[[Rows], Rows]) -> None:
        super().__init__(half)
        self._bad, self._spoil = bad.pieces[0].key, spoil

    def encode(self, pieces: Sequence[Piece]) -> list[Rows]:
        arrays = super().encode(pieces)
        return [self._spoil(rows) if piece.key == self._bad else rows for piece, rows in zip(pieces, arrays, strict=True)]


def crash(rows: Rows) -> Rows:
    raise MemoryError("no more")


def not_finite(rows: Rows) -> Rows:
    rows = rows.copy()
    rows[-1, 0] = np.inf
    return rows


def zero(rows: Rows) -> Rows:
    rows = rows.copy()
    rows[1] = 0
    return rows


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (crash, "failed on a picture of 112×84 pixels: MemoryError"),
        (not_finite, "not finite"),
        (zero, "zeros"),
        (lambda rows: rows[1:], r"\(11, 128\) where \(12, 128\)"),
        (lambda rows: rows[:, 1:], r"\(12, 127\) where \(12, 128\)"),
    ],
)
def test_a_bad_picture_fails_alone(half: MediaHalf, start: Callable[..., Encoder], spoil: Any, words: str) -> None:
    bad = chunk(half, 1)
    faulty = Faulty(half, bad, spoil)
    encoder = start(faulty)
    futures = [faulty.occupy(encoder, chunk(half, 0)), *(encoder.submit(chunk(half, seed)) for seed in (1, 2))]
    faulty.open()
    with pytest.raises(EngineError, match=words):
        futures[1].result(TIMEOUT)
    for seed in (0, 2):
        np.testing.assert_allclose(futures[seed].result(TIMEOUT), alone(half, chunk(half, seed)), rtol=1e-4, atol=1e-4)
    assert encoder.submit(chunk(half, 5)).result(TIMEOUT).shape == (12, 128)  # and the thread lives on


def test_a_chunk_fails_once_when_both_its_pieces_do(half: MediaHalf, start: Callable[..., Encoder]) -> None:
    a = chunk(half, 0)
    faulty = Faulty(half, a, crash)
    encoder = start(faulty)
    future = encoder.submit(replace(a, pieces=a.pieces * 2, n_tokens=2 * a.n_tokens))
    faulty.open()
    with pytest.raises(EngineError):
        future.result(TIMEOUT)
    assert len(faulty.runs) == 2  # together, then the first alone
    assert encoder.counters.waiting == 0


def test_closing_fails_what_waits_and_refuses_what_comes(half: MediaHalf, door: Door) -> None:
    encoder = Encoder(door, Limits(4096, ALL))
    futures = [door.occupy(encoder, chunk(half, 0)), *(encoder.submit(chunk(half, seed)) for seed in (1, 2))]
    closing = threading.Thread(target=encoder.close)
    closing.start()
    while not encoder._closed:
        time.sleep(0.001)
    door.open()
    closing.join(TIMEOUT)
    for future in futures[1:]:
        with pytest.raises(EngineError, match="closed"):
            future.result(0)
    assert futures[0].done()
    with pytest.raises(EngineError, match="closed"):
        encoder.submit(chunk(half, 4))
    encoder.close()


def test_a_fault_of_the_thread_itself_reaches_all_who_wait(half: MediaHalf, start: Callable[..., Encoder]) -> None:
    class Broken(Door):
        def batch_key(self, piece: Piece) -> str:
            raise TypeError("planted")

    encoder = start(Broken(half))
    with pytest.raises(EngineError, match="planted"):
        encoder.submit(chunk(half, 0)).result(TIMEOUT)
    with pytest.raises(EngineError, match="planted"):
        encoder.submit(chunk(half, 1)).result(TIMEOUT)


def test_rows_do_not_depend_on_what_else_was_in_the_run(half: MediaHalf, start: Callable[..., Encoder]) -> None:
    assert isinstance(half, FamilyHalf)
    encoder = start(half)
    many = [encoder.submit(chunk(half, seed, 56 + 28 * (seed % 4), 84)) for seed in range(12)]
    for seed, future in enumerate(many):
        expected = alone(half, chunk(half, seed, 56 + 28 * (seed % 4), 84))
        np.testing.assert_allclose(future.result(TIMEOUT), expected, rtol=1e-4, atol=1e-4)


MIB = 1 << 20


def test_the_same_picture_later_costs_no_run(half: MediaHalf, door: Door, start: Callable[..., Encoder]) -> None:
    encoder = start(door, cache_bytes=MIB)
    door.open()
    first, second = first_then(encoder, half), encoder.submit(chunk(half, 0))
    assert second.done()
    assert second.result() is first.result()
    assert (second.origin, second.ms) == ("cache", 0.0)
    counters = encoder.counters
    assert (counters.runs, counters.cache_hits, counters.cache_misses) == (1, 1, 1)
    assert (counters.cache_entries, counters.cache_bytes) == (1, first.result().nbytes)
    assert counters.join_seconds > 0


def first_then(encoder: Encoder, half: MediaHalf) -> Encoding:
    """A picture that was encoded."""
    encoding = encoder.submit(chunk(half, 0))
    encoding.result(TIMEOUT)
    assert encoding.origin == "encoder"
    assert encoding.ms > 0
    return encoding


def test_without_a_cache_the_same_picture_later_costs_a_run(half: MediaHalf, start: Callable[..., Encoder]) -> None:
    encoder = start(half)
    first = first_then(encoder, half)
    again = first_then(encoder, half)
    assert again.result() is not first.result()
    assert (encoder.counters.runs, encoder.counters.cache_hits) == (2, 0)
    assert (encoder.counters.cache_entries, encoder.known(chunk(half, 0).key)) == (0, None)


def test_pictures_that_find_no_room_make_the_oldest_leave_and_its_rows_stay_valid(
    half: MediaHalf, start: Callable[..., Encoder]
) -> None:
    one = 12 * half.n_embd * 4
    encoder = start(half, cache_bytes=2 * one)
    rows = encoder.submit(chunk(half, 0)).result(TIMEOUT)
    for seed in (1, 2):
        encoder.submit(chunk(half, seed)).result(TIMEOUT)
    assert [seed for seed in range(3) if encoder.known(chunk(half, seed).key) is not None] == [1, 2]
    np.testing.assert_allclose(rows, alone(half, chunk(half, 0)), rtol=1e-4, atol=1e-4)
    counters = encoder.counters
    assert (counters.cache_evictions, counters.cache_entries, counters.cache_bytes) == (1, 2, 2 * one)


def test_rows_are_read_only_and_do_not_keep_the_whole_run_in_memory(
    half: MediaHalf, door: Door, start: Callable[..., Encoder]
) -> None:
    encoder = start(door, cache_bytes=MIB)
    futures = [door.occupy(encoder, chunk(half, 0)), *(encoder.submit(chunk(half, seed)) for seed in (1, 2, 3))]
    door.open()
    for future in futures:
        rows = future.result(TIMEOUT)
        assert not rows.flags.writeable
        assert rows.base is None or rows.base.nbytes == rows.nbytes  # type: ignore[attr-defined]


def test_rows_that_are_known_need_no_pieces(half: MediaHalf, start: Callable[..., Encoder]) -> None:
    encoder = start(half, cache_bytes=12 * half.n_embd * 4)
    first = first_then(encoder, half)
    known = encoder.known(chunk(half, 0).key)
    encoder.submit(chunk(half, 1)).result(TIMEOUT)  # has the room now
    again = encoder.submit(replace(chunk(half, 0), pieces=(), rows=known))
    assert again.result(0) is first.result(0)
    assert (again.origin, encoder.counters.cache_hits) == ("cache", 1)
    with pytest.raises(EngineError, match="neither pieces"):
        encoder.submit(replace(chunk(half, 0), pieces=())).result(0)


def test_rows_of_a_client_are_taken_and_not_kept(half: MediaHalf, start: Callable[..., Encoder]) -> None:
    encoder = start(half, cache_bytes=MIB)
    rows = np.ones((12, half.n_embd), np.float32)
    given = encoder.submit(replace(chunk(half, 0), rows=rows))
    assert given.result(0) is rows
    assert (given.origin, given.ms) == ("client", 0.0)
    assert encoder.known(chunk(half, 0).key) is None
    assert (encoder.counters.runs, encoder.counters.cache_hits, encoder.counters.cache_misses) == (0, 0, 0)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [(not_finite, "not finite"), (zero, "zeros"), (lambda rows: rows[1:], r"\(11, 128\)"), (lambda rows: rows[:, 1:], "127")],
)
def test_rows_of_a_client_that_are_no_embeddings_are_refused(
    half: MediaHalf, start: Callable[..., Encoder], spoil: Callable[[Rows], Rows], words: str
) -> None:
    rows = spoil(np.ones((12, half.n_embd), np.float32))
    with pytest.raises(UnusableMedia, match=words):
        start(half).submit(replace(chunk(half, 0), rows=rows)).result(0)


def test_what_failed_is_not_kept_and_what_was_cancelled_too_late_is(half: MediaHalf, start: Callable[..., Encoder]) -> None:
    faulty = Faulty(half, chunk(half, 1), zero)
    encoder = start(faulty, cache_bytes=MIB)
    late = faulty.occupy(encoder, chunk(half, 0))
    bad = encoder.submit(chunk(half, 1))
    assert late.cancel()
    faulty.open()
    with pytest.raises(EngineError, match="zeros"):
        bad.result(TIMEOUT)
    assert encoder.known(chunk(half, 1).key) is None
    assert encoder.submit(chunk(half, 0)).origin == "cache"


def test_one_picture_does_not_wait_for_all_of_another_request(half: MediaHalf, door: Door, start: Callable[..., Encoder]) -> None:
    encoder = start(door, 4 * chunk(half, 0).n_tokens)
    order: list[str] = []
    door.occupy(encoder, chunk(half, 0))
    for seed in range(1, 7):
        owner = "one" if seed == 6 else "many"
        encoder.submit(chunk(half, seed), owner).add_done_callback(lambda _, owner=owner: order.append(owner))
    last = encoder.submit(chunk(half, 7), "many")
    door.open()
    last.result(TIMEOUT)
    assert order == ["many", "one", *["many"] * 4]


def test_a_trace_has_runs_joins_hits_and_the_requests_they_are_for(
    half: MediaHalf, door: Door, start: Callable[..., Encoder], tmp_path: Path
) -> None:
    path = tmp_path / "trace.json"
    trace = open_trace(path)
    encoder = start(door, cache_bytes=MIB, trace=trace)
    futures = [door.occupy(encoder, chunk(half, 0)), *(encoder.submit(chunk(half, seed), f"r{seed}") for seed in (1, 2))]
    door.open()
    wait(futures, TIMEOUT)
    encoder.submit(chunk(half, 1), "r9")
    encoder.close()
    trace.close()
    events = json.loads(path.read_text())
    runs = [e for e in events if e["name"] == "encode"]
    assert [(e["args"]["pieces"], e["args"]["patches"], e["args"]["requests"]) for e in runs] == [
        (1, 48, [""]),
        (2, 96, ["r1", "r2"]),
    ]
    assert len([e for e in events if e["name"] == "join"]) == 3
    assert [e["args"]["request"] for e in events if e["name"] == "cache hit"] == ["r9"]
    (lane,) = {e["tid"] for e in events if e["ph"] == "X"}
    assert [e["args"]["name"] for e in events if e["name"] == "thread_name" and e["tid"] == lane] == ["encoder"]
    spans = sorted((e["ts"], e["ts"] + e["dur"]) for e in events if e["ph"] == "X")
    assert all(end <= start + 0.001 for (_, end), (start, _) in pairwise(spans))
    arrows = [e["ts"] for e in events if e["ph"] == "t"]
    assert len(arrows) == 2  # nobody asks for the first
    assert all(any(e["ts"] <= at <= e["ts"] + e["dur"] for e in runs) for at in arrows)
    assert [e["args"]["value"] for e in events if e["name"] == "chunks in the encoder"] == [1, 2, 3, 2, 1, 0]
