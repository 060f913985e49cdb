"""Qwen3-VL and Qwen3.5 against transformers and libmtmd, on tiny random checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from check import TRANSFORMERS, Expected, Pixels, Reference, check_family, check_static, far, media, swapped

import tiny_qwen3
from diptych import convert
from diptych.encoder.half import FamilyHalf
from diptych.errors import FileError
from diptych.families import qwen3vl
from diptych.families.qwen3vl import LIMITS, Qwen3VL, between
from diptych.options import Options
from diptych.positions import text
from diptych.types import MediaSettings
from diptych.weights import Weights
from diptych.weights.tensor import in_memory
from pictures import gradient, noise

MOE = "Qwen3VLMoeForConditionalGeneration"
SHAPES = {
    "usual": tiny_qwen3.Qwen3(),
    "experts": tiny_qwen3.Qwen3(MOE, seed=1, side=7, depth=3, deepstack=(1,)),
    "three mergers out of order": tiny_qwen3.Qwen3(seed=2, side=3, deepstack=(3, 0, 1)),
    "no deepstack": tiny_qwen3.Qwen3(seed=3, side=16, depth=2, deepstack=()),
    "wide head": tiny_qwen3.Qwen3(seed=4, embd=144, n_head=2, depth=2, deepstack=(0,)),  # 72 a head, as the real one
    "f16": tiny_qwen3.Qwen3(seed=5, dtype="float16"),
    "Qwen3.5": tiny_qwen3.Qwen3("Qwen3_5ForConditionalGeneration", seed=7, deepstack=()),
    "Qwen3.5, experts": tiny_qwen3.Qwen3("Qwen3_5MoeForConditionalGeneration", seed=8, side=5, depth=2, deepstack=()),
    "tight budget": tiny_qwen3.Qwen3(seed=6, min_pixels=32 * 32 * 16, max_pixels=32 * 32 * 30),
}
# grids of 2×2 to 20×20 patches, and lines
SIZES = [(192, 192), (128, 64), (61, 93), (333, 30), (9, 5), (1, 1), (32, 32 * 60), (1500, 1000), (16, 48), (48, 80), (4000, 20)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            made[name] = tiny_qwen3.write(tmp_path_factory.mktemp("tiny"), SHAPES[name])
        return made[name]

    return make


def mmproj(folder: Path) -> Weights:
    return convert.mmproj(convert.read_checkpoint(folder), "f32")


def tower(folder: Path) -> Any:
    import torch
    from transformers import AutoModelForImageTextToText

    return AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).model.visual.eval()


def transformers(folder: Path) -> Reference:
    import torch
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    visual, processor = tower(folder), Qwen2VLImageProcessorPil.from_pretrained(folder)

    def run(picture: Pixels) -> Expected:
        made = processor(images=[picture], return_tensors="pt", input_data_format="channels_last")
        with torch.no_grad():
            found = visual(made["pixel_values"], grid_thw=made["image_grid_thw"])
        rows = torch.cat([found.pooler_output, *(getattr(found, "deepstack_features", None) or [])], dim=1)
        return Expected([{"patches": made["pixel_values"].numpy()}], rows.numpy())

    return run


@pytest.mark.parity
@pytest.mark.parametrize("name", SHAPES)
def test_the_family_holds_what_every_family_must(name: str, checkpoint: Callable[[str], Path]) -> None:
    folder = checkpoint(name)
    sizes = SIZES if name == "usual" else SIZES[1:4]
    pictures = [noise(w, h, seed=i) for i, (w, h) in enumerate(sizes)]
    low, high = SHAPES[name].min_pixels, SHAPES[name].max_pixels
    agreeing = [noise(w, h) for w, h in ((96, 96), (128, 192), (64, 160), (256, 288)) if low <= w * h <= high]
    check_family(mmproj(folder), pictures, transformers(folder), agreeing=agreeing)


@pytest.mark.parity
@pytest.mark.parametrize("name", ["usual", "three mergers out of order"])
def test_the_merger_and_each_deepstack_layer_are_exact_by_themselves(name: str, checkpoint: Callable[[str], Path]) -> None:
    folder, picture = checkpoint(name), noise(160, 224)
    weights = mmproj(folder)
    (chunk,) = Qwen3VL(weights).preprocess(media(picture), MediaSettings())
    n = 1 + len(SHAPES[name].deepstack)
    found, wanted = rows(weights, chunk.pieces), transformers(folder)(picture).rows
    for ours, theirs in zip(np.split(found, n, axis=1), np.split(wanted, n, axis=1), strict=True):
        assert far(ours, theirs) < TRANSFORMERS


@pytest.mark.parity
@pytest.mark.parametrize("name", ["usual", "no deepstack", "Qwen3.5"])
def test_a_static_graph_takes_patches_alone(name: str, checkpoint: Callable[[str], Path]) -> None:
    check_static(mmproj(checkpoint(name)), (160, 96))


@pytest.mark.parity
@pytest.mark.parametrize("kind", ["norm.weight", "norm.bias", "fc1.weight", "fc2.bias"])
def test_deepstack_layers_in_each_others_place_are_caught(kind: str, checkpoint: Callable[[str], Path]) -> None:
    folder = checkpoint("usual")
    check_caught(folder, swapped(mmproj(folder), f"v.deepstack.0.{kind}", f"v.deepstack.2.{kind}"))


@pytest.mark.parity
def test_a_table_of_positions_by_columns_is_caught(checkpoint: Callable[[str], Path]) -> None:
    folder = checkpoint("usual")
    weights = mmproj(folder)
    name, side = qwen3vl.POSITIONS, SHAPES["usual"].side
    table = weights.tensors[name].read().reshape(side, side, -1).swapaxes(0, 1).reshape(side**2, -1)
    check_caught(folder, Weights(weights.metadata, {**weights.tensors, name: in_memory(name, np.ascontiguousarray(table))}))


def check_caught(folder: Path, weights: Weights) -> None:
    """A fault that was planted in the family or in its weights shows."""
    with pytest.raises(AssertionError):
        check_family(weights, [noise(96, 64)], transformers(folder))


def rows(weights: Weights, pieces: Any) -> np.ndarray:
    return FamilyHalf(Qwen3VL(weights), Options()).encode(pieces)[0]


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
    fault: str, checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qwen3vl, "between", lambda grid, side: FAULTS[fault](between(grid, side)))
    folder = checkpoint("usual")
    check_caught(folder, mmproj(folder))


@pytest.mark.parity
def test_taps_in_raster_order_are_caught(checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def tables(self: Qwen3VL, grid: tuple[int, ...]) -> dict[str, np.ndarray]:
        taps, shares = between(grid[1:], SHAPES["usual"].side)
        return {**right(self, grid), "taps": taps.reshape(-1, 4), "shares": shares.reshape(-1, 4)}

    right = Qwen3VL.tables
    monkeypatch.setattr(Qwen3VL, "tables", tables)
    folder = checkpoint("usual")
    check_caught(folder, mmproj(folder))


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
def test_the_two_frames_of_a_patch_meet_their_own_kernels(checkpoint: Callable[[str], Path]) -> None:
    import torch

    folder = checkpoint("no deepstack")
    half = FamilyHalf(Qwen3VL(mmproj(folder)), Options())
    (chunk,) = half.preprocess(media(noise(96, 64)), MediaSettings())
    (piece,) = chunk.pieces
    frames = np.random.default_rng(0).standard_normal(piece.inputs["patches"].shape, np.float32)  # no two frames alike
    with torch.no_grad():
        wanted = tower(folder)(torch.from_numpy(frames), grid_thw=torch.tensor([piece.grid])).pooler_output.numpy()
    assert far(half.encode([replace(piece, inputs={"patches": frames})])[0], wanted) < TRANSFORMERS


@pytest.mark.parity
@pytest.mark.parametrize("name", ["usual", "Qwen3.5"])
def test_positions_are_those_of_transformers(name: str, checkpoint: Callable[[str], Path]) -> None:
    import torch
    from transformers import AutoModelForImageTextToText

    folder = checkpoint(name)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).model
    family = Qwen3VL(mmproj(folder))
    chunks = [family.preprocess(media(noise(w, h)), MediaSettings())[0] for w, h in ((128, 64), (61, 300), (96, 96))]
    planes, types, at = [], [], 0
    for n, chunk in zip((4, 1, 2), chunks, strict=True):  # text, picture, text, picture, text, picture, text
        words, at = text(n, at, 4)
        placed, at = family.positions(chunk, at)
        planes += [words, placed]
        types += [0] * n + [1] * chunk.n_tokens
    planes.append(text(5, at, 4)[0])
    types += [0] * 5
    grids = torch.tensor([c.pieces[0].grid for c in chunks])
    wanted, _ = model.get_rope_index(torch.zeros(1, len(types), dtype=torch.long), torch.tensor([types]), image_grid_thw=grids)
    np.testing.assert_array_equal(np.concatenate(planes, axis=1)[:3], wanted[:, 0])


def test_pixel_limits_are_the_checkpoints_own(checkpoint: Callable[[str], Path]) -> None:
    family = Qwen3VL(mmproj(checkpoint("tight budget")))
    asked = (MediaSettings(), MediaSettings(max_pixels=10**6), MediaSettings(max_pixels=7000))
    used = [family.preprocess(media(gradient(600, 400)), settings)[0].used for settings in asked]
    assert used == [(192, 128), (608, 384), (96, 64)]


def test_files_of_llama_cpps_converter_load(checkpoint: Callable[[str], Path]) -> None:
    """It leaves the pixel limits out, and gives the encoder the text half's epsilon, which is not what the model's code has."""
    weights = mmproj(checkpoint("usual"))
    plain = {k: v for k, v in weights.metadata.items() if not k.endswith("_pixels")}
    plain["clip.vision.attention.layer_norm_epsilon"] = 1e-4
    family = Qwen3VL(Weights(plain, weights.tensors))
    assert family.pixel_limits(MediaSettings()) == LIMITS == (65536, 16777216)
    (chunk,) = family.preprocess(media(noise(96, 64)), MediaSettings(min_pixels=1))
    np.testing.assert_array_equal(rows(family.weights, chunk.pieces), rows(weights, chunk.pieces))


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


def test_a_config_without_a_tower_is_refused(checkpoint: Callable[[str], Path]) -> None:
    found = convert.read_checkpoint(checkpoint("usual"))
    with pytest.raises(FileError, match=r"config\.json"):
        convert.mmproj(replace(found, config={**found.config, "vision_config": None}))


def test_a_checkpoint_that_does_not_say_how_pictures_are_prepared_is_refused() -> None:
    with pytest.raises(FileError, match=r"preprocessor_config\.json"):
        Qwen3VL.metadata(CONFIG, {})


def test_a_missing_tensor_is_named(checkpoint: Callable[[str], Path]) -> None:
    weights = mmproj(checkpoint("usual"))
    for name in ("v.deepstack.2.norm.bias", qwen3vl.POSITIONS):
        family = Qwen3VL(Weights(weights.metadata, {k: v for k, v in weights.tensors.items() if k != name}))
        with pytest.raises(FileError, match=name):
            FamilyHalf(family, Options())
    with pytest.raises(FileError, match=qwen3vl.POSITIONS):
        family.tables((1, 2, 2))
