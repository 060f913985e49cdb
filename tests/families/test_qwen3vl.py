"""Qwen3-VL and Qwen3.5 against transformers and libmtmd, on tiny random checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from check import (
    TRANSFORMERS,
    Reference,
    check_caught,
    check_family,
    check_missing,
    check_static,
    far,
    half_of,
    media,
    rows_of,
    swapped,
    within,
)
from checkpoints import Checkpoint, mmproj, of_shapes
from reference import check_frames, check_rope_index, model, processor, reference

import tiny_qwen3
from diptych import convert
from diptych.errors import FileError
from diptych.families import qwen3vl
from diptych.families.qwen3vl import LIMITS, Qwen3VL, between
from diptych.types import MediaSettings
from diptych.weights import Weights
from diptych.weights.tensor import in_memory
from pictures import gradient, noise

MOE = "Qwen3VLMoeForConditionalGeneration"
SHAPES = {
    "usual": tiny_qwen3.Qwen3(),
    "experts": tiny_qwen3.Qwen3(MOE, seed=1, side=7, v_depth=3, deepstack=(1,)),
    "three mergers out of order": tiny_qwen3.Qwen3(seed=2, side=3, deepstack=(3, 0, 1)),
    "no deepstack": tiny_qwen3.Qwen3(seed=3, side=16, v_depth=2, deepstack=()),
    "wide head": tiny_qwen3.Qwen3(seed=4, v_embd=144, v_head=2, v_depth=2, deepstack=(0,)),  # 72 a head, as the real one
    "f16": tiny_qwen3.Qwen3(seed=5, dtype="float16"),
    "Qwen3.5": tiny_qwen3.Qwen3("Qwen3_5ForConditionalGeneration", seed=7, deepstack=()),
    "Qwen3.5, experts": tiny_qwen3.Qwen3("Qwen3_5MoeForConditionalGeneration", seed=8, side=5, v_depth=2, deepstack=()),
    "tight budget": tiny_qwen3.Qwen3(seed=6, min_pixels=32 * 32 * 16, max_pixels=32 * 32 * 30),
}
# grids of 2×2 to 20×20 patches, and lines
SIZES = [(192, 192), (128, 64), (61, 93), (333, 30), (9, 5), (1, 1), (32, 32 * 60), (1500, 1000), (16, 48), (48, 80), (4000, 20)]
checkpoint = of_shapes(tiny_qwen3.write, SHAPES)


def with_taps(found: Any) -> Any:
    import torch

    return torch.cat([found.pooler_output, *(getattr(found, "deepstack_features", None) or [])], dim=1)


def transformers(folder: Path) -> Reference:
    return reference(model(folder).visual, processor(folder), rows=with_taps)


@pytest.mark.parity
@pytest.mark.parametrize("name", SHAPES)
def test_the_family_holds_what_every_family_must(name: str, checkpoint: Checkpoint) -> None:
    folder, shape = checkpoint(name), SHAPES[name]
    agreeing = within([(96, 96), (128, 192), (64, 160), (256, 288)], shape.min_pixels, shape.max_pixels)
    check_family(mmproj(folder), SIZES if name == "usual" else SIZES[1:4], transformers(folder), agreeing=agreeing)


@pytest.mark.parity
@pytest.mark.parametrize("name", ["usual", "three mergers out of order"])
def test_the_merger_and_each_deepstack_layer_are_exact_by_themselves(name: str, checkpoint: Checkpoint) -> None:
    folder, picture = checkpoint(name), noise(160, 224)
    n = 1 + len(SHAPES[name].deepstack)
    found, wanted = rows_of(mmproj(folder), picture), transformers(folder)(picture).rows
    for ours, theirs in zip(np.split(found, n, axis=1), np.split(wanted, n, axis=1), strict=True):
        assert far(ours, theirs) < TRANSFORMERS


@pytest.mark.parity
@pytest.mark.parametrize("name", ["usual", "no deepstack", "Qwen3.5"])
def test_a_static_graph_takes_patches_alone(name: str, checkpoint: Checkpoint) -> None:
    check_static(mmproj(checkpoint(name)), (160, 96))


@pytest.mark.parity
@pytest.mark.parametrize("kind", ["norm.weight", "norm.bias", "fc1.weight", "fc2.bias"])
def test_deepstack_layers_in_each_others_place_are_caught(kind: str, checkpoint: Checkpoint) -> None:
    folder = checkpoint("usual")
    check_caught(swapped(mmproj(folder), f"v.deepstack.0.{kind}", f"v.deepstack.2.{kind}"), transformers(folder), (96, 64))


@pytest.mark.parity
def test_a_table_of_positions_by_columns_is_caught(checkpoint: Checkpoint) -> None:
    folder = checkpoint("usual")
    weights = mmproj(folder)
    name, side = qwen3vl.POSITIONS, SHAPES["usual"].side
    table = weights.tensors[name].read().reshape(side, side, -1).swapaxes(0, 1).reshape(side**2, -1)
    turned = Weights(weights.metadata, {**weights.tensors, name: in_memory(name, np.ascontiguousarray(table))})
    check_caught(turned, transformers(folder), (96, 64))


Lattice = tuple[np.ndarray, np.ndarray]
FAULTS: dict[str, Callable[[Lattice], Lattice]] = {
    "taps left for right": lambda found: (found[0][..., [1, 0, 3, 2]], found[1]),
    "taps above for below": lambda found: (found[0][..., [2, 3, 0, 1]], found[1]),
    "taps one column on": lambda found: (np.roll(found[0], 1, axis=1), found[1]),
    "the nearest row alone": lambda found: (found[0], np.eye(4, dtype=np.float32)[found[1].argmax(axis=-1)]),
}


@pytest.mark.parity
@pytest.mark.parametrize("fault", FAULTS)
def test_faults_between_the_rows_of_the_table_are_caught(
    fault: str, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qwen3vl, "between", lambda grid, side: FAULTS[fault](between(grid, side)))
    folder = checkpoint("usual")
    check_caught(mmproj(folder), transformers(folder), (96, 64))


@pytest.mark.parity
def test_taps_in_raster_order_are_caught(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    def tables(self: Qwen3VL, grid: tuple[int, ...]) -> dict[str, np.ndarray]:
        taps, shares = between(grid[1:], SHAPES["usual"].side)
        return {**right(self, grid), "taps": taps.reshape(-1, 4), "shares": shares.reshape(-1, 4)}

    right = Qwen3VL.tables
    monkeypatch.setattr(Qwen3VL, "tables", tables)
    folder = checkpoint("usual")
    check_caught(mmproj(folder), transformers(folder), (96, 64))


@pytest.mark.parity
@pytest.mark.parametrize("side", [1, 3, 7, 48])
@pytest.mark.parametrize("grid", [(2, 2), (2, 60), (74, 74), (6, 4), (48, 48), (50, 2), (128, 86)])
def test_places_between_the_rows_of_the_table_are_those_of_transformers(grid: tuple[int, int], side: int) -> None:
    import torch
    from transformers.vision_utils import get_vision_interpolation_indices_and_weights

    taps, shares = between(grid, side)
    wanted = get_vision_interpolation_indices_and_weights(torch.tensor([[1, *grid]]), side, "bilinear", True)
    np.testing.assert_array_equal(taps.reshape(-1, 4), wanted[0])
    np.testing.assert_allclose(shares.reshape(-1, 4), wanted[1], rtol=0, atol=1e-6)


def test_the_corners_of_the_table_stand_on_those_of_the_picture() -> None:
    taps, shares = between((3, 5), 4)
    corners = {(0, 0): 0, (0, 4): 3, (2, 0): 12, (2, 4): 15}
    for place, row in corners.items():
        assert taps[place][shares[place].argmax()] == row
        assert shares[place].max() == 1
    np.testing.assert_allclose(shares.sum(axis=-1), 1, rtol=1e-6)
    np.testing.assert_array_equal(taps[1, 0], [4, 5, 8, 9])  # half between the second row and the third
    np.testing.assert_array_equal(shares[1, 0], [0.5, 0, 0.5, 0])


@pytest.mark.parity
def test_the_two_frames_of_a_patch_meet_their_own_kernels(checkpoint: Checkpoint) -> None:
    folder = checkpoint("no deepstack")
    check_frames(Qwen3VL(mmproj(folder)), model(folder).visual, (96, 64))


@pytest.mark.parity
@pytest.mark.parametrize("name", ["usual", "Qwen3.5"])
def test_positions_are_those_of_transformers(name: str, checkpoint: Checkpoint) -> None:
    folder = checkpoint(name)
    check_rope_index(Qwen3VL(mmproj(folder)), model(folder), ((128, 64), (61, 300), (96, 96)))


def test_pixel_limits_are_the_checkpoints_own(checkpoint: Checkpoint) -> None:
    family = Qwen3VL(mmproj(checkpoint("tight budget")))
    asked = (MediaSettings(), MediaSettings(max_pixels=10**6), MediaSettings(max_pixels=7000))
    used = [family.preprocess(media(gradient(600, 400)), settings)[0].used for settings in asked]
    assert used == [(192, 128), (608, 384), (96, 64)]


def test_files_of_llama_cpps_converter_load(checkpoint: Checkpoint) -> None:
    """It leaves the pixel limits out, and gives the encoder the text half's epsilon, which is not what the model's code has."""
    weights = mmproj(checkpoint("usual"))
    plain = {k: v for k, v in weights.metadata.items() if not k.endswith("_pixels")}
    plain["clip.vision.attention.layer_norm_epsilon"] = 1e-4
    family = Qwen3VL(Weights(plain, weights.tensors))
    assert family.pixel_limits(MediaSettings()) == LIMITS == (65536, 16777216)
    (chunk,) = family.preprocess(media(noise(96, 64)), MediaSettings(min_pixels=1))
    np.testing.assert_array_equal(half_of(family.weights).encode(chunk.pieces)[0], half_of(weights).encode(chunk.pieces)[0])


CONFIG: dict[str, Any] = {"architectures": ["Qwen3VLForConditionalGeneration"], "vision_config": {}}
PROCESSOR = {"size": {"shortest_edge": 65536, "longest_edge": 16777216}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}


@pytest.mark.parity
@pytest.mark.parametrize(("architecture", "kind"), [("Qwen3VL", "qwen3_vl"), ("Qwen3_5", "qwen3_5")])
def test_what_a_config_leaves_out_is_as_in_transformers(architecture: str, kind: str) -> None:
    from transformers import AutoConfig

    tower = AutoConfig.for_model(kind).vision_config
    config = {"architectures": [f"{architecture}ForConditionalGeneration"], "vision_config": {}}
    made = Qwen3VL.metadata(config, PROCESSOR)
    wanted = {
        "projector_type": "qwen3vl_merger", "use_gelu": True, "vision.projection_dim": tower.out_hidden_size,
        "vision.embedding_length": tower.hidden_size, "vision.feed_forward_length": tower.intermediate_size,
        "vision.block_count": tower.depth, "vision.attention.head_count": tower.num_heads, "vision.patch_size": tower.patch_size,
        "vision.image_size": 48 * 16, "vision.image_min_pixels": 65536, "vision.image_max_pixels": 16777216,
    }  # fmt: skip
    assert {k: made[f"clip.{k}"] for k in wanted} == wanted
    tapped = list(getattr(tower, "deepstack_visual_indexes", ()))
    assert [i for i, is_tapped in enumerate(made["clip.vision.is_deepstack_layers"]) if is_tapped] == tapped
    names = {n.split(".")[2] for n in Qwen3VL.table(config).values() if isinstance(n, str) and n.startswith("v.deepstack")}
    assert names == set(map(str, tapped))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("hidden_act", "gelu"),
        ("temporal_patch_size", 1),
        ("in_channels", 1),
        ("depth", 10**9),
        ("depth", "27"),
        ("deepstack_visual_indexes", [3, 3]),
        ("deepstack_visual_indexes", [27]),
        ("deepstack_visual_indexes", [-1]),
        ("deepstack_visual_indexes", [[8]]),
        ("deepstack_visual_indexes", "8"),
        ("rope_parameters", {"rope_theta": 5.0}),
    ],
)
def test_a_tower_of_another_make_is_refused(name: str, value: object) -> None:
    with pytest.raises(FileError, match=name.partition("_par")[0]):
        Qwen3VL.metadata({**CONFIG, "vision_config": {name: value}}, PROCESSOR)


def test_a_config_without_a_tower_is_refused(checkpoint: Checkpoint) -> None:
    found = convert.read_checkpoint(checkpoint("usual"))
    with pytest.raises(FileError, match=r"config\.json"):
        convert.mmproj(replace(found, config={**found.config, "vision_config": None}))


def test_a_checkpoint_that_does_not_say_how_pictures_are_prepared_is_refused() -> None:
    with pytest.raises(FileError, match=r"preprocessor_config\.json"):
        Qwen3VL.metadata(CONFIG, {})


def test_a_missing_tensor_is_named(checkpoint: Checkpoint) -> None:
    weights = mmproj(checkpoint("usual"))
    for name in ("v.deepstack.2.norm.bias", qwen3vl.POSITIONS):
        check_missing(weights, name)
    family = Qwen3VL(Weights(weights.metadata, {k: v for k, v in weights.tensors.items() if k != qwen3vl.POSITIONS}))
    with pytest.raises(FileError, match=qwen3vl.POSITIONS):
        family.tables((1, 2, 2))
