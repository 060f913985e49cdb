"""`diptych encode` and `diptych inspect`: what is written and what is told."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

import pictures
import sounds
import tiny_mmproj
from cli.conftest import Diptych


def arrays(path: Path) -> dict[str, np.ndarray]:
    """Everything in an .npz file, which is closed again."""
    with np.load(path) as held:
        return dict(held)


def test_the_file_holds_embeddings_grid_positions_and_pixels(diptych: Diptych, model: Path, tmp_path: Path) -> None:
    wide = pictures.save(tmp_path / "wide.png", pictures.gradient(300, 100))
    tall = pictures.save(tmp_path / "tall.png", pictures.noise(60, 140))
    out = tmp_path / "out.npz"
    done = diptych("encode", "--mmproj", model / "mmproj.gguf", "--image", wide, "--image", tall, "-o", out, "--json")
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert [i["size_given"] for i in told["images"]] == [[300, 100], [60, 140]]
    assert [i["size_used"] for i in told["images"]] == [[308, 112], [56, 140]]
    assert [(i["grid"], i["tokens"]) for i in told["images"]] == [([1, 4, 11], 44), ([1, 5, 2], 10)]
    assert set(told["timings"]) == {"load_ms", "preprocess_ms", "encode_ms"}
    held = arrays(out)
    assert sorted(held) == [f"{name}_{i}" for name in ("embeddings", "grid", "pixels", "positions") for i in (0, 1)]
    for i, shown in enumerate(told["images"]):
        assert held[f"grid_{i}"].tolist() == shown["grid"]
        assert held[f"embeddings_{i}"].shape == (shown["tokens"], 128)
        assert held[f"embeddings_{i}"].dtype == np.float32
        assert held[f"positions_{i}"].shape == (4, shown["tokens"])
        assert held[f"positions_{i}"].min() == 0
        assert held[f"pixels_{i}"].shape == (shown["tokens"] * 4, 3 * 2 * 14 * 14)
    assert held["positions_1"][:3].T.tolist() == [[0, y, x] for y in range(5) for x in range(2)]


def test_pictures_encoded_together_are_as_each_alone(diptych: Diptych, model: Path, tmp_path: Path) -> None:
    names = [pictures.save(tmp_path / f"{i}.png", pictures.noise(60 + 40 * i, 90, i)) for i in range(3)]
    flags = [word for name in names for word in ("--image", name)]
    diptych("encode", "--mmproj", model / "mmproj.gguf", *flags, "-o", tmp_path / "all.npz")
    together = arrays(tmp_path / "all.npz")
    for i, name in enumerate(names):
        diptych("encode", "--mmproj", model / "mmproj.gguf", "--image", name, "-o", tmp_path / f"{i}.npz")
        alone = arrays(tmp_path / f"{i}.npz")
        np.testing.assert_allclose(together[f"embeddings_{i}"], alone["embeddings_0"], rtol=0, atol=2e-6)


def test_a_table_is_for_people(diptych: Diptych, model: Path, picture: Path, tmp_path: Path) -> None:
    done = diptych("encode", "--mmproj", model / "mmproj.gguf", "--image", picture, "-o", tmp_path / "o.npz")
    assert "110×70" in done.out
    assert "112×56" in done.out or "112×84" in done.out
    assert "encode" in done.out


def test_inspect_draws_a_picture(diptych: Diptych, model: Path, picture: Path, tmp_path: Path) -> None:
    out = tmp_path / "seen.png"
    done = diptych("inspect", "--mmproj", model / "mmproj.gguf", "--image", picture, "-o", out)
    assert done.code == 0, done.err
    with Image.open(out) as drawn:
        assert drawn.format == "PNG"
        assert min(drawn.size) > 300
    assert "110×70 seen as" in done.out


def test_inspect_takes_a_deployment_by_its_name(diptych: Diptych, picture: Path, tmp_path: Path) -> None:
    done = diptych("inspect", "reader", "--image", picture, "-o", tmp_path / "seen.png")
    assert done.code == 0, done.err
    assert (tmp_path / "seen.png").is_file()


def test_libmtmd_encodes_without_a_text_file(diptych: Diptych, model: Path, tmp_path: Path) -> None:
    shown = pictures.save(tmp_path / "p.png", pictures.gradient(112, 84))
    held = {}
    for name in "onnx", "mtmd":
        out = tmp_path / f"{name}.npz"
        mmproj = model / "mmproj.gguf"
        done = diptych("encode", "--mmproj", mmproj, "--image", shown, "-o", out, "--media-backend", name, "--json")
        assert done.code == 0, done.err
        assert done.err == ""
        assert json.loads(done.out)["media_backend"] == name
        held[name] = arrays(out)
    ours, theirs = held["onnx"], held["mtmd"]
    assert sorted(set(ours) - set(theirs)) == ["pixels_0"]
    for name in "grid_0", "positions_0":
        np.testing.assert_array_equal(ours[name], theirs[name])
    largest = np.abs(ours["embeddings_0"]).max()
    np.testing.assert_allclose(ours["embeddings_0"], theirs["embeddings_0"], rtol=0, atol=2e-3 * largest)


def test_auto_takes_libmtmd_where_no_family_is_known_and_says_so(diptych: Diptych, picture: Path, tmp_path: Path) -> None:
    out = tmp_path / "o.npz"
    done = diptych("encode", "--mmproj", tiny_mmproj.idefics3(tmp_path / "m.gguf"), "--image", picture, "-o", out, "--json")
    assert done.err == "media backend: mtmd\n"
    (image,) = json.loads(done.out)["images"]
    assert (image["size_given"], image["size_used"], image["tokens"]) == ([110, 70], None, 20)
    held = arrays(out)
    assert held["embeddings_0"].shape == (20, 128)
    assert held["positions_0"].tolist() == [list(range(20))]


def test_recordings_are_encoded_and_numbered_behind_pictures(diptych: Diptych, tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(sounds.wav(sounds.tone()))
    out, mmproj = tmp_path / "o.npz", tiny_mmproj.ultravox(tmp_path / "m.gguf")
    done = diptych("encode", "--mmproj", mmproj, "--audio", tmp_path / "a.wav", "-o", out, "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["audio"] == [{"grid": [375, 1, 1], "tokens": 375}]
    assert arrays(out)["embeddings_0"].shape == (375, 128)
    table = diptych("encode", "--mmproj", mmproj, "--audio", tmp_path / "a.wav", "-o", out, "--force")
    assert "a.wav" in table.out


def test_nothing_to_encode_and_media_of_the_wrong_kind_are_told(diptych: Diptych, model: Path, tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(sounds.wav(sounds.tone(0.1)))
    given = ("encode", "--mmproj", model / "mmproj.gguf", "-o", tmp_path / "o.npz")
    none, deaf = diptych(*given), diptych(*given, "--audio", tmp_path / "a.wav", "--media-backend", "onnx")
    assert (none.code, deaf.code) == (2, 2)
    assert "there is nothing to encode; give --image FILE or --audio FILE" in none.err
    assert deaf.err == "error: audio is given, and the media half takes image; leave it out, or try --media-backend mtmd\n"
    assert not (tmp_path / "o.npz").exists()
