"""PaddleOCR-VL against transformers and libmtmd, on tiny random checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from check import Expected, Pixels, Reference, check_family, far, media, swapped

import tiny_paddleocr as tiny
from diptych import convert
from diptych.encoder.half import FamilyHalf
from diptych.errors import FileError, MediaError
from diptych.families import paddleocr
from diptych.families.paddleocr import PaddleOCR
from diptych.options import Options
from diptych.types import MediaSettings
from diptych.weights import Weights, write_gguf
from mtmd import Mtmd
from pictures import gradient, noise

SHAPES = {
    "usual": tiny.PaddleOCR(),
    "three-layers": tiny.PaddleOCR(seed=1, v_depth=3, v_embd=96, v_head=6, v_eps=1e-5, table=3, hidden=96, n_head=3),
    "wide-head": tiny.PaddleOCR(seed=2, v_embd=144, v_head=2, v_ff=72, table=7, hidden=64),  # 72 a head, as the real one
    "f16": tiny.PaddleOCR(seed=3, dtype="float16", tied=True),
    "tight-budget": tiny.PaddleOCR(seed=4, min_pixels=28 * 28 * 16, max_pixels=28 * 28 * 30),
}
# grids larger and smaller than the table, and both at once; sides below a cell; ties of rounding
SIZES = [(84, 84), (168, 56), (61, 93), (333, 30), (9, 5), (1, 1), (28, 28 * 30), (1500, 1000), (14, 42), (42, 70), (4000, 20)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            made[name] = tiny.paddleocr(tmp_path_factory.mktemp(name), SHAPES[name])
        return made[name]

    return make


def mmproj(folder: Path) -> Weights:
    return convert.mmproj(convert.read_checkpoint(folder), "f32")


def transformers(folder: Path) -> Reference:
    import torch
    from transformers import PaddleOCRVLForConditionalGeneration
    from transformers.models.paddleocr_vl.image_processing_pil_paddleocr_vl import PaddleOCRVLImageProcessorPil

    model = PaddleOCRVLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).model.eval()
    processor = PaddleOCRVLImageProcessorPil.from_pretrained(folder)

    def run(picture: Pixels) -> Expected:
        made = processor(images=[picture], return_tensors="pt", input_data_format="channels_last")
        with torch.no_grad():
            (rows,) = model.get_image_features(made["pixel_values"], made["image_grid_thw"]).pooler_output
        _, h, w = made["image_grid_thw"][0].tolist()
        cells = made["pixel_values"].numpy().reshape(h // 2, 2, w // 2, 2, -1).swapaxes(1, 2)  # it has them row by row
        return Expected([{"patches": cells.reshape(h * w, -1)}], rows.numpy())

    return run


@pytest.mark.parity
@pytest.mark.parametrize("name", SHAPES)
def test_the_family_holds_what_every_family_must(name: str, checkpoint: Callable[[str], Path]) -> None:
    folder = checkpoint(name)
    sizes = SIZES if name == "usual" else SIZES[1:4]
    pictures = [noise(w, h, seed=i) for i, (w, h) in enumerate(sizes)]
    # libmtmd smooths the position table where the picture has fewer patches a side than it, and its GELU in the
    # projector is the tanh form: that and its f16 tables are what its tolerance is for
    low, high, side = SHAPES[name].min_pixels, SHAPES[name].max_pixels, SHAPES[name].table * 14
    agreeing = [noise(w, h) for w, h in ((84, 84), (112, 168), (140, 112)) if low <= w * h <= high and min(w, h) >= side]
    assert agreeing
    check_family(mmproj(folder), pictures, transformers(folder), agreeing=agreeing)
