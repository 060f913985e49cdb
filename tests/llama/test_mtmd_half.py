"""libmtmd as a media half: the rows and positions that libmtmd gives when asked directly, and faults that end in one line."""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import pictures
import sounds
import text_half
import tiny
import tiny_mmproj
import tiny_qwen3
from diptych import convert, families, reader
from diptych.encoder.half import FamilyHalf
from diptych.errors import EngineError, FileError, InputError, MediaError, MismatchedHalves, UnknownModel
from diptych.families.qwen2vl import Qwen2VL
from diptych.llama import mmproj
from diptych.llama.model import TextModel
from diptych.llama.mtmd import MtmdHalf
from diptych.options import Options
from diptych.positions import mrope
from diptych.types import Media, MediaChunk, MediaSettings, TextChunk
from diptych.weights import Weights, open_gguf, write_gguf
from diptych.weights.tensor import in_memory
from mtmd import Mtmd

READER = reader.FOLDER / "mmproj.gguf"
ONE = Options(threads=1)
AS_LOADED = MediaSettings()
SIZES = ((112, 84), (300, 150), (33, 200))
Open = Callable[..., MtmdHalf]


@pytest.fixture
def opened() -> Iterator[Open]:
    """A function that opens a half, closed at the end."""
    made: list[MtmdHalf] = []

    def open_(path: Path, options: Options = ONE, text: TextModel | None = None) -> MtmdHalf:
        made.append(MtmdHalf(path, options, text))
        return made[-1]

    yield open_
    for half in made:
        half.close()


def picture(pixels: pictures.Pixels) -> Media:
    return Media("image", pixels, hashlib.sha256(pixels.tobytes()).digest())


def sound(data: bytes) -> Media:
    return Media("audio", np.frombuffer(data, np.uint8), hashlib.sha256(data).digest())


def rows(half: MtmdHalf, media: Media) -> list[np.ndarray]:
    chunks = half.preprocess(media, AS_LOADED)
    return [half.join(c, half.encode(c.pieces)) for c in chunks]


@pytest.fixture(scope="module")
def qwen2vl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("qwen2vl")
    convert.convert(tiny.qwen2vl(folder / "checkpoint"), folder / "out", outtype="f32")
    return folder / "out" / "mmproj.gguf"


@pytest.fixture(params=["reader", "qwen2vl", "gemma3", "idefics3", "hunyuanvl"])
def file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    match request.param:
        case "reader":
            return READER
        case "qwen2vl":
            return request.getfixturevalue("qwen2vl")
        case name:
            return getattr(tiny_mmproj, name)(tmp_path / "mmproj.gguf")


@pytest.mark.parity
def test_the_rows_are_those_of_libmtmd_to_the_bit(file: Path, opened: Open) -> None:
    half = opened(file)
    with Mtmd(file, n_threads=1) as reference:
        for i, (width, height) in enumerate(SIZES):
            pixels = pictures.noise(width, height, i)
            ours, theirs = rows(half, picture(pixels)), reference.chunks(pixels)
            assert len(ours) == len(theirs)
            for own, (their, _) in zip(ours, theirs, strict=True):
                np.testing.assert_array_equal(own, their)


@pytest.mark.parity
def test_rows_with_deepstack_are_as_wide_as_the_text_half_takes_them(tmp_path: Path, opened: Open) -> None:
    shape = tiny_qwen3.Qwen3(v_depth=3, deepstack=(0, 2))
    convert.convert(tiny_qwen3.write(tmp_path / "checkpoint", shape), tmp_path / "out", outtype="f32")
    ours = FamilyHalf(families.open_family(tmp_path / "out" / "mmproj.gguf"), ONE)
    assert mmproj.read(tmp_path / "out" / "mmproj.gguf").n_embd == ours.n_embd  # so that the stand-in is right at once
    shown = picture(pictures.noise(192, 192))
    for text in None, TextModel.load(tmp_path / "out" / "text.gguf"):
        half = opened(tmp_path / "out" / "mmproj.gguf", text=text)
        (chunk,), (own,) = half.preprocess(shown, AS_LOADED), ours.preprocess(shown, AS_LOADED)
        assert (half.n_embd, half.n_pos, chunk.n_tokens, chunk.grid) == (ours.n_embd, 4, own.n_tokens, own.grid)
        seen, expected = half.encode(chunk.pieces)[0], ours.encode(own.pieces)[0]
        assert np.abs(seen - expected).max() < 2e-3 * np.abs(expected).max()
        half.close()
    ours.close()


