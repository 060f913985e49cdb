"""Batches of chunks: what fits, that it is one run, and that each chunk gets what it gets alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from hashlib import sha256
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diptych import MediaBatch, reader
from diptych.encoder.half import FamilyHalf, open_half
from diptych.encoder.limits import Limits, Run
from diptych.encoder.memory import MIB, predict
from diptych.encoder.precision import BF16, cpu_features, this_machine
from diptych.errors import DiptychError, EngineError, InputError, UnusableMedia
from diptych.families.base import Rows
from diptych.options import Options
from diptych.types import Grid, Media, MediaChunk, MediaSettings, Piece
from families.check import GATES, least_cosine
from pictures import noise

MMPROJ = reader.FOLDER / "mmproj.gguf"
TILE = 112, 112  # (width, height) in pixels


class Counting:
    """A media half that counts what goes into its session, a number of patches a run."""

    def __init__(self, half: FamilyHalf) -> None:
        self._half = half
        self.runs: list[int] = []
        (session,) = half._sessions.values()
        self._run, self._session = session.run, session

        def run(feed: Any) -> Any:
            self.runs.append(len(feed["patches"]))
            return self._run(feed)

        session.run = run  # type: ignore[method-assign]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._half, name)

    def stop(self) -> None:
        self._session.run = self._run  # type: ignore[method-assign]


@pytest.fixture(scope="module")
def opened() -> Iterator[FamilyHalf]:
    half = open_half(MMPROJ, Options(encode_max_patches=1 << 20))
    assert isinstance(half, FamilyHalf)
    yield half
    half.close()


@pytest.fixture
def half(opened: FamilyHalf) -> Iterator[Counting]:
    counting = Counting(opened)
    yield counting
    counting.stop()


def chunk(half: Any, seed: int, width: int = TILE[0], height: int = TILE[1]) -> MediaChunk:
    pixels = noise(width, height, seed=seed)
    settings = MediaSettings(min_pixels=width * height, max_pixels=width * height)
    (made,) = half.preprocess(Media("image", pixels, sha256(pixels.tobytes()).digest()), settings)
    assert isinstance(made, MediaChunk)
    return made


def tiles(half: Any, n: int = 8) -> list[MediaChunk]:
    return [chunk(half, seed) for seed in range(n)]


def alone(half: Any, one: MediaChunk) -> Rows:
    rows: Rows = half.join(one, [half.encode([piece])[0] for piece in one.pieces])
    return rows


def batched(half: Any, chunks: Sequence[MediaChunk], options: Options | None = None) -> list[Rows]:
    """The rows of chunks that all fit."""
    batch = MediaBatch(half, options or Options(encode_max_patches=1 << 20))
    assert all(batch.add(one) for one in chunks)
    batch.encode()
    return [batch.embeddings(one) for one in chunks]


def test_eight_tiles_are_one_run_and_eight_alone_are_eight_and_the_bits_are_the_same(half: Counting) -> None:
    chunks = tiles(half)
    together = batched(half, chunks)
    n = chunks[0].pieces[0].n_patches
    assert half.runs == [8 * n]
    singly = [alone(half, one) for one in chunks]
    assert half.runs == [8 * n, *[n] * 8]
    assert not np.array_equal(singly[0], singly[1])
    for one, rows, wanted in zip(chunks, together, singly, strict=True):
        assert rows.shape == (one.n_tokens, half.n_embd)
        np.testing.assert_array_equal(rows, wanted)


def test_pictures_of_many_sizes_are_one_run_where_the_graph_packs_them(half: Counting) -> None:
    sizes = ((84, 56), (140, 196), (28, 336), (84, 56), (56, 84))
    chunks = [chunk(half, seed, *size) for seed, size in enumerate(sizes)]
    together = batched(half, chunks)
    assert half.runs == [sum(one.pieces[0].n_patches for one in chunks)]
    for one, rows in zip(chunks, together, strict=True):
        np.testing.assert_array_equal(rows, alone(half, one))


class Swapping(Counting):
    """A fault: the rows of the first two pieces of a run in each other's place."""

    def encode(self, pieces: Sequence[Piece]) -> list[Rows]:
        arrays = self._half.encode(pieces)
        return [*arrays[1::-1], *arrays[2:]]


def test_rows_in_the_place_of_others_would_be_seen(half: Counting, opened: FamilyHalf) -> None:
    chunks = tiles(half, 3)
    rows = batched(Swapping(opened), chunks)
    with pytest.raises(AssertionError):
        np.testing.assert_array_equal(rows[0], alone(half, chunks[0]))
    np.testing.assert_array_equal(rows[0], alone(half, chunks[1]))


