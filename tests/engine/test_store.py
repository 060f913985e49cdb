"""Slots in files: a later engine goes on where an earlier one was, and nothing that is wrong comes near the cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from asking import Load, joined, outputs, png, request, wait_until

from diptych.engine import Engine
from diptych.errors import InputError, OutputError, Unavailable
from diptych.types import Output, Request, Usage

ASKED = request("Look:", png(1), "What is it?")


def at(number: int, asked: Request = ASKED) -> Request:
    return replace(asked, slot=number)


def usage(found: list[Output]) -> Usage:
    return found[-1].usage


def kept(engine: Engine, path: Path) -> tuple[Path, tuple[int, ...], int]:
    """A file, and the answer and the number of tokens that were in the slot."""
    found = outputs(engine, at(1))
    done = engine.store.save(1, path)
    assert done.n_tokens == usage(found).prompt_tokens + usage(found).completion_tokens - 1, "the last token was never decoded"
    assert done.n_bytes == path.stat().st_size
    engine.close()
    return path, joined(found), done.n_tokens


@pytest.fixture
def saved(load: Load, tmp_path: Path) -> tuple[Path, tuple[int, ...], int]:
    return kept(load(n_parallel=2), tmp_path / "slot")


@pytest.mark.parametrize("unified", [True, False])
def test_another_engine_goes_on_with_pictures_that_it_never_encoded(load: Load, tmp_path: Path, unified: bool) -> None:
    path, answer, n = kept(load(n_parallel=2, kv_unified=unified), tmp_path / "slot")
    engine = load(n_parallel=2, kv_unified=unified)
    assert engine.store.restore(0, path).n_tokens == n
    found = outputs(engine, at(0))
    assert joined(found) == answer
    assert usage(found).cached_tokens == usage(found).prompt_tokens - 1
    assert engine.stats().encoder.pieces == 0
    other = outputs(engine, at(0, request("Look:", png(2), "What is it?")))
    before = next(i for i, row in enumerate(engine.ids(ASKED)) if row < 0)
    assert usage(other).cached_tokens == before, "another picture has nothing of this one"


def test_what_was_said_counts_as_well(saved: tuple[Path, tuple[int, ...], int], load: Load) -> None:
    path, _, n = saved
    engine = load(n_parallel=2)
    engine.store.restore(1, path)
    assert engine.store.erase(1) == n
    assert engine.store.erase(1) == 0
    assert usage(outputs(engine, at(1))).cached_tokens == 0


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda data: data[:-1], "is damaged"),
        (lambda data: data[:1000] + bytes([data[1000] ^ 1]) + data[1001:], "is damaged"),
        (lambda data: data + b"x", "is damaged"),
        (lambda data: data.replace(b"cache_types", b"cache_typed"), "is damaged"),
        (lambda data: b"", "is no slot that Diptych saved"),
        (lambda data: b"GGUF" + data, "is no slot that Diptych saved"),
    ],
)
def test_damaged_files_are_refused_before_the_cache_sees_them(
    saved: tuple[Path, tuple[int, ...], int], load: Load, spoil: Callable[[bytes], bytes], said: str
) -> None:
    path, answer, _ = saved
    engine = load(n_parallel=2)
    expected = usage(outputs(engine, at(0, request("before"))))
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(InputError, match=said):
        engine.store.restore(0, path)
    again = outputs(engine, at(0, request("before")))
    assert usage(again).cached_tokens == expected.prompt_tokens - 1, "what was there is there still"
    assert joined(outputs(engine, at(1))) == answer


def test_files_of_another_cache_or_model_are_refused(
    saved: tuple[Path, tuple[int, ...], int], load: Load, checkpoint: Path
) -> None:
    path, _, _ = saved
    with pytest.raises(InputError, match="another model or KV cache"):
        load(n_parallel=2, cache_type_k="f16").store.restore(0, path)
    with pytest.raises(InputError, match="another model or KV cache"):
        load(n_parallel=2, kv_unified=False).store.restore(0, path)
    text = checkpoint.parent / "out" / "text.gguf"
    with (
        Engine.load(model=text, options=load().options) as engine,
        pytest.raises(InputError, match="Cannot restore media tokens without an mmproj"),
    ):
        engine.store.restore(0, path)


def test_a_slot_that_is_too_long_is_refused_and_room_is_made_for_one_that_fits(load: Load, tmp_path: Path) -> None:
    long = request("long " * 60, n=1)
    engine = load(n_parallel=2, n_ctx=512)
    n = usage(outputs(engine, at(0, long))).prompt_tokens
    engine.store.save(0, tmp_path / "slot")
    assert n > 256
    with pytest.raises(InputError, match="does not take these"):
        load(n_parallel=2, n_ctx=256).store.restore(0, tmp_path / "slot")
    outputs(engine, at(1, request("other " * 40, n=1)))
    assert engine.store.restore(0, tmp_path / "slot").n_tokens == n
    assert usage(outputs(engine, at(0, long))).cached_tokens == n - 1


def test_only_idle_slots_that_there_are(load: Load, tmp_path: Path) -> None:
    engine = load()
    for number in (-1, 1, 2**70):
        with pytest.raises(InputError, match="there is no slot"):
            engine.store.erase(number)
    stream = engine._stream(replace(ASKED, max_tokens=500, sampling=replace(ASKED.sampling, ignore_eos=True)))
    next(stream)
    with pytest.raises(Unavailable, match="is answering somebody"):
        engine.store.save(0, tmp_path / "slot")
    stream.close()
    wait_until(lambda: not engine.slots()[0].busy)
    engine.store.save(0, tmp_path / "slot")


def test_files_appear_whole_or_not_at_all(load: Load, tmp_path: Path) -> None:
    engine = load()
    with pytest.raises(OutputError, match="there is no folder"):
        engine.store.save(0, tmp_path / "none" / "slot")
    with pytest.raises(InputError, match="cannot read slot: No such file"):
        engine.store.restore(0, tmp_path / "slot")
    assert list(tmp_path.iterdir()) == []