@pytest.mark.parity
@pytest.mark.parametrize("file", ["qwen2vl", "hunyuanvl"], indirect=True)
def test_the_planes_are_those_of_libmtmd_for_all_pictures_of_a_prompt(file: Path, opened: Open) -> None:
    half = opened(file)
    pixels = [pictures.noise(*size) for size in SIZES]
    with Mtmd(file) as reference:
        expected = reference.planes(pixels, start=11)
    for ordinal, (one, (planes, end)) in enumerate(zip(pixels, expected, strict=True)):
        (chunk,) = half.preprocess(picture(one), AS_LOADED)
        ours, after = half.positions(replace(chunk, ordinal=ordinal), 11)
        np.testing.assert_array_equal(ours, planes)
        assert (ours.dtype, after) == (np.int32, end)


def test_a_picture_of_qwen2vl_stands_where_m_rope_says(opened: Open) -> None:
    half = opened(READER)
    (chunk,) = half.preprocess(picture(pictures.noise(112, 84)), AS_LOADED)
    ours, after = half.positions(chunk, 5)
    np.testing.assert_array_equal(ours, mrope(chunk, 5)[0])
    assert after == mrope(chunk, 5)[1]
    assert (chunk.grid.h, chunk.grid.w, chunk.size, chunk.used) == (3, 4, (112, 84), (112, 84))


def test_a_family_that_is_known_keeps_its_placeholders(opened: Open) -> None:
    assert opened(READER).placeholders == Qwen2VL.placeholders


def test_layout_holds_every_chunk_between_tokens_of_the_text_half(tmp_path: Path, opened: Open) -> None:
    special = ("<fake_token_around_image>", "<global-img>", "<row_1_col_1>", "<row_1_col_2>", "\n\n")
    path = tiny_mmproj.text(tmp_path / "text.gguf", "qwen2", *special)
    with TextModel.load(path) as text:
        half = opened(tiny_mmproj.idefics3(tmp_path / "m.gguf"), text=text)
        chunks = half.preprocess(picture(pictures.noise(150, 90)), AS_LOADED)
        parts = half.layout(chunks)
        half.close()
        assert [p for p in parts if isinstance(p, MediaChunk)] == chunks
        assert len(chunks) == 5
        written = "".join(
            "#" if isinstance(p, MediaChunk) else b"".join(text.piece(t, special=True) for t in p.tokens).decode() for p in parts
        )
    fake = "<fake_token_around_image>"
    assert written == (
        f"{fake}<row_1_col_1>#{fake}<row_1_col_2>#\n{fake}<row_2_col_1>#{fake}<row_2_col_2>#\n\n{fake}<global-img>#{fake}"
    )


def test_a_text_half_without_the_tokens_around_a_picture_is_told(tmp_path: Path, opened: Open) -> None:
    with TextModel.load(tiny_mmproj.text(tmp_path / "text.gguf", "qwen2")) as text:
        half = opened(tiny_mmproj.idefics3(tmp_path / "m.gguf"), text=text)
        with pytest.raises(MismatchedHalves, match="no token for what the projector 'idefics3' sets around media"):
            half.preprocess(picture(pictures.noise(150, 90)), AS_LOADED)
        half.close()


def test_attention_is_causal_but_in_gemma3(tmp_path: Path, opened: Open) -> None:
    for make, causal in (tiny_mmproj.gemma3, False), (tiny_mmproj.idefics3, True):
        half = opened(make(tmp_path / f"{causal}.gguf"))
        assert {half.causal(c) for c in half.preprocess(picture(pictures.noise(100, 100)), AS_LOADED)} == {causal}