@pytest.mark.parametrize("precision", ["f32", "bf16", "int8"])
def test_in_every_precision_a_chunk_gets_in_a_batch_what_it_gets_alone_in_f32(half: Counting, precision: Any) -> None:
    pytest.importorskip("openvino")
    if precision == "bf16" and not BF16 & cpu_features():
        pytest.skip("the CPU has no products of bfloat16")
    chunks = tiles(half, 4)
    with closing(open_half(MMPROJ, Options(precision=precision, media_runtime="openvino"))) as other:
        together, singly = batched(other, chunks), [alone(other, one) for one in chunks]
    wanted = [alone(half, one) for one in chunks]
    assert least_cosine(wanted, together) >= GATES[precision]
    assert least_cosine(singly, together) >= GATES[precision]


@pytest.mark.skipif(not this_machine().runs_kernels, reason="the kernels are not for this CPU")
def test_by_the_kernels_pictures_of_many_sizes_are_one_run_and_get_the_bits_they_get_alone() -> None:
    with closing(open_half(MMPROJ, Options(precision="int8", media_runtime="kernels"))) as made:
        half = Counting(made)
        chunks = [chunk(half, seed, *size) for seed, size in enumerate(((84, 56), (140, 196), (28, 336), (84, 56)))]
        together = batched(half, chunks)
        assert half.runs == [sum(one.pieces[0].n_patches for one in chunks)]
        for one, rows in zip(chunks, together, strict=True):
            np.testing.assert_array_equal(rows, alone(half, one))


def test_pictures_of_another_batch_key_do_not_fit() -> None:
    pytest.importorskip("openvino")
    with closing(open_half(MMPROJ, Options(media_runtime="openvino"))) as half:  # it takes those of one lattice
        batch = MediaBatch(half)
        assert [batch.add(chunk(half, seed, *size)) for seed, size in enumerate((TILE, (56, 224), TILE))] == [True, False, True]
        assert len(batch.chunks) == 2


@pytest.mark.parametrize(
    ("options", "n"),
    [
        (Options(encode_max_patches=3 * 64 + 63, encode_max_tokens=10_000), 3),
        (Options(encode_max_patches=4 * 64, encode_max_tokens=10_000), 4),
        (Options(encode_max_patches=10_000, encode_max_tokens=5 * 16), 5),
        (Options(encode_max_patches=10_000, encode_max_tokens=5 * 16 - 1), 4),
        (Options(encode_max_patches=1, encode_max_tokens=10_000), 1),
        (Options(encode_max_patches=10_000, encode_max_tokens=1), 1),
        (Options(encode_max_patches=10_000, encode_max_tokens=10_000), 8),
    ],
)
def test_a_batch_is_full_at_its_patches_or_tokens_and_the_first_always_fits(half: Counting, options: Options, n: int) -> None:
    """A tile is 64 patches and 16 tokens."""
    batch = MediaBatch(half, options)
    assert [batch.add(one) for one in tiles(half)] == [i < n for i in range(8)]
    assert (len(batch.chunks), batch.n_patches, batch.n_tokens) == (n, 64 * n, 16 * n)
    batch.encode()
    batch.encode()
    assert half.runs == [64 * n]


def test_a_batch_has_what_there_is_memory_for(half: Counting) -> None:
    needed = predict(half.family, half.choice, [(1, 8, 8)]).total  # for a tile
    with closing(open_half(MMPROJ, Options(encode_memory=math.ceil(needed / MIB)))) as small:
        assert isinstance(small, FamilyHalf)
        counting = Counting(small)
        n = small.max_patches // 64
        batch = MediaBatch(small)
        assert [batch.add(one) for one in tiles(half)] == [i < n for i in range(8)]
        batch.encode()
    assert 1 <= n < 8
    assert counting.runs == [64 * n]


def test_a_smaller_picture_fits_behind_one_that_did_not(half: Counting) -> None:
    batch = MediaBatch(half, Options(encode_max_patches=100))
    assert [batch.add(one) for one in (chunk(half, 0), chunk(half, 1), chunk(half, 2, 56, 56))] == [True, False, True]


def test_what_is_there_twice_or_brings_its_rows_is_not_encoded(half: Counting) -> None:
    one, other = tiles(half, 2)
    known = replace(other, pieces=(), rows=np.ones((16, half.n_embd), np.float32))
    batch = MediaBatch(half, Options(encode_max_patches=64))
    assert [batch.add(c) for c in (one, one, known)] == [True, True, True]
    batch.encode()
    assert half.runs == [64]
    assert [c.key for c in batch.chunks] == [one.key, other.key]
    assert batch.embeddings(known) is known.rows
    np.testing.assert_array_equal(batch.embeddings(replace(one)), alone(half, one))
    empty = MediaBatch(half)
    empty.encode()
    assert len(half.runs) == 2


