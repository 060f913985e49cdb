"""Which backend runs a media half, that it fits its text half, and answers of engines whose media half is libmtmd."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import pictures
import sounds
import tiny
import tiny_mmproj
from diptych import reader
from diptych.backend import check_kinds, open_half
from diptych.encoder.half import FamilyHalf
from diptych.engine import Engine
from diptych.errors import EngineError, FileError, InputError, MediaError, MismatchedHalves, UnknownModel, UnsupportedMedia
from diptych.llama.model import TextModel
from diptych.llama.mtmd import MtmdHalf
from diptych.options import Options
from diptych.prompt import ChatTemplate
from diptych.types import Message, Output, Request, Sampling, Source
from diptych.weights import Weights, open_gguf, write_gguf
from diptych.weights.tensor import in_memory
from mtmd import Mtmd

READER = reader.FOLDER / "mmproj.gguf"
MARKER = "<__media__>"
Load = Callable[..., Engine]


@pytest.fixture
def load() -> Iterator[Load]:
    """A function from two files to an exact engine, closed at the end."""
    made: list[Engine] = []

    def load_(text: Path, mmproj: Path, **options: object) -> Engine:
        made.append(Engine.load(model=text, mmproj=mmproj, options=tiny.EXACT.model_copy(update=options)))
        return made[-1]

    yield load_
    for engine in made:
        engine.close()


@pytest.mark.parametrize(("asked", "taken"), [("auto", "onnx"), ("onnx", "onnx"), ("smt", "onnx"), ("mtmd", "mtmd")])
def test_a_family_that_is_known_runs_in_what_was_asked_for(asked: str, taken: str) -> None:
    half = open_half(READER, Options(threads=1, media_backend=asked))
    assert (half.backend, type(half)) == (taken, {"onnx": FamilyHalf, "mtmd": MtmdHalf}[taken])
    half.close()


@pytest.mark.parametrize("make", [tiny_mmproj.gemma3, tiny_mmproj.ultravox])
def test_a_family_that_is_not_known_runs_in_libmtmd(make: Callable[[Path], Path], tmp_path: Path) -> None:
    half = open_half(make(tmp_path / "m.gguf"), Options(threads=1))
    assert half.backend == "mtmd"
    half.close()


def test_asking_for_onnx_where_no_family_is_known_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownModel, match="the image projector 'gemma3', and none of the known ones"):
        open_half(tiny_mmproj.gemma3(tmp_path / "m.gguf"), Options(media_backend="onnx"))


def test_the_environment_names_a_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIPTYCH_MEDIA_BACKEND", "mtmd")
    half = open_half(READER, Options(threads=1))
    assert half.backend == "mtmd"
    half.close()


def text_of(path: Path, architecture: str) -> TextModel:
    return TextModel.load(tiny_mmproj.text(path / f"{architecture}.gguf", architecture))


def wide(path: Path, n: int) -> Path:
    """The reader's mmproj, said to give rows of width `n`."""
    weights = open_gguf(READER)
    write_gguf(path / "wide.gguf", Weights({**weights.metadata, "clip.vision.projection_dim": n}, weights.tensors))
    return path / "wide.gguf"


