"""Encoded media as data: out in JSON, and in again in the place of the picture; what else comes in is refused."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from asking import GREEDY, Load, collect, joined, png, request, tokens
from hypothesis import given, settings
from hypothesis import strategies as st

from diptych.engine import Engine
from diptych.engine.encode import Encoded, encode
from diptych.engine.wire import chunk_json, encoded_array, source
from diptych.errors import InputError, MediaError, UnusableMedia
from diptych.types import MediaSettings, Message, Request, Source

N_EMBD = 128
MOST = 1024


def encoded(engine: Engine, picture: bytes) -> Encoded:
    return encode(Source("image", data=picture), MediaSettings(), engine._preparation, engine._encoder)


def told(found: Encoded, encoding: Any = "base64") -> Any:
    """The answer of an encoding, as a client gets it."""
    first = found.chunks[0]
    chunks = [chunk_json(chunk, encoding) for chunk in found.chunks]
    return json.loads(json.dumps({"kind": "image", "size": list(first.size), "used": list(first.used), "chunks": chunks}))


def asked(*parts: str | Source) -> Request:
    return replace(request(n=12, sampling=GREEDY), messages=(Message("user", parts),))


@pytest.fixture
def good(load: Load) -> Any:
    """A sound object: 2 × 3 rows of ones."""
    rows = np.ones((6, N_EMBD), np.float32)
    chunk = {"n_tokens": 6, "grid": [1, 2, 3], "shape": [6, N_EMBD], "embedding": encoded_array(rows, "base64")}
    return {"kind": "image", "size": [84, 56], "used": [84, 56], "chunks": [chunk]}


@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_an_answer_to_embeddings_is_that_to_the_picture(load: Load, encoding: str) -> None:
    engine = load()
    for picture in png(0), png(4, 140, 252):
        sent = source(told(encoded(engine, picture), encoding), engine._half, MOST)
        for parts in (("what is the",), ()):
            expected = tokens(engine, asked(Source("image", data=picture), "the user", *parts))
            assert tokens(engine, asked(sent, "the user", *parts)) == expected
    other = tokens(engine, asked(Source("image", data=png(1)), "the user"))
    assert other != tokens(engine, asked(Source("image", data=png(0)), "the user")), "the picture must matter"


def test_embeddings_and_pictures_go_together_and_nothing_is_encoded_for_the_former(load: Load) -> None:
    engine = load(encode_cache_mib=0)
    made = encoded(engine, png(0))
    sent = source(told(made), engine._half, MOST)
    runs = engine.stats().encoder.runs
    tokens(engine, asked(sent, "the user"))
    assert engine.stats().encoder.runs == runs
    both = tokens(engine, asked(sent, "and", Source("image", data=png(1))))
    assert both == tokens(engine, asked(Source("image", data=png(0)), "and", Source("image", data=png(1))))


def test_sixteen_bits_are_near_and_say_so_where_they_do_not_reach(load: Load) -> None:
    engine = load()
    made = encoded(engine, png(0))
    back = source(told(made, "base64_f16"), engine._half, MOST)
    np.testing.assert_allclose(back.chunks[0].rows, made.chunks[0].rows, rtol=1e-3, atol=1e-6)
    with pytest.raises(InputError, match="out of the range of 16 bits"):
        encoded_array(np.full((1, 2), 1e6, np.float32), "base64_f16")


def test_what_comes_back_is_what_went_out(load: Load) -> None:
    engine = load()
    made = encoded(engine, png(0))
    assert made.chunks[0].pieces == ()
    assert made.timings.preprocess_ms > 0
    again = source(told(made), engine._half, MOST)
    first, back = made.chunks[0], again.chunks[0]
    assert (back.n_tokens, back.grid, back.size, back.used) == (first.n_tokens, first.grid, first.size, first.used)
    np.testing.assert_array_equal(back.rows, first.rows)
    alone = source(told(made)["chunks"], engine._half, MOST)
    np.testing.assert_array_equal(alone.chunks[0].rows, first.rows)


def test_a_key_is_made_from_the_rows_whatever_the_client_says(good: Any, engine: Engine) -> None:
    def key(**changes: Any) -> bytes:
        value = {**good, "chunks": [{**good["chunks"][0], **changes}]}
        return source(value, engine._half, MOST).chunks[0].key

    assert key(key="00" * 32) == key(key="ff" * 32) == key()
    assert key(grid=[1, 3, 2]) != key()
    assert key(embedding=encoded_array(np.full((6, N_EMBD), 2, np.float32), "base64")) != key()
    assert key(embedding=np.ones((6, N_EMBD)).tolist()) == key()


def _rows(change: Callable[[np.ndarray], None]) -> str:
    rows = np.ones((6, N_EMBD), np.float32)
    change(rows)
    return base64.b64encode(rows.tobytes()).decode()


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "NaN": ({"embedding": _rows(lambda r: r.__setitem__((2, 3), np.nan))}, "row 2 is not finite"),
    "infinite": ({"embedding": _rows(lambda r: r.__setitem__((2, 3), np.inf))}, "row 2 is not finite"),
    "zeros": ({"embedding": _rows(lambda r: r.__setitem__(4, 0))}, "row 4 is of zeros alone"),
    "huge": ({"embedding": _rows(lambda r: r.__setitem__(4, 1e30))}, "row 4 is out of range"),
    "huge numbers": ({"embedding": [[1e300] * N_EMBD] * 6}, "row 0 is not finite"),
    "a number of 400 digits": ({"embedding": [[10**400] * N_EMBD] * 6}, "too large"),
    "NaN in a list": ({"embedding": [[float("nan")] * N_EMBD] * 6}, "not finite"),
    "true": ({"embedding": [[True] * N_EMBD] * 6}, "no number"),
    "words": ({"embedding": [["1.0"] * N_EMBD] * 6}, "no number"),
    "lists in lists": ({"embedding": [[[1.0]] * N_EMBD] * 6}, "no number"),
    "ragged": ({"embedding": [[1.0] * N_EMBD] * 5 + [[1.0]]}, "not 6 lists of 128"),
    "too few": ({"embedding": [[1.0] * N_EMBD] * 5}, "not 6 lists of 128"),
    "no array": ({"embedding": 5}, "must be base64, or lists"),
    "none": ({"embedding": None}, "must be base64, or lists"),
    "width": ({"embedding": encoded_array(np.ones((6, 64), np.float32), "base64")}, "characters of base64, and 6 rows of 128"),
    "width told": ({"shape": [6, 64]}, r"shape is \[6, 64\]"),
    "rows told": ({"shape": [7, 128]}, r"shape is \[7, 128\]"),
    "shape of words": ({"shape": "6x128"}, "shape is '6x128'"),
    "cut": ({"embedding": _rows(lambda _: None)[:-8]}, "take 4096"),
    "no base64": ({"embedding": "!" * 4096}, "not valid base64|bytes"),
    "not ASCII": ({"embedding": "é" * 4096}, "not valid base64"),
    "padding": ({"embedding": "=" * 4096}, "not valid base64"),
    "format": ({"encoding_format": "base64_f8"}, "encoding_format 'base64_f8'"),
    "format of lists": ({"encoding_format": ["base64"]}, "encoding_format"),
    "sixteen bits": ({"encoding_format": "base64_f16"}, "characters of base64"),
    "many": ({"n_tokens": 10**6}, "it must be 1 to 1024"),
    "none of them": ({"n_tokens": 0}, "it must be 1 to 1024"),
    "less": ({"n_tokens": -6}, "it must be 1 to 1024"),
    "half": ({"n_tokens": 6.0}, "it must be 1 to 1024"),
    "a digit": ({"n_tokens": "6"}, "it must be 1 to 1024"),
    "yes": ({"n_tokens": True}, "it must be 1 to 1024"),
    "another grid": ({"grid": [1, 3, 3]}, "does not fit n_tokens 6"),
    "a smaller grid": ({"grid": [1, 1, 3]}, "does not fit n_tokens 6"),
    "a grid beyond 64 bits": ({"grid": [2**63, 1, 1]}, "does not fit n_tokens 6"),
    "a huge grid": ({"grid": [2**31, 2**31, 2**31]}, "does not fit n_tokens 6"),
    "grid of nothing": ({"grid": [0, 2, 3]}, "three sides"),
    "grid backwards": ({"grid": [1, -2, -3]}, "three sides"),
    "flat grid": ({"grid": [2, 3]}, "three sides"),
    "no grid": ({"grid": None}, "three sides"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_embedding_of_this_model_is_refused(good: Any, engine: Engine, name: str) -> None:
    changes, words = BAD[name]
    value = {**good, "chunks": [{**good["chunks"][0], **changes}]}
    with pytest.raises(MediaError, match=words) as caught:
        source(value, engine._half, MOST)
    assert caught.value.status in (400, 422)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "no chunks"), (5, "no chunks"), ("text", "no chunks"), ([], "no chunks"), ({}, "no chunks"),
        ({"chunks": {}}, "no chunks"), ([5], "must be an object"), ({"chunks": [None]}, "must be an object"),
        ({"kind": "smell", "chunks": []}, "image, audio or video"), ({"kind": {}, "chunks": []}, "image, audio or video"),
        ({"kind": "audio", "chunks": []}, "audio is given, and the media half takes image"),
        ({"chunks": [{}] * 4097}, "4096 is the most"),
    ],
)  # fmt: skip
def test_what_is_no_encoding_is_refused(engine: Engine, value: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        source(value, engine._half, MOST)


def test_sizes_are_checked_and_chunks_share_the_room(good: Any, engine: Engine) -> None:
    for name, bad in (("size", [1]), ("used", [-1, 5]), ("size", "5x5"), ("used", [2**40, 1])):
        with pytest.raises(MediaError, match=rf"{name} is"):
            source({**good, name: bad}, engine._half, MOST)
    with pytest.raises(UnusableMedia, match="must be 1 to 4"):
        source({**good, "chunks": good["chunks"] * 2}, engine._half, 10)
    assert len(source({**good, "chunks": good["chunks"] * 2, "size": None}, engine._half, 12).chunks) == 2


def test_without_a_media_half_of_our_own_there_are_no_embeddings(good: Any, engine: Engine) -> None:
    with pytest.raises(InputError, match="no media half"):
        source(good, None, MOST)

    class Mtmd:
        backend, placeholders = "mtmd", {"image": ()}

    with pytest.raises(UnusableMedia, match=r"libmtmd.*--media-backend onnx"):
        source(good, Mtmd(), MOST)  # type: ignore[arg-type]


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
_CHUNK = st.fixed_dictionaries(
    {},
    optional={
        "n_tokens": st.sampled_from([1, 6, 10**9]) | _JSON,
        "grid": st.lists(st.sampled_from([0, 1, 2, 3, -1, 2**63]), min_size=2, max_size=4) | _JSON,
        "embedding": st.sampled_from([_rows(lambda _: None), "AAAA", [[1.0] * N_EMBD] * 6]) | _JSON,
        "shape": st.just([6, N_EMBD]) | _JSON,
        "encoding_format": st.sampled_from(["float", "base64", "base64_f16"]) | _JSON,
    },
)


@given(value=st.fixed_dictionaries({"chunks": st.lists(_CHUNK, max_size=3)}, optional={"kind": _JSON, "size": _JSON}) | _JSON)
@settings(max_examples=300, deadline=None)
def test_whatever_comes_is_taken_whole_or_refused(half: Any, value: Any) -> None:
    with suppress(InputError):
        found = source(value, half, MOST)
        assert all(chunk.rows is not None and np.isfinite(chunk.rows).all() for chunk in found.chunks)


@pytest.fixture(scope="module")
def half(deployment: Any) -> Any:
    import tiny

    with Engine.load(deployment, options=tiny.EXACT) as engine:
        yield engine._half


@pytest.mark.parametrize("bad", [np.nan, np.inf, 0.0, 1e30])
def test_rows_that_slip_by_are_refused_and_neighbours_are_unharmed(load: Load, good: Any, bad: float) -> None:
    engine = load(n_parallel=3)
    neighbour, rows = asked(Source("image", data=png(0)), "what is"), np.ones((6, N_EMBD), np.float32)
    expected = tokens(engine, neighbour)
    sent = source(good, engine._half, MOST)
    rows[3] = bad
    poisoned = asked(Source("image", chunks=(replace(sent.chunks[0], rows=rows),)), "the")

    async def at_once() -> list[Any]:
        wanted = [neighbour, poisoned, neighbour]
        return await asyncio.gather(*(collect(engine, one) for one in wanted), return_exceptions=True)

    first, error, last = asyncio.run(at_once())
    assert isinstance(error, UnusableMedia)
    assert "row 3" in str(error)
    assert joined(first) == joined(last) == expected