def test_pieces_of_several_kinds_in_the_first_chunk_are_a_run_of_each_kind() -> None:
    class Kinds:
        n_embd, max_patches = 1, 100

        def __init__(self) -> None:
            self.runs: list[list[bytes]] = []

        def batch_key(self, piece: Piece) -> str:
            return piece.kind

        def encode(self, pieces: Sequence[Piece]) -> list[Rows]:
            self.runs.append([piece.key for piece in pieces])
            return [np.full((1, 1), piece.key[0], np.float32) for piece in pieces]

        def join(self, chunk: MediaChunk, arrays: Sequence[Rows]) -> Rows:
            return np.concatenate(arrays)

    def made(name: bytes, kinds: str) -> MediaChunk:
        pieces = tuple(Piece(kind, {}, (1, 1, 1), bytes([name[0] + i])) for i, kind in enumerate(kinds))
        return MediaChunk("image", len(pieces), Grid(1, 1, len(pieces)), name, pieces)

    half: Any = Kinds()
    batch = MediaBatch(half)
    chunks = [made(b"a", "xxy"), made(b"k", "z"), made(b"p", "y")]
    assert [batch.add(one) for one in chunks] == [True, False, True]
    batch.encode()
    assert half.runs == [[b"a", b"b"], [b"c", b"p"]]
    assert batch.embeddings(chunks[0])[:, 0].tolist() == [*b"abc"]


def early(batch: MediaBatch, chunks: Sequence[MediaChunk]) -> None:
    batch.add(chunks[0])
    batch.embeddings(chunks[0])


def unknown(batch: MediaBatch, chunks: Sequence[MediaChunk]) -> None:
    batch.add(chunks[0])
    batch.encode()
    batch.embeddings(chunks[1])


def late(batch: MediaBatch, chunks: Sequence[MediaChunk]) -> None:
    batch.encode()
    batch.add(chunks[0])


def bare(batch: MediaBatch, chunks: Sequence[MediaChunk]) -> None:
    batch.add(replace(chunks[0], pieces=()))


def zeros(batch: MediaBatch, chunks: Sequence[MediaChunk]) -> None:
    batch.add(replace(chunks[0], rows=np.zeros((16, 256), np.float32)))


@pytest.mark.parametrize(
    ("misuse", "error", "words"),
    [
        (early, InputError, "not encoded yet"),
        (unknown, InputError, "not in the batch"),
        (late, InputError, "make a new one"),
        (bare, EngineError, "neither pieces"),
        (zeros, UnusableMedia, "zeros"),
    ],
)
def test_misuse_is_told(half: Counting, misuse: Callable[..., None], error: type[DiptychError], words: str) -> None:
    with pytest.raises(error, match=words):
        misuse(MediaBatch(half), tiles(half, 2))


def test_rows_that_would_spoil_a_cache_are_an_error(half: Counting, opened: FamilyHalf) -> None:
    class Spoiling(Counting):
        def encode(self, pieces: Sequence[Piece]) -> list[Rows]:
            return [rows * np.nan for rows in self._half.encode(pieces)]

    batch = MediaBatch(Spoiling(opened))  # type: ignore[arg-type]
    batch.add(chunk(half, 0))
    with pytest.raises(EngineError, match="not finite"):
        batch.encode()


def test_a_half_cuts_what_is_more_than_is_worth_a_run() -> None:
    with closing(open_half(MMPROJ, Options())) as half:
        assert isinstance(half, FamilyHalf)
        counting = Counting(half)
        n = Options().encode_max_patches // 64
        half.encode([one.pieces[0] for one in tiles(half, n + 1)])
    assert counting.runs == [64 * n, 64]


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40), st.sampled_from("xy"))), st.integers(1, 60), st.integers(1, 60))
def test_a_run_is_of_one_key_and_within_its_limits_or_has_one_picture(
    sizes: list[tuple[int, int, str]], max_patches: int, max_tokens: int
) -> None:
    run = Run(lambda piece: piece.kind, Limits(max_patches, max_tokens))
    taken = [(n, tokens, kind) for n, tokens, kind in sizes if run.add((Piece(kind, {}, (1, 1, n), b""),), tokens)]
    assert [piece.n_patches for piece in run.pieces] == [n for n, _, _ in taken]
    assert taken[:1] == sizes[:1]
    assert len({kind for _, _, kind in taken}) <= 1
    assert (run.n_patches, run.n_tokens) == (sum(n for n, _, _ in taken), sum(t for _, t, _ in taken))
    assert len(taken) <= 1 or (run.n_patches <= max_patches and run.n_tokens <= max_tokens)