def test_the_width_is_learned_from_libmtmd_where_the_metadata_are_wrong(tmp_path: Path, opened: Open) -> None:
    made = open_gguf(tiny_mmproj.gemma3(tmp_path / "right.gguf"))
    write_gguf(tmp_path / "wrong.gguf", Weights({**made.metadata, "clip.vision.projection_dim": 96}, made.tensors))
    half = opened(tmp_path / "wrong.gguf")
    assert half.n_embd == 128
    assert rows(half, picture(pictures.noise(50, 50)))[0].shape == (16, 128)


def test_a_text_half_of_another_width_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tiny_mmproj.gemma3(tmp_path / "m.gguf", n_out=96)
    says = r"m.gguf gives rows of width 96, and .*text.gguf takes rows of width 128"
    with TextModel.load(tiny_mmproj.text(tmp_path / "text.gguf", "qwen2")) as text, pytest.raises(MismatchedHalves, match=says):
        MtmdHalf(path, ONE, text)


@pytest.mark.parametrize(("projector", "rows_"), [("ultravox", 375), ("qwen2a", 750)])
def test_sound_is_encoded_30_seconds_a_chunk(projector: str, rows_: int, tmp_path: Path, opened: Open) -> None:
    half = opened(getattr(tiny_mmproj, projector)(tmp_path / "m.gguf"))
    assert list(half.placeholders) == ["audio"]
    short, long, other = (sound(sounds.wav(sounds.tone(s, h))) for s, h in ((1, 440), (31, 440), (1, 300)))
    assert [r.shape for r in rows(half, short)] == [(rows_, 128)]
    chunks = half.preprocess(long, AS_LOADED)
    assert [c.n_tokens for c in chunks] == [rows_] * 2
    assert len({c.key for c in chunks}) == 2
    assert [half.positions(c, 7)[1] for c in chunks] == [7 + rows_] * 2
    assert all(half.causal(c) and c.kind == "audio" for c in chunks)
    assert not np.array_equal(rows(half, short)[0], rows(half, other)[0])
    again = sound(sounds.wav(sounds.tone(1, 440, rate=48000), rate=48000))  # resampled to what the model was made for
    same, another = (np.linalg.norm(rows(half, m)[0] - rows(half, short)[0]) for m in (again, other))
    assert same < 0.3 * another


@pytest.mark.parity
def test_the_rows_of_sound_are_those_of_libmtmd_and_stand_in_a_line_on_four_planes(tmp_path: Path, opened: Open) -> None:
    path = tiny_mmproj.text(tmp_path / "text.gguf", "qwen2vl", "<|audio_bos|>", "<|audio_eos|>")
    with TextModel.load(path) as text:
        half = opened(tiny_mmproj.qwen2a(tmp_path / "m.gguf"), text=text)
        (chunk,) = half.preprocess(sound(sounds.wav(sounds.tone())), AS_LOADED)
        first, _, last = half.layout([chunk])
        assert (first, last) == (TextChunk((text.n_vocab - 2,)), TextChunk((text.n_vocab - 1,)))
        planes, end = half.positions(chunk, 4)
        assert (planes.shape, end) == ((4, 750), 754)
        assert (planes == np.arange(4, 754)).all()
        half.close()


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (sounds.wav(np.zeros(0)), "cannot decode the recording"),
        (sounds.wav(np.zeros(1)), r"cannot take the recording: llama.cpp gave up: .*GGML_ASSERT"),
        (b"ID3" + bytes(100), "cannot decode the recording"),
    ],
)
def test_a_recording_that_cannot_be_used_is_told_and_the_next_is_taken(
    data: bytes, says: str, tmp_path: Path, opened: Open
) -> None:
    half = opened(tiny_mmproj.qwen2a(tmp_path / "m.gguf"))
    with pytest.raises(MediaError, match=says) as caught:
        half.preprocess(sound(data), AS_LOADED)
    assert "\n" not in str(caught.value)
    assert half.preprocess(sound(sounds.wav(sounds.tone())), AS_LOADED)


