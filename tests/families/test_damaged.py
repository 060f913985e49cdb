"""Metadata that no converter writes: one line says what is wrong, and nothing breaks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pictures
from diptych import reader
from diptych.encoder.half import open_half
from diptych.errors import DiptychError, FileError
from diptych.options import Options
from diptych.types import Media, MediaSettings
from diptych.weights import Weights, open_gguf, write_gguf

SOUND = open_gguf(reader.FOLDER / "mmproj.gguf")
KEYS = [key for key in SOUND.metadata if key.startswith("clip.vision.")]
VALUES: list[Any] = [
    None,
    0,
    -1,
    1,
    7,
    2**31 - 1,
    2**32 - 1,
    0.0,
    -1.5,
    float("nan"),
    float("inf"),
    True,
    "x",
    [],
    [1, 2],
    [0.0] * 3,
]


def changed(folder: Path, key: str, value: Any) -> Path:
    """The shipped reader's media half with another value of one key; None leaves it out."""
    metadata = {k: v for k, v in SOUND.metadata.items() if k != key or value is not None}
    if value is not None:
        metadata[key] = value
    file = folder / "mmproj.gguf"
    write_gguf(file, Weights(metadata, SOUND.tensors))
    return file


@pytest.mark.parametrize("key", KEYS)
def test_a_changed_value_is_told_in_one_line_or_does_no_harm(key: str, tmp_path: Path) -> None:
    picture = Media("image", pictures.noise(60, 40), b"")
    for i, value in enumerate(VALUES):
        (folder := tmp_path / str(i)).mkdir()
        try:
            half = open_half(changed(folder, key, value), Options())
        except DiptychError as error:
            assert "\n" not in str(error)  # noqa: PT017
            continue
        try:
            if "_pixels" not in key:  # any number of them is one that a model could have
                (chunk,) = half.preprocess(picture, MediaSettings())
                assert np.isfinite(half.encode(chunk.pieces)[0]).all()
        except DiptychError as error:
            assert "\n" not in str(error)  # noqa: PT017
        finally:
            half.close()


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("attention.head_count", 0, "0 for clip.vision.attention.head_count, and a whole number from 1"),
        ("attention.head_count", 7, "7 heads for a width of 192"),
        ("embedding_length", None, "nothing for clip.vision.embedding_length"),
        ("image_std", [0.5, 0.0, 0.5], "clip.vision.image_std, and 3 numbers over 0 expected"),
        ("spatial_merge_size", 2**20, "cells of at most 1024 pixels"),
        ("patch_size", 0, "clip.vision.patch_size"),
    ],
)
def test_what_is_wrong_is_named(key: str, value: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(FileError, match=said):
        open_half(changed(tmp_path, f"clip.vision.{key}", value), Options())
