"""Pictures that an engine encoded cost the next engine no run, whatever runs the media half."""

from __future__ import annotations

from pathlib import Path

import pytest
from asking import Load, joined, outputs, png, request, wait_until

from diptych.engine import Engine
from diptych.types import Output, Request

ASKED = request("a", png(0), "b", png(1), "?")


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DIPTYCH_HOME", str(tmp_path))
    return tmp_path / "media"


def told(engine: Engine, wanted: Request = ASKED) -> tuple[Output, tuple[int, ...]]:
    """The end of an answer, and all its tokens; the engine is closed."""
    found = outputs(engine, wanted)
    engine.close()
    return found[-1], joined(found)


@pytest.mark.parametrize("backend", ["onnx", "mtmd"])
def test_the_next_engine_answers_without_a_run(load: Load, backend: str) -> None:
    options = {"encode_disk_mib": 8, "media_backend": backend}
    one, two = load(**options), load(**options)
    first, said = told(one)
    again, said_again = told(two)
    assert [use.origin for use in first.media] == ["encoder", "encoder"]
    assert [use.origin for use in again.media] == ["disk", "disk"]
    assert (one.stats().encoder.runs, two.stats().encoder.runs) in ((1, 0), (2, 0))
    assert first.timings.encode_ms > 0
    assert again.timings.encode_ms == 0
    assert said == said_again


def test_each_backend_has_rows_of_its_own(load: Load) -> None:
    told(load(encode_disk_mib=8))
    last, _ = told(load(encode_disk_mib=8, media_backend="mtmd"))
    assert [use.origin for use in last.media] == ["encoder", "encoder"]


def test_limits_that_libmtmd_is_loaded_with_have_rows_of_their_own(load: Load, place: Path) -> None:
    options = {"encode_disk_mib": 8, "media_backend": "mtmd"}
    few, _ = told(load(**options, image_max_tokens=8))
    more, _ = told(load(**options, image_max_tokens=16))
    assert [use.origin for use in (*few.media, *more.media)] == ["encoder"] * 4
    assert few.usage.media_tokens < more.usage.media_tokens
    assert len(list(place.iterdir())) == 4  # none took the place of another


def test_nothing_is_written_where_it_is_switched_off(load: Load, place: Path) -> None:
    told(load(encode_disk_mib=0))
    last, _ = told(load(encode_disk_mib=0))
    assert [use.origin for use in last.media] == ["encoder", "encoder"]
    assert not place.exists()


def test_a_picture_whose_rows_had_to_leave_the_memory_comes_from_disk(load: Load, place: Path) -> None:
    engine = load(encode_disk_mib=8, encode_cache_mib=0)
    outputs(engine, ASKED)
    wait_until(lambda: place.exists() and len(list(place.glob("*.rows"))) == 2)  # written behind the answer
    last, _ = told(engine, request("other", png(1)))
    assert [use.origin for use in last.media] == ["disk"]
