"""Rows on disk: there at the next start, for the same media half alone, and nothing that happens to the files does harm."""

from __future__ import annotations

import errno
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny
from diptych import convert
from diptych.encoder.disk import Disk
from diptych.encoder.encoder import Encoder, Encoding
from diptych.encoder.folder import Folder
from diptych.encoder.half import open_half
from diptych.encoder.limits import Limits
from diptych.families.base import MediaHalf, Rows
from diptych.options import Options
from diptych.trace import OFF
from diptych.types import Media, MediaChunk, MediaSettings

TIMEOUT = 20  # seconds
MIB = 1 << 20
Start = Callable[..., Encoder]


@pytest.fixture(scope="module")
def mmproj(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    tiny.qwen2vl(folder / "checkpoint", tiny.Qwen2VL(v_depth=1, n_layer=1))
    convert.convert(folder / "checkpoint", folder / "out", outtype="f32")
    return folder / "out" / "mmproj.gguf"


@pytest.fixture(scope="module")
def half(mmproj: Path) -> Iterator[MediaHalf]:
    made = open_half(mmproj, Options(threads=1))
    yield made
    made.close()


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DIPTYCH_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "media"


@pytest.fixture
def start() -> Iterator[Start]:
    made: list[Encoder] = []

    def start(half: MediaHalf, max_bytes: int = MIB, cache_bytes: int = 0) -> Encoder:
        made.append(Encoder(half, Limits(4096, 10**6), cache_bytes, OFF, Disk(half, max_bytes)))
        return made[-1]

    yield start
    for encoder in made:
        encoder.close()


def chunk(half: MediaHalf, seed: int = 0) -> MediaChunk:
    pixels = np.random.default_rng(seed).integers(0, 256, (84, 112, 3)).astype(np.uint8)
    (made,) = half.preprocess(Media("image", pixels, bytes([seed]) * 32), MediaSettings())
    return made


def encoded(start: Start, half: MediaHalf, *seeds: int, **settings: int) -> tuple[Encoder, list[Encoding]]:
    """Pictures in an encoder that was just started, and is closed again."""
    encoder = start(half, **settings)
    asked = [encoder.submit(chunk(half, seed)) for seed in seeds or (0,)]
    for one in asked:
        one.result(TIMEOUT)
    encoder.close()
    return encoder, asked


def files(place: Path) -> list[Path]:
    return sorted(place.iterdir()) if place.exists() else []


def test_the_same_picture_costs_no_run_at_the_next_start(half: MediaHalf, start: Start) -> None:
    one, (first,) = encoded(start, half)
    two, (second,) = encoded(start, half)
    assert (one.counters.runs, one.counters.cache_disk_hits, one.counters.cache_misses) == (1, 0, 1)
    assert (two.counters.runs, two.counters.cache_disk_hits, two.counters.cache_misses) == (0, 1, 0)
    assert (first.origin, second.origin, second.ms) == ("encoder", "disk", 0.0)
    assert second.result().tobytes() == first.result().tobytes()
    assert second.result().dtype == np.float32
    assert not second.result().flags.writeable
    assert two.counters.cache_disk_bytes == sum(file.stat().st_size for file in place_of(two).iterdir()) > 0


def place_of(encoder: Encoder) -> Path:
    assert encoder._disk is not None
    return encoder._disk._folder.path


def test_what_came_from_disk_comes_from_memory_next(half: MediaHalf, start: Start) -> None:
    encoded(start, half)
    encoder = start(half, cache_bytes=MIB)
    assert encoder.submit(chunk(half)).result(TIMEOUT) is encoder.known(chunk(half).key)
    assert encoder.submit(chunk(half)).origin == "cache"
    assert (encoder.counters.cache_hits, encoder.counters.cache_disk_hits) == (1, 1)


def test_all_who_wait_get_what_is_on_disk_and_only_what_is_not_is_run(half: MediaHalf, start: Start) -> None:
    encoded(start, half, 0, 1)
    encoder, asked = encoded(start, half, 0, 0, 1, 2)
    assert [one.origin for one in asked] == ["disk", "disk", "disk", "encoder"]
    assert (encoder.counters.runs, encoder.counters.pieces, encoder.counters.cache_misses) == (1, 1, 1)
    assert encoder.counters.cache_disk_hits in (2, 3)  # the second may have come when the first was done


def test_other_arithmetic_and_other_weights_have_rows_of_their_own(
    half: MediaHalf, mmproj: Path, start: Start, tmp_path: Path
) -> None:
    _, (first,) = encoded(start, half)
    changed = tmp_path / "changed.gguf"
    data = bytearray(mmproj.read_bytes())
    data[-4:] = np.float32(0.5).tobytes()
    changed.write_bytes(data)
    others = {
        "arithmetic": (mmproj, Options(threads=1, precision="int8", media_runtime="onnxruntime")),
        "weights": (changed, Options(threads=1)),
        "copy": (tmp_path / "copy.gguf", Options(threads=1)),
    }
    (tmp_path / "copy.gguf").write_bytes(mmproj.read_bytes())
    found: dict[str, int] = {}
    for name, (path, options) in others.items():
        other = open_half(path, options)
        encoder, (second,) = encoded(start, other)
        found[name] = encoder.counters.runs
        other.close()
        if name == "copy":
            assert second.result().tobytes() == first.result().tobytes()
    assert found == {"arithmetic": 1, "weights": 1, "copy": 0}


def test_a_damaged_file_is_made_again(half: MediaHalf, start: Start, place: Path) -> None:
    _, (first,) = encoded(start, half)
    (file,) = files(place)
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    again, (second,) = encoded(start, half)
    assert (again.counters.runs, second.origin) == (1, "encoder")
    third, _ = encoded(start, half)
    assert (third.counters.runs, second.result().tobytes()) == (0, first.result().tobytes())


def test_a_half_that_is_known_by_nothing_has_nothing_on_disk(half: MediaHalf, start: Start, place: Path) -> None:
    class Unknown:
        made_of = ()

        def __getattr__(self, name: str) -> Any:
            return getattr(half, name)

    other: Any = Unknown()
    encoded(start, other)
    assert files(place) == []


def test_what_was_written_to_files_in_work_is_there_when_the_encoder_is_closed(half: MediaHalf, start: Start) -> None:
    encoded(start, half, *range(12))
    encoder, _ = encoded(start, half, *range(12))
    assert (encoder.counters.runs, encoder.counters.cache_disk_hits) == (0, 12)


def test_a_place_that_cannot_be_written_to_costs_a_warning_and_nothing_else(
    half: MediaHalf, start: Start, place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place.parent.mkdir()
    place.write_text("in the way")
    encoder, asked = encoded(start, half, 0, 1, 2)
    assert [one.origin for one in asked] == ["encoder"] * 3
    assert encoder.counters.cache_misses == 3
    said = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(said) == 1
    assert "not kept on disk" in said[0]


def test_a_disk_that_takes_nothing_is_not_tried_again_at_once(
    half: MediaHalf, place: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tried: list[bytes] = []

    def put(self: Folder, key: bytes, rows: Rows) -> None:
        tried.append(key)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Folder, "put", put)
    for pause, n in ((60, 1), (0, 3)):
        monkeypatch.setattr("diptych.encoder.disk._PAUSE", pause)
        disk = Disk(half, MIB)
        for one in chunks(half, 3):
            disk.put(one, np.ones((1, 4), np.float32))
        disk.close()
        assert len(tried) == n
        assert [record.message.split(": ")[-1] for record in caplog.records] == ["No space left on device"]
        tried.clear()
        caplog.clear()


def test_a_full_disk_costs_a_warning_and_nothing_else(place: Path) -> None:
    """In a process whose files may have 1000 bytes."""
    done = run(f"{SETTING}; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)); {FILLING}", place)
    assert done.count("not kept on disk") == 1
    assert "File too large" in done
    assert [file.suffix for file in files(place)] == [".rows"]


SETTING = "import resource, numpy as np; from diptych.encoder.disk import Disk; from diptych.types import Grid, MediaChunk"
FILLING = """
class Half:
    made_of, n_embd, backend = ("x",), 4, "onnx"
def chunk(i, n):
    return MediaChunk("image", n, Grid(1, 1, n), bytes([i]) * 32, ())
disk = Disk(Half(), 1 << 20)
disk.put(chunk(0, 2), np.ones((2, 4), np.float32))
disk.put(chunk(1, 200), np.ones((200, 4), np.float32))
disk.put(chunk(2, 200), np.ones((200, 4), np.float32))
disk.close()
assert disk.get(chunk(0, 2)) is not None
assert disk.get(chunk(1, 200)) is None
"""


def run(script: str, place: Path) -> str:
    """What a process says on its standard error."""
    environment = {**os.environ, "DIPTYCH_HOME": str(place.parent)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, text=True, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_a_disk_that_is_slow_takes_no_memory(half: MediaHalf, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    door, written = threading.Event(), list[bytes]()

    def put(self: Folder, key: bytes, rows: Rows) -> None:
        assert door.wait(TIMEOUT)
        written.append(key)

    monkeypatch.setattr(Folder, "put", put)
    disk = Disk(half, 2**40)
    large = np.ones((1 << 16, 128), np.float32)  # 32 MiB
    for one in chunks(half, 5):
        disk.put(one, large)
    door.set()
    disk.close()
    assert len(written) == 2


def chunks(half: MediaHalf, n: int) -> Sequence[MediaChunk]:
    return [chunk(half, seed) for seed in range(n)]
