"""Media halves of ONNX files that others made: what goes in, what comes out, and where it stands."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import onnx_files
import tiny
from diptych import convert, deploy, export
from diptych.deploy import OnnxHalf
from diptych.encoder import foreign
from diptych.encoder.batch import MediaBatch
from diptych.encoder.foreign import ForeignHalf, open_foreign, pixels
from diptych.encoder.half import FamilyHalf
from diptych.errors import DiptychError, EngineError, FileError
from diptych.families.packed import MEAN, STD, patchify
from diptych.families.qwen2vl import Qwen2VL
from diptych.options import Options
from diptych.types import Media, MediaChunk, MediaSettings
from diptych.weights import open_gguf, write_gguf
from pictures import noise

CLIP = {
    "vision_preprocess__rescale_factor": 1 / 255,
    "vision_preprocess__image_mean": list(MEAN),
    "vision_preprocess__image_std": list(STD),
}


def half(folder: Path, options: Options | None = None, **more: Any) -> ForeignHalf:
    found = deploy.find(folder).onnx
    assert isinstance(found, OnnxHalf)
    return open_foreign(found, options or Options(threads=1), **more)


def picture(width: int = 120, height: int = 90, seed: int = 0) -> Media:
    return Media("image", noise(width, height, seed), f"{width}{height}{seed}".encode())


def encoded(half: ForeignHalf, media: Media, settings: MediaSettings | None = None) -> tuple[MediaChunk, Any]:
    (chunk,) = half.preprocess(media, settings or MediaSettings())
    return chunk, half.join(chunk, half.encode(chunk.pieces))


def stretched(media: Media, size: tuple[int, int]) -> Any:
    return np.asarray(Image.fromarray(media.data).resize(size, Image.Resampling.BILINEAR), np.float64)


def cell_means(values: Any, unit: int) -> Any:
    """(h, w, 3) → (cells, 3), a cell at a time."""
    h, w, _ = values.shape
    cells = [values[y : y + unit, x : x + unit].reshape(-1, 3).mean(0) for y in range(0, h, unit) for x in range(0, w, unit)]
    return np.array(cells)


def patch_rows(values: Any, patch: int = 14, merge: int = 2) -> Any:
    """(h, w, 3) → Qwen2-VL's rows, one number after the other."""
    h, w, _ = values.shape
    out = []
    for cy in range(0, h, patch * merge):
        for cx in range(0, w, patch * merge):
            for y in (cy, cy + patch):
                for x in (cx, cx + patch):
                    one = values[y : y + patch, x : x + patch]
                    out.append([one[i, j, c] for c in range(3) for _ in range(2) for i in range(patch) for j in range(patch)])
    return np.array(out)


@pytest.mark.parametrize(
    ("architecture", "values"),
    [
        ("Qwen3VL", lambda v: v),
        ("Qwen3_5ForConditionalGeneration", lambda v: v),
        ("Qwen2_5_VLForConditionalGeneration", lambda v: v),
        ("LlavaQwen2ForCausalLM", lambda v: v / 255),
        ("MiniCPMV", lambda v: (v / 255 - MEAN) / STD),
        ("PaddleOCRVLForConditionalGeneration", lambda v: (v / 255 - MEAN) / STD),
        ("NobodyKnowsIt", lambda v: v),
    ],
)
def test_pixels_have_the_values_of_their_architecture(tmp_path: Path, architecture: str, values: Any) -> None:
    folder = onnx_files.smt(tmp_path, architecture, "v.onnx", vision_model__input_width=96, vision_model__input_height=64, **CLIP)
    onnx_files.pixels(folder / "v.onnx", (96, 64), 32)
    media = picture()
    chunk, rows = encoded(half(folder), media)
    wanted = cell_means(values(stretched(media, (96, 64))), 32) @ onnx_files.mix(3)
    np.testing.assert_allclose(rows, wanted, rtol=0, atol=2e-5 * np.abs(wanted).max())
    assert (chunk.grid.h, chunk.grid.w, chunk.used, chunk.size) == (2, 3, (96, 64), (120, 90))


def test_a_graph_with_one_input_takes_each_picture_alone(tmp_path: Path) -> None:
    folder = onnx_files.smt(tmp_path, "Qwen3VL", "v.onnx", vision_model__input_width=96, vision_model__input_height=64, **CLIP)
    onnx_files.pixels(folder / "v.onnx", (96, 64), 32)
    opened = half(folder)
    batch = MediaBatch(opened)
    assert [batch.add(*opened.preprocess(picture(seed=seed), MediaSettings())) for seed in (0, 1)] == [True, False]