def test_a_picture_that_libmtmd_cannot_cut_is_told_and_the_next_is_taken(tmp_path: Path, opened: Open) -> None:
    half = opened(tiny_mmproj.idefics3(tmp_path / "m.gguf"))
    with pytest.raises(MediaError, match=r"cannot take the picture of 3000×1 pixels: resize target 112x0 is out of range"):
        half.preprocess(picture(pictures.noise(3000, 1)), AS_LOADED)
    assert half.preprocess(picture(pictures.noise(30, 10)), AS_LOADED)


def test_media_of_a_kind_it_has_no_tower_for_are_told(tmp_path: Path, opened: Open) -> None:
    deaf, blind = opened(tiny_mmproj.gemma3(tmp_path / "v.gguf")), opened(tiny_mmproj.qwen2a(tmp_path / "a.gguf"))
    with pytest.raises(MediaError, match="does not support audio input"):
        deaf.preprocess(sound(sounds.wav(sounds.tone())), AS_LOADED)
    with pytest.raises(MediaError, match="does not support vision input"):
        blind.preprocess(picture(pictures.noise(30, 30)), AS_LOADED)


def broken(path: Path, name: str, change: Callable[[np.ndarray], np.ndarray] | None = None, **metadata: object) -> Path:
    """A gemma3 file with a tensor changed, or without it."""
    made = open_gguf(tiny_mmproj.gemma3(path.with_suffix(".whole")))
    tensors = {n: t for n, t in made.tensors.items() if n != name}
    if change:
        tensors[name] = in_memory(name, np.ascontiguousarray(change(made.tensors[name].read())))
    write_gguf(path, Weights({**made.metadata, **metadata}, tensors))
    return path


def test_files_that_cannot_be_loaded_are_told_in_one_line(tmp_path: Path) -> None:
    whole = tiny_mmproj.gemma3(tmp_path / "whole.gguf")
    (tmp_path / "cut.gguf").write_bytes(whole.read_bytes()[:-5000])
    (tmp_path / "noise.gguf").write_bytes(b"GGUF" + np.random.default_rng(0).bytes(5000))
    text = text_half.write_text(tmp_path / "text.gguf", shape := tiny.Qwen2VL(), text_half.random(shape))
    cases = (
        (tmp_path / "cut.gguf", FileError, "the file ends at"),
        (tmp_path / "noise.gguf", FileError, "noise.gguf"),
        (tmp_path / "absent.gguf", FileError, "there is no"),
        (text, FileError, "has no encoder of pictures or sound"),
        (
            broken(tmp_path / "lacks.gguf", "mm.input_projection.weight"),
            FileError,
            "unable to find tensor mm.input_projection.weight",
        ),
        (broken(tmp_path / "new.gguf", "", **{"clip.projector_type": "gemma9"}), UnknownModel, "unknown projector type: gemma9"),
        (broken(tmp_path / "patch.gguf", "", **{"clip.vision.patch_size": 0}), FileError, "patch_size"),
    )
    for path, kind, says in cases:
        with pytest.raises(kind, match=says) as caught:
            MtmdHalf(path, ONE)
        assert "\n" not in str(caught.value)


def test_a_tensor_of_the_wrong_shape_ends_in_an_error_and_other_halves_live_on(tmp_path: Path, opened: Open) -> None:
    pixels = picture(pictures.noise(60, 60))
    bad = opened(broken(tmp_path / "bad.gguf", "v.blk.0.ffn_up.weight", lambda a: a[:, :32]))
    (chunk,) = bad.preprocess(pixels, AS_LOADED)
    with pytest.raises(EngineError, match=r"^llama.cpp gave up: ggml.c:\d+: GGML_ASSERT\("):
        bad.encode(chunk.pieces)
    with pytest.raises(EngineError, match="the libmtmd context is closed"):
        bad.encode(chunk.pieces)
    assert rows(opened(tiny_mmproj.gemma3(tmp_path / "good.gguf")), pixels)[0].shape == (16, 128)


