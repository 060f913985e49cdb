"""dots.ocr against libmtmd on the same file, and against the blocks of transformers that its own code shares.

Its code comes with the checkpoint and is no part of transformers. What transformers has is the tower of its successor,
dots3-note, which is the same but for norms of queries and keys and layers with experts: `tower` leaves these out. The
blocks alone are also Qwen2.5-VL's with windows and biases left out.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from check import Expected, Pixels, Reference, check_family, far, media, swapped

import tiny_dotsocr as tiny
from diptych import convert
from diptych.encoder.half import FamilyHalf
from diptych.errors import FileError
from diptych.families.dotsocr import DotsOCR
from diptych.options import Options
from diptych.types import MediaSettings
from diptych.weights import Weights
from pictures import gradient, noise

SHAPES = {
    "usual": tiny.DotsOCR(),
    "three-layers": tiny.DotsOCR(seed=1, v_depth=3, v_embd=96, v_head=6, v_eps=1e-3, hidden=96),
    "wide-head": tiny.DotsOCR(seed=2, v_embd=256, v_head=2, v_ff=72, hidden=64),  # 128 a head, as the real one
    "f16": tiny.DotsOCR(seed=3, dtype="float16"),
    "tight-budget": tiny.DotsOCR(seed=4, min_pixels=28 * 28 * 16, max_pixels=28 * 28 * 30),
}
SIZES = [(84, 84), (112, 56), (61, 93), (333, 30), (9, 5), (1, 1), (28, 28 * 30), (1500, 1000), (14, 42), (42, 70), (4000, 20)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            made[name] = tiny.dotsocr(tmp_path_factory.mktemp(name), SHAPES[name])
        return made[name]

    return make


def mmproj(folder: Path) -> Weights:
    return convert.mmproj(convert.read_checkpoint(folder), "f32")


def tower(folder: Path, shape: tiny.DotsOCR) -> Any:
    """dots3-note's tower with the checkpoint's weights, no norms of queries and keys, and no experts."""
    import torch
    from safetensors.torch import load_file
    from transformers.models.dots3_note.configuration_dots3_note import Dots3NoteVisionConfig
    from transformers.models.dots3_note.modeling_dots3_note import Dots3NoteVisionModel

    model = Dots3NoteVisionModel(
        Dots3NoteVisionConfig(
            hidden_size=shape.v_embd, num_hidden_layers=shape.v_depth, num_attention_heads=shape.v_head,
            intermediate_size=shape.v_ff, rms_norm_eps=shape.v_eps, patch_size=14, spatial_merge_size=2,
            adapter_in_dim=shape.v_embd, adapter_out_dim=shape.hidden, adapter_merge_size=2,
            mlp_layer_types=["dense"] * shape.v_depth,
        )
    )  # fmt: skip
    for block in model.blocks:
        block.attn.q_norm = block.attn.k_norm = torch.nn.Identity()
    named = {"patchifier.": "", "post_trunk_norm": "norm", "fc1": "gate_proj", "fc2": "down_proj", "fc3": "up_proj"}
    state = {}
    for name, value in load_file(folder / "model.safetensors").items():
        if name.startswith("vision_tower."):
            for theirs, ours in named.items():
                name = name.replace(theirs, ours)
            state[name.removeprefix("vision_tower.")] = value.float()
    model.load_state_dict(state)
    return model.eval()


def transformers(folder: Path, shape: tiny.DotsOCR) -> Reference:
    import torch
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    model, processor = tower(folder, shape), Qwen2VLImageProcessorPil.from_pretrained(folder)

    def run(picture: Pixels) -> Expected:
        made = processor(images=[picture], return_tensors="pt", input_data_format="channels_last")
        with torch.no_grad():
            rows = model(made["pixel_values"], grid_thw=made["image_grid_thw"]).pooler_output
        return Expected([{"patches": made["pixel_values"].numpy()}], rows.numpy())

    return run


@pytest.mark.parity
@pytest.mark.parametrize("name", SHAPES)
def test_the_family_holds_what_every_family_must(name: str, checkpoint: Callable[[str], Path]) -> None:
    folder, shape = checkpoint(name), SHAPES[name]
    sizes = SIZES if name == "usual" else SIZES[1:4]
    pictures = [noise(w, h, seed=i) for i, (w, h) in enumerate(sizes)]
    agreeing = [noise(w, h) for w, h in ((84, 84), (112, 168), (56, 140)) if shape.min_pixels <= w * h <= shape.max_pixels]
    check_family(mmproj(folder), pictures, transformers(folder, shape), agreeing=agreeing)