def test_rows_of_qwen2_vl_are_cut_by_hand(tmp_path: Path) -> None:
    """The static graph of 12 × 27 tokens: a guess by factors would make it 18 × 18."""
    folder = onnx_files.smt(
        tmp_path,
        "Qwen2VLForConditionalGeneration",
        "v.onnx",
        vision_model__input_width=756,
        vision_model__input_height=336,
        **CLIP,
    )
    onnx_files.rows(folder / "v.onnx", 1296)
    media, opened = picture(400, 300), half(folder)
    chunk, rows = encoded(opened, media)
    values = (stretched(media, (756, 336)) / 255 - MEAN) / STD
    cut = patch_rows(values)
    np.testing.assert_allclose(chunk.pieces[0].inputs["picture"], cut, rtol=0, atol=1e-6)
    wanted = cut.reshape(324, 4, 1176).mean(1) @ onnx_files.mix(1176)
    np.testing.assert_allclose(rows, wanted, rtol=0, atol=2e-6 * np.abs(wanted).max())
    planes, end = opened.positions(chunk, 5)
    assert planes[:3].T.tolist() == [[5, 5 + y, 5 + x] for y in range(12) for x in range(27)]
    assert not planes[3].any()
    assert end == 5 + 27


@pytest.mark.parametrize(("lead", "n_patch"), [(False, 48), (True, 48), (False, "n_patch")])
def test_rows_may_have_a_leading_axis_or_any_length(tmp_path: Path, lead: bool, n_patch: int | str) -> None:
    folder = onnx_files.smt(tmp_path, "qwen2_vl", "v.onnx", vision_model__input_width=112, vision_model__input_height=84, **CLIP)
    onnx_files.rows(folder / "v.onnx", n_patch, lead=lead)
    chunk, rows = encoded(half(folder), picture())
    wanted = chunk.pieces[0].inputs["picture"].reshape(12, 4, 1176).mean(1) @ onnx_files.mix(1176)
    np.testing.assert_allclose(rows, wanted, rtol=0, atol=2e-6 * np.abs(wanted).max())
    assert (chunk.grid.h, chunk.grid.w) == (3, 4)


@pytest.mark.parametrize(("rank", "lead"), [(3, False), (4, True)])
def test_pixels_may_come_without_a_leading_axis(tmp_path: Path, rank: int, lead: bool) -> None:
    folder = onnx_files.smt(tmp_path, "Qwen3VL", "v.onnx")
    onnx_files.pixels(folder / "v.onnx", (64, 96), 32, rank=rank, lead=lead)
    media = picture()
    _, rows = encoded(half(folder), media)
    np.testing.assert_allclose(rows, cell_means(stretched(media, (64, 96)), 32) @ onnx_files.mix(3), rtol=1e-4)


