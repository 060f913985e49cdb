"""The picture of what a model sees: true to what the encoder is fed, and whole at every size."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

import pictures
import tiny
from diptych import positions
from diptych.families.qwen2vl import Qwen2VL
from diptych.media.access import Access
from diptych.media.draw import overlay, seen
from diptych.media.image import resize
from diptych.media.load import load
from diptych.types import Grid, MediaChunk, MediaSettings, Source
from diptych.weights import Weights

PAPER, TOKEN = (250, 250, 248), (224, 82, 6)
SIZES = [(28, 28), (56, 56), (504, 504), (1400, 308), (280, 1400), (700, 392), (28, 5600), (5600, 28), (1092, 1456)]


def drawn(width: int, height: int, title: str = "photo.png", planes: np.ndarray | None = None) -> np.ndarray:
    grid = Grid(1, height // 28, width // 28)
    chunk = MediaChunk("image", grid.h * grid.w, grid, b"k" * 32, ())
    planes = positions.mrope(chunk, 0)[0] if planes is None else planes
    image = overlay(
        pictures.gradient(width, height), planes, grid=(1, grid.h, grid.w), patch=14, merge=2, size=(width, height), title=title
    )
    assert image.mode == "RGB"
    return np.asarray(image)


def panel(width: int, height: int) -> tuple[np.ndarray, float]:
    """The picture's panel, found by its frame at the left margin, and how much it is enlarged."""
    page = drawn(width, height)
    zoom = min(1120 / max(width, height), 20)
    bottom = max(y for y in range(page.shape[0]) if tuple(page[y, 32]) == TOKEN) + 1
    return page[bottom - round(height * zoom) : bottom, 32 : 32 + round(width * zoom)], zoom


def boxes(page: np.ndarray) -> np.ndarray:
    return (page != PAPER).any(-1)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("title", ["photo.png", "a very long name of a picture " * 20 + ".png", "größe 🙂.png", "图.png", ""])
def test_nothing_is_cut_off_at_any_size(size, title):
    page = drawn(*size, title=title)
    ink = boxes(page)
    for edge in (ink[:20], ink[-20:], ink[:, :20], ink[:, -20:]):
        assert not edge.any()
    assert max(page.shape[:2]) < 2600


@pytest.mark.parametrize(("width", "height"), [(28, 28), (56, 56), (84, 28)])
def test_small_pictures_are_shown_pixel_by_pixel(width, height):
    (shown, zoom), pixels = panel(width, height), pictures.gradient(width, height)
    for y, x in [(3, 3), (3, width - 4), (height - 4, 3), (height // 2 - 3, width // 2 + 3)]:
        np.testing.assert_array_equal(shown[int((y + 0.5) * zoom), int((x + 0.5) * zoom)], pixels[y, x])


def test_lines_run_between_patches_and_tokens():
    shown, zoom = panel(56, 56)
    plain = shown[100].astype(int)  # a row without lines along it
    change = np.abs(np.diff(plain, axis=0)).sum(-1)
    patch, token = change[[279, 839]], change[[558, 559, 560]].max()
    assert zoom == 20
    assert patch.min() > 60
    assert token > 60
    assert (np.abs(plain[559:561] - TOKEN).sum(-1) < 10).any()
    inside = np.delete(change, [0, 1, 278, 279, 280, 557, 558, 559, 560, 561, 838, 839, 840, 1117, 1118])
    assert inside.max() < 40  # the picture itself is smooth


def test_the_maps_tell_the_planes_apart():
    page = drawn(280, 280)
    right = page[:, -32 - 302 :]
    colours = {tuple(c) for c in right.reshape(-1, 3)}
    assert (68, 1, 84) in colours  # the least position
    assert (253, 231, 37) in colours  # the greatest
    swapped = drawn(280, 280, planes=positions.mrope(MediaChunk("image", 100, Grid(1, 10, 10), b"", ()), 0)[0][[0, 2, 1, 3]])
    assert not np.array_equal(page, swapped)


def test_one_plane_of_positions_and_rows_beside_the_grid_are_drawn():
    linear = drawn(280, 140, planes=np.arange(50, dtype=np.int32)[None])
    breaks = drawn(280, 140, planes=np.arange(55, dtype=np.int32)[None])
    assert boxes(linear).any()
    assert not np.array_equal(linear, breaks)


@pytest.mark.parametrize(("width", "height"), [(60, 60), (300, 40), (31, 77), (504, 504)])
def test_what_the_encoder_is_fed_is_shown_as_the_picture_it_stands_for(width, height):
    config = tiny.config(tiny.Qwen2VL())
    family = Qwen2VL(Weights(Qwen2VL.metadata(config, {"min_pixels": 3136, "max_pixels": 200704}), {}))
    media = load(Source("image", data=pictures.encoded(pictures.noise(width, height))), Access())
    (chunk,) = family.preprocess(media, MediaSettings())
    fed = chunk.pieces[0].inputs["patches"]
    hp = family.hp
    expected = resize(media.data, *chunk.used)
    np.testing.assert_array_equal(seen(fed, chunk.used, hp.patch_size, hp.n_merge, hp.mean, hp.std), expected)
    whole = np.moveaxis((expected / 255 - np.array(hp.mean)) / np.array(hp.std), -1, 0).astype(np.float32)
    np.testing.assert_array_equal(seen(whole, chunk.used, hp.patch_size, hp.n_merge, hp.mean, hp.std), expected)
    shuffled = fed[::-1]
    assert not np.array_equal(seen(shuffled, chunk.used, hp.patch_size, hp.n_merge, hp.mean, hp.std), expected)


def test_a_drawing_can_be_saved(tmp_path):
    Image.fromarray(drawn(56, 28)).save(tmp_path / "seen.png")
    assert (tmp_path / "seen.png").stat().st_size > 1000