@pytest.mark.parametrize("asked", ["auto", "onnx", "mtmd"])
def test_halves_that_do_not_fit_are_told_before_either_is_opened(
    asked: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(*_: object) -> None:
        raise AssertionError("opened")

    monkeypatch.setattr("diptych.encoder.half.open_half", opened)
    monkeypatch.setattr("diptych.llama.mtmd.MtmdHalf", opened)
    options = Options(threads=1, media_backend=asked)
    with text_of(tmp_path, "qwen2vl") as text, pytest.raises(MismatchedHalves, match=r"gives rows of width 256, and .* 128"):
        open_half(READER, options, text)
    with (
        text_of(tmp_path, "qwen2") as text,
        pytest.raises(MismatchedHalves, match=r"gives 4 positions a row, and .* 1 positions"),
    ):
        open_half(wide(tmp_path, 128), options, text)


@pytest.mark.parametrize("asked", ["auto", "mtmd"])
def test_halves_of_a_family_that_is_not_known_are_told_too(asked: str, tmp_path: Path) -> None:
    path = tiny_mmproj.gemma3(tmp_path / "m.gguf", n_out=64)
    with text_of(tmp_path, "qwen2") as text, pytest.raises(MismatchedHalves, match=r"gives rows of width 64, and .* width 128"):
        open_half(path, Options(threads=1, media_backend=asked), text)


@pytest.mark.parametrize("asked", ["auto", "onnx", "mtmd"])
def test_a_file_that_is_no_mmproj_is_told(asked: str, tmp_path: Path) -> None:
    (tmp_path / "cut.gguf").write_bytes(READER.read_bytes()[:-9000])
    for path, says in ((reader.FOLDER / "text.gguf", "encoder"), (tmp_path / "cut.gguf", "the file ends at")):
        with pytest.raises(FileError, match=says):
            open_half(path, Options(media_backend=asked))


def test_a_kind_of_media_that_a_half_does_not_take_is_refused() -> None:
    for asked, hint in ("onnx", ", or try --media-backend mtmd"), ("mtmd", ""):
        half = open_half(READER, Options(threads=1, media_backend=asked))
        check_kinds(["image"], half)
        with pytest.raises(InputError, match=f"^audio is given, and the media half takes image; leave it out{hint}$"):
            check_kinds(["image", "audio"], half)
        half.close()


def stretched(path: Path) -> bytes:
    """A picture at sides that are multiples of 28, where libmtmd adds no border."""
    with Image.open(path) as image:
        size = tuple(round(side / 28) * 28 for side in image.size)
        return pictures.encoded(np.asarray(image.convert("RGB").resize(size, Image.Resampling.BICUBIC)))


def test_the_reader_reads_its_examples_in_libmtmd_as_in_onnx() -> None:
    said: dict[str, list[str]] = {}
    for asked in "onnx", "mtmd":
        with Engine.load("reader", options=Options(threads=1, media_backend=asked)) as engine:
            assert engine.media_backend == asked
            said[asked] = [engine.ask("Read.", [stretched(p)], temperature=0) for p in reader.examples()]
    assert said["mtmd"] == said["onnx"] == [p.with_suffix(".txt").read_text().rstrip() for p in reader.examples()]


# projector, architecture of the text half, its special tokens, what is shown
FOREIGN = {
    "gemma3": ("qwen2", ("<start_of_image>", "<end_of_image>"), ["image"]),
    "gemma3 twice": ("qwen2", (), ["image", "image"]),
    "idefics3": ("qwen2", ("<fake_token_around_image>", "<global-img>", "\n\n"), ["image"]),
    "hunyuanvl": ("qwen2vl", (), ["image", "image"]),
    "ultravox": ("qwen2", (), ["audio"]),
    "qwen2a": ("qwen2vl", ("<|audio_bos|>", "<|audio_eos|>"), ["audio"]),
}


def shown(kinds: list[str]) -> list[bytes]:
    makers = {
        "image": lambda i: pictures.encoded(pictures.noise(100 + 30 * i, 70, i)),
        "audio": lambda i: sounds.wav(sounds.tone(1.0, 300 + 100 * i)),
    }
    return [makers[kind](i) for i, kind in enumerate(kinds)]


def asked_about(kinds: list[str], media: list[bytes]) -> tuple[Message, ...]:
    return (Message("user", ("a", *(Source(k, data=d) for k, d in zip(kinds, media, strict=True)), " the")),)  # type: ignore[arg-type]


def tokens(engine: Engine, messages: tuple[Message, ...], n: int) -> tuple[list[int], Output]:
    outputs = list(engine._stream(Request(messages, Sampling(temperature=0), n)))
    return [t for o in outputs for t in o.tokens], outputs[-1]


@pytest.mark.parity
@pytest.mark.parametrize("name", FOREIGN)
def test_a_family_that_is_not_known_answers_as_in_libmtmds_own_loop(name: str, tmp_path: Path, load: Load) -> None:
    architecture, special, kinds = FOREIGN[name]
    text = tiny_mmproj.text(tmp_path / "text.gguf", architecture, *special)
    mmproj = getattr(tiny_mmproj, name.split()[0])(tmp_path / "mmproj.gguf")
    media = shown(kinds)
    messages = asked_about(kinds, media)
    ours, last = tokens(load(text, mmproj, n_ubatch=1024), messages, 12)
    pieces = ChatTemplate(tiny.CHAT_TEMPLATE).cut(Request(tuple(messages)), dict.fromkeys(kinds, ()))  # type: ignore[arg-type]
    prompt = "".join(p if isinstance(p, str) else MARKER for p in pieces)
    given = [np.frombuffer(d, np.uint8) if k == "audio" else pixels(d) for k, d in zip(kinds, media, strict=True)]
    with Mtmd(mmproj, text, n_threads=1, flash_attn=False) as reference:
        expected = reference.greedy(prompt, given, 12)
    assert ours == expected[: len(ours)]
    assert len(ours) == 12 or last.finish_reason == "stop"
    assert last.usage.media_tokens > 0


def pixels(data: bytes) -> pictures.Pixels:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def test_what_is_seen_and_heard_changes_the_answer(tmp_path: Path, load: Load) -> None:
    for make, kind in (tiny_mmproj.gemma3, "image"), (tiny_mmproj.qwen2a, "audio"):
        engine = load(tiny_mmproj.text(tmp_path / f"{kind}.text", "qwen2"), make(tmp_path / f"{kind}.gguf"))
        first, second = (tokens(engine, asked_about([kind], [d]), 12)[0] for d in shown([kind, kind]))
        assert first != second


def test_rows_that_all_see_each_other_go_whole_and_alone(tmp_path: Path, load: Load) -> None:
    text, mmproj = tiny_mmproj.text(tmp_path / "text.gguf", "qwen2"), tiny_mmproj.gemma3(tmp_path / "m.gguf")
    messages = asked_about(["image", "image"], shown(["image", "image"]))
    alone = load(text, mmproj)
    expected, _ = tokens(alone, messages, 8)
    assert alone.stats().media_calls == 2
    narrow = load(text, mmproj, n_batch=16, n_ubatch=16)
    assert tokens(narrow, messages, 8)[0] == expected


def test_a_picture_larger_than_n_ubatch_whose_rows_all_see_each_other_is_refused_and_the_rest_goes_on(
    tmp_path: Path, load: Load
) -> None:
    engine = load(tiny_mmproj.text(tmp_path / "text.gguf", "qwen2"), tiny_mmproj.gemma3(tmp_path / "m.gguf"), n_ubatch=15)
    with pytest.raises(InputError, match="a picture of 16 tokens has to be decoded at once, and n_ubatch is 15"):
        tokens(engine, asked_about(["image"], shown(["image"])), 4)
    assert tokens(engine, asked_about([], []), 4)[0]


def test_a_recording_given_as_a_picture_and_the_other_way_round(tmp_path: Path, load: Load) -> None:
    engine = load(tiny_mmproj.text(tmp_path / "text.gguf", "qwen2"), tiny_mmproj.qwen2a(tmp_path / "m.gguf"))
    assert engine.media_backend == "mtmd"
    with pytest.raises(UnsupportedMedia, match=r"^image is given, and the media half takes audio; leave it out$"):
        tokens(engine, asked_about(["image"], shown(["image"])), 4)
    with pytest.raises(MediaError, match="the recording is a PNG picture, and a recording in WAV"):
        tokens(engine, asked_about(["audio"], shown(["image"])), 4)


def test_a_mmproj_that_llama_cpp_gives_up_on_fails_the_request_and_not_the_engine(tmp_path: Path, load: Load) -> None:
    weights = open_gguf(tiny_mmproj.gemma3(tmp_path / "whole.gguf"))
    name = "v.blk.1.ln1.weight"
    tensors = {**weights.tensors, name: in_memory(name, np.ones(5, np.float32))}
    write_gguf(tmp_path / "bad.gguf", Weights(weights.metadata, tensors))
    engine = load(tiny_mmproj.text(tmp_path / "text.gguf", "qwen2"), tmp_path / "bad.gguf")
    for says in "llama.cpp gave up: ", "the libmtmd context is closed":
        with pytest.raises(EngineError, match=says):
            tokens(engine, asked_about(["image"], shown(["image"])), 4)
    assert tokens(engine, asked_about([], []), 4)[0]