def test_several_outputs_stand_beside_each_other_for_deepstack_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for architecture, width in (("Qwen3VL", 3 * onnx_files.WIDTH), ("LlavaQwen2ForCausalLM", onnx_files.WIDTH)):
        folder = onnx_files.smt(tmp_path / architecture, architecture, "v.onnx", text_model__hidden_size=width)
        onnx_files.pixels(folder / "v.onnx", (64, 64), 32, n_outputs=3)
        _, rows = encoded(half(folder), picture())
        assert rows.shape == (4, width)
        for i in range(width // onnx_files.WIDTH):
            np.testing.assert_allclose(rows[:, i * 16 : (i + 1) * 16], rows[:, :16] * (i + 1), rtol=1e-5)
    assert "3 outputs; LlavaQwen2ForCausalLM uses the first" in caplog.text


def test_a_fastvlm_bundle_has_its_own_size_no_boundaries_and_one_plane(tmp_path: Path) -> None:
    folder = onnx_files.smt(tmp_path, "LlavaQwen2ForCausalLM", "fastvlm_vision.f16.onnx")
    onnx_files.pixels(folder / "fastvlm_vision.f16.onnx", (512, 512), 64)
    opened = half(folder)
    chunk, rows = encoded(opened, picture())
    assert (chunk.used, chunk.n_tokens, rows.shape) == ((512, 512), 64, (64, 16))
    assert opened.layout([chunk]) == [chunk]
    planes, end = opened.positions(chunk, 3)
    assert (planes.tolist(), end) == ([list(range(3, 67))], 67)


def test_boundaries_stand_around_pictures_unless_the_text_half_lacks_them(tmp_path: Path) -> None:
    folder = onnx_files.smt(tmp_path, "Qwen3VL", "v.onnx", vision_model__input_size=64)
    onnx_files.pixels(folder / "v.onnx", (64, 64), 32)
    for is_token, around in ((None, 1), (lambda _: True, 1), (lambda text: text.endswith("start|>"), 0)):
        opened = half(folder, is_token=is_token)
        chunk, _ = encoded(opened, picture())
        wanted = ["<|vision_start|>", chunk, "<|vision_end|>"] if around else [chunk]
        assert opened.layout([chunk]) == wanted


def test_a_picture_goes_to_the_graph_of_the_size_that_suits_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [(64, 64), (128, 64), (64, 128), (256, 256), (32, 32)]
    models = [{"model_path": f"{w}x{h}.onnx", "input_width": w, "input_height": h} for w, h in sizes]
    folder = onnx_files.smt(tmp_path, "Qwen3VL", models)
    for size in sizes:
        onnx_files.pixels(folder / f"{size[0]}x{size[1]}.onnx", size, 32)
    monkeypatch.setattr(foreign, "MAX_SESSIONS", 2)
    opened = half(folder)
    for wanted, given in [*zip(sizes, [(60, 60), (120, 60), (60, 120), (300, 300), (30, 30)], strict=True)] * 2:
        media = picture(*given)
        chunk, rows = encoded(opened, media)
        assert chunk.used == wanted
        np.testing.assert_allclose(rows, cell_means(stretched(media, wanted), 32) @ onnx_files.mix(3), rtol=1e-3, atol=1e-3)
        assert len(opened._sessions) <= 2
    chunk, _ = encoded(opened, picture(60, 60), MediaSettings(min_pixels=256 * 256))
    assert chunk.used == (256, 256)
    for limits, used in (
        (MediaSettings(max_tokens=4), (64, 64)),
        (MediaSettings(max_tokens=3), (32, 32)),
        (MediaSettings(max_tokens=4, max_pixels=10), (64, 64)),  # tokens go before pixels
        (MediaSettings(min_tokens=5), (256, 256)),
    ):
        chunk, rows = encoded(opened, picture(60, 60), limits)
        assert (chunk.used, len(rows)) == (used, used[0] * used[1] // 32**2)
    opened.close()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny.qwen2vl(tmp_path_factory.mktemp("foreign"))
    write_gguf(folder / "mmproj.gguf", convert.mmproj(convert.read_checkpoint(folder), "f32"))
    return folder


def test_a_static_export_runs_under_an_smt_configuration(checkpoint: Path, tmp_path: Path) -> None:
    """The real tower: its rows are the family's for the same pixels."""
    export.export(checkpoint / "mmproj.gguf", tmp_path, sizes=[(756, 336)])
    onnx_files.smt(
        tmp_path, "Qwen2VLForConditionalGeneration", "encoder-756x336.onnx",
        vision_model__input_width=756, vision_model__input_height=336, text_model__hidden_size=128, **CLIP,
    )  # fmt: skip
    chunk, rows = encoded(half(tmp_path), picture(400, 300))
    ours = FamilyHalf(Qwen2VL(open_gguf(checkpoint / "mmproj.gguf")), Options())
    piece = ours.preprocess(picture(400, 300), MediaSettings(sizes=((756, 336),)))[0].pieces[0]
    piece.inputs["patches"][:] = chunk.pieces[0].inputs["picture"]  # type: ignore[index]
    (wanted,) = ours.encode([piece])
    np.testing.assert_allclose(rows, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


def declared(folder: Path, models: list[dict[str, Any]], **more: Any) -> Path:
    """A configuration that tells of an encoder as a Qwen2-VL mmproj does, by metadata alone."""
    metadata = {
        "clip.projector_type": "qwen2vl_merger", "clip.vision.embedding_length": 64, "clip.vision.feed_forward_length": 256,
        "clip.vision.block_count": 2, "clip.vision.attention.head_count": 4, "clip.vision.projection_dim": onnx_files.WIDTH,
        "clip.vision.attention.layer_norm_epsilon": 1e-6, "clip.vision.patch_size": 14, "clip.vision.image_mean": list(MEAN),
        "clip.vision.image_std": list(STD), **more,
    }  # fmt: skip
    config = {
        "architectures": ["Qwen2VLForConditionalGeneration"], "vision_model": {"models": models},
        "diptych": {"format": 1, "metadata": metadata},
    }  # fmt: skip
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_a_dynamic_graph_of_pixels_sees_what_the_family_sees(tmp_path: Path) -> None:
    folder = declared(tmp_path, [{"model_path": "v.onnx"}])
    onnx_files.any_pixels(folder / "v.onnx", 28)
    opened = half(folder)
    for size, used in (((120, 90), (112, 84)), ((90, 300), (84, 308))):
        media = picture(*size)
        chunk, rows = encoded(opened, media)
        shrunk = np.asarray(Image.fromarray(media.data).resize(used, Image.Resampling.BICUBIC), np.float64)
        wanted = cell_means((shrunk / 255 - MEAN) / STD, 28) @ onnx_files.mix(3)
        np.testing.assert_allclose(rows, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
        assert (chunk.used, chunk.grid.w, chunk.grid.h) == (used, used[0] // 28, used[1] // 28)
        assert opened.layout([chunk]) == ["<|vision_start|>", chunk, "<|vision_end|>"]


def test_static_rows_and_a_dynamic_graph_stand_side_by_side(tmp_path: Path) -> None:
    """A picture that has one of the sizes by itself goes to its graph, any other to the one for all."""
    folder = declared(tmp_path, [{"model_path": "s.onnx", "input_width": 112, "input_height": 84}, {"model_path": "d.onnx"}])
    onnx_files.rows(folder / "s.onnx", 48)
    onnx_files.any_pixels(folder / "d.onnx", 28)
    opened = half(folder)
    for size in ((120, 90), (90, 300), (120, 90)):
        chunk, rows = encoded(opened, picture(*size))
        patches = chunk.pieces[0].inputs["patches"]
        if size == (120, 90):
            wanted = patches.reshape(-1, 4, 1176).mean(1) @ onnx_files.mix(1176)
            np.testing.assert_allclose(rows, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
    assert {graph.encoder.path.name for graph in opened._sessions} == {"s.onnx", "d.onnx"}


@pytest.mark.parametrize(("patch", "merge", "frames", "size"), [(14, 2, 2, (84, 56)), (16, 2, 1, (64, 96)), (7, 3, 2, (42, 21))])
def test_rows_of_patches_put_together_are_the_picture(patch: int, merge: int, frames: int, size: tuple[int, int]) -> None:
    image, levels = noise(*size), np.random.default_rng(0).normal(size=(256, 3)).astype(np.float32)
    rows = patchify(image, patch, merge, frames, levels)
    whole = pixels(rows, (1, size[1] // patch, size[0] // patch), patch, merge, frames)
    np.testing.assert_array_equal(whole, levels[image, np.arange(3)].transpose(2, 0, 1))


def smt_error(folder: Path, architecture: str, build: Any, **more: Any) -> str:
    onnx_files.smt(folder, architecture, "v.onnx", **more)
    build(folder / "v.onnx")
    with pytest.raises(DiptychError) as caught:
        opened = half(folder)
        encoded(opened, picture())
    assert "\n" not in str(caught.value)
    return str(caught.value)


WIDE = {"vision_model__input_width": 756, "vision_model__input_height": 336}


@pytest.mark.parametrize(
    ("architecture", "build", "more", "words"),
    [
        ("qwen2vl", lambda p: onnx_files.rows(p, 1296), CLIP, "no input_size for v.onnx"),
        ("qwen2vl", lambda p: onnx_files.rows(p, 1296), {**CLIP, "vision_model__input_size": 224}, "1296 .* have 256"),
        ("qwen2vl", lambda p: onnx_files.rows(p, 1296), {**CLIP, "vision_model__input_size": 225}, "no multiple of 28"),
        ("qwen2vl", lambda p: onnx_files.rows(p, 1296), WIDE, "needs vision_preprocess"),
        ("qwen2vl", lambda p: onnx_files.rows(p, 1296, row=1000), {**CLIP, **WIDE}, "rows of 1000"),
        ("qwen2vl", lambda p: onnx_files.rows(p, 1296, width=8), {**CLIP, **WIDE}, "width 8, and .* says 16"),
        ("Qwen3VL", lambda p: onnx_files.pixels(p, (64, 64), 32), {"vision_model__input_size": 96}, "made for 64x64 pixels"),
        ("Qwen3VL", lambda p: onnx_files.pixels(p, (64, 64), 32, n_outputs=2), {}, "rows of width 32, and .* says 16"),
        ("Qwen3VL", lambda p: p.write_bytes(b""), {}, "cannot be read as ONNX"),
        ("Qwen3VL", lambda p: p.write_bytes(b"hello there, this is text"), {}, "cannot be read as ONNX"),
        ("Qwen3VL", lambda p: p.write_bytes(onnx_files.pixels(p, (64, 64), 32).read_bytes()[:-20]), {}, "v.onnx"),
    ],
)  # fmt: skip
def test_a_file_that_does_not_go_with_its_configuration_is_refused(
    tmp_path: Path, architecture: str, build: Any, more: dict[str, Any], words: str
) -> None:

    assert re.search(words, smt_error(tmp_path, architecture, build, **more))


def typed(
    path: Path, dtype: Any = np.float32, shape: tuple[int | str, ...] = (1, 3, 64, 64), inputs: int = 1, out: int = 2
) -> Path:
    def build(g: Any) -> None:
        x = g.input("x", shape, dtype)
        for i in range(inputs - 1):
            g.input(f"more{i}", (1,))
        y = g.Reshape(g.Cast(x, to=1), [-1, 16])
        g.output("y", y if out == 2 else g.Reshape(y, [*([1] * (out - 2)), -1, 16]), (*([1] * (out - 2)), "n", 16))

    return onnx_files.write(path, build)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda p: typed(p, np.uint8), "uint8 .*float32 is expected"),
        (lambda p: typed(p, np.float16), "float16 .*float32 is expected"),
        (lambda p: typed(p, shape=(1, 4, 64, 64)), "pixels .1, 3, height, width. are expected"),
        (lambda p: typed(p, shape=(1, 1, 3, 64, 64)), "pixels .1, 3, height, width. are expected"),
        (lambda p: typed(p, shape=(4096,)), "are expected"),
        (lambda p: typed(p, inputs=2), "2 inputs .*one float32 input is expected"),
        (lambda p: typed(p, out=4), "tokens, width"),
        (lambda p: typed(p), "does not tell how many tokens"),
    ],
)
def test_an_input_or_output_of_another_form_is_refused(tmp_path: Path, build: Any, words: str) -> None:

    assert re.search(words, smt_error(tmp_path, "Qwen3VL", build))


def test_a_graph_that_gives_other_rows_than_it_said_is_found_out(tmp_path: Path) -> None:
    folder = declared(tmp_path, [{"model_path": "v.onnx"}])
    onnx_files.any_pixels(folder / "v.onnx", 14)
    with pytest.raises(EngineError, match=r"rows \(48, 16\) for a picture of 112x84, and \(12, 16\)"):
        encoded(half(folder), picture())


def test_metadata_of_no_family_is_refused(tmp_path: Path) -> None:
    for more, words in (({"clip.projector_type": "nobody"}, "nobody"), ({"clip.vision.patch_size": "x"}, "config.json")):
        folder = declared(tmp_path / words, [{"model_path": "v.onnx"}], **more)
        onnx_files.any_pixels(folder / "v.onnx", 28)
        with pytest.raises(FileError, match=words):
            half(folder)


def test_two_graphs_for_the_same_pictures_are_refused(tmp_path: Path) -> None:
    models = [{"model_path": "a.onnx", "input_size": 64}, {"model_path": "b.onnx", "input_size": 64}]
    folder = onnx_files.smt(tmp_path, "Qwen3VL", models)
    for name in ("a.onnx", "b.onnx"):
        onnx_files.pixels(folder / name, (64, 64), 32)
    with pytest.raises(FileError, match="two graphs for 64x64"):
        half(folder)


def test_warming_up_runs_a_graph(tmp_path: Path) -> None:
    folder = onnx_files.smt(tmp_path, "Qwen3VL", "v.onnx")
    onnx_files.pixels(folder / "v.onnx", (64, 64), 32)
    opened = half(folder, Options(threads=1, warmup=True))
    assert opened.backend == "onnx"
    opened.close()