def test_pixel_limits_of_the_options_bound_the_rows(opened: Open) -> None:
    large, small = picture(pictures.noise(560, 420)), picture(pictures.noise(30, 30))
    at_most = opened(READER, ONE.model_copy(update={"max_pixels": 28 * 28 * 40 + 5}))
    settings = MediaSettings(max_pixels=28 * 28 * 40 + 5)
    assert 20 < at_most.preprocess(large, settings)[0].n_tokens <= 40
    at_least = opened(READER, ONE.model_copy(update={"min_pixels": 28 * 28 * 50}))
    assert at_least.preprocess(small, MediaSettings(min_pixels=28 * 28 * 50))[0].n_tokens >= 50


def test_token_limits_of_the_options_bound_the_rows_and_go_before_pixels(opened: Open) -> None:
    large, small = picture(pictures.noise(560, 420)), picture(pictures.noise(30, 30))
    asked = {"image_max_tokens": 40, "max_pixels": 10**6}
    at_most = opened(READER, ONE.model_copy(update=asked))
    pixels = opened(READER, ONE.model_copy(update={"max_pixels": 28 * 28 * 40}))
    found = [half.preprocess(large, half._options.media)[0] for half in (at_most, pixels)]
    assert found[0].used == found[1].used
    assert 20 < found[0].n_tokens <= 40
    at_least = opened(READER, ONE.model_copy(update={"image_min_tokens": 50}))
    assert at_least.preprocess(small, MediaSettings(min_tokens=50))[0].n_tokens >= 50
    with pytest.raises(InputError, match="min_tokens is 9, more than max_tokens, 8"):
        MtmdHalf(READER, ONE.model_copy(update={"image_min_tokens": 9, "image_max_tokens": 8}))


def test_limits_that_leave_no_size_are_refused() -> None:
    with pytest.raises(InputError, match=r"no size is left for pictures: .*set min_pixels or image_min_tokens as well"):
        MtmdHalf(READER, ONE.model_copy(update={"max_pixels": 28 * 28 * 2}))


def test_limits_that_cannot_be_kept_are_logged(tmp_path: Path, opened: Open, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        half = opened(READER)
        half.preprocess(picture(pictures.noise(60, 60)), AS_LOADED)
        assert not caplog.records
        half.preprocess(picture(pictures.noise(60, 60)), MediaSettings(max_pixels=5000))
        assert "those of the request are not honoured" in caplog.text
        opened(tiny_mmproj.gemma3(tmp_path / "m.gguf"), ONE.model_copy(update={"max_pixels": 10**6}))
        assert "no limits of size for the projector gemma3" in caplog.text


def test_it_prepares_on_several_threads_while_it_encodes(opened: Open) -> None:
    half = opened(READER)
    media = [picture(pictures.noise(84 + 28 * i, 84, i)) for i in range(6)]
    alone = [rows(half, m)[0] for m in media]
    made: dict[int, np.ndarray] = {}
    threads = [threading.Thread(target=lambda i=i: made.__setitem__(i, rows(half, media[i])[0])) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    for i, expected in enumerate(alone):
        np.testing.assert_array_equal(made[i], expected)


def test_a_closed_half_says_so_and_chunks_outlive_it(tmp_path: Path) -> None:
    half = MtmdHalf(tiny_mmproj.gemma3(tmp_path / "m.gguf"), ONE)
    (chunk,) = half.preprocess(picture(pictures.noise(40, 40)), AS_LOADED)
    half.close()
    half.close()
    with pytest.raises(EngineError, match="is closed"):
        half.encode(chunk.pieces)
    assert half.layout([chunk])[1] is chunk


def test_the_same_picture_has_the_same_key_and_another_one_another(opened: Open) -> None:
    half = opened(READER)
    one, again, other = (half.preprocess(picture(pictures.noise(60, 60, seed)), AS_LOADED)[0] for seed in (0, 0, 1))
    assert one.key == again.key != other.key
    assert half.batch_key(one.pieces[0]) != half.batch_key(other.pieces[0])
    assert (one.ids == again.ids).all()
