"""GLM-4V and GLM-OCR against transformers, libmtmd and llama.cpp's converter, on tiny random checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from check import (
    Reference,
    check_caught,
    check_deployed,
    check_family,
    check_graph,
    check_marks,
    check_missing,
    far,
    half_of,
    media,
    swapped,
    within,
)
from checkpoints import Checkpoint, mmproj, of_shapes
from reference import check_frames, check_rope_index, check_sizes, model, reference

from diptych import convert, export, families
from diptych.encoder.half import FamilyHalf
from diptych.errors import FileError
from diptych.families import glm4v
from diptych.families.glm4v import GLM_OCR, Glm4v, cubic
from diptych.options import Options
from diptych.types import MediaSettings
from diptych.weights import Weights
from pictures import gradient, noise
from tiny_glm import Glm, write

# positions are read between the rows of a table by a product, which bf16 rounds: 0.99974 in one of these models
GATES = {"bf16": 0.9997}
SHAPES = {
    "glm-4.1v": Glm(),
    "glm-4.5v": Glm("Glm4vMoeForConditionalGeneration", seed=1, v_depth=3, v_embd=96, v_head=6, side=4),
    "glm-4.6v": Glm("Glm46VForConditionalGeneration", seed=2, v_embd=128, v_head=1, hidden=64, v_ff=176, side=24),
    "glm-4.6v-moe": Glm("Glm46VForConditionalGeneration", seed=3, moe=True, side=3, bias=True),
    "glm-ocr": Glm(GLM_OCR, seed=4, v_depth=3, bias=True),
    "glm-ocr-plain": Glm(GLM_OCR, seed=5, v_embd=128, v_head=2, hidden=64, v_ff=160),
    "f16": Glm(seed=6, dtype="float16"),
    "tight-budget": Glm(seed=7, min_pixels=2 * 28 * 28 * 16, max_pixels=2 * 28 * 28 * 30),
}
SIZES = [
    (84, 84), (112, 56), (61, 93), (333, 30), (9, 5), (1, 1), (1, 190), (27, 400), (700, 430), (14, 42), (42, 70), (336, 336),
]  # fmt: skip
checkpoint = of_shapes(write, SHAPES)


def transformers(folder: Path) -> Reference:
    from transformers.models.glm4v.image_processing_pil_glm4v import Glm4vImageProcessorPil
    from transformers.models.glm46v.image_processing_pil_glm46v import Glm46VImageProcessorPil

    newer = "Glm46V" in (folder / "preprocessor_config.json").read_text()
    processor = Glm46VImageProcessorPil if newer else Glm4vImageProcessorPil
    return reference(model(folder).visual, processor.from_pretrained(folder))


@pytest.mark.parity
@pytest.mark.parametrize("name", SHAPES)
def test_the_family_holds_what_every_family_must(name: str, checkpoint: Checkpoint) -> None:
    folder, shape = checkpoint(name), SHAPES[name]
    sizes = SIZES if name in ("glm-4.1v", "glm-ocr") else SIZES[1:4]
    agreeing = within([(84, 84), (112, 168), (56, 140)], shape.min_pixels / 2, shape.max_pixels / 2)
    check_family(mmproj(folder), sizes, transformers(folder), agreeing=agreeing, gates=GATES)


@pytest.mark.parity
def test_pictures_that_share_a_run_get_the_rows_of_transformers(checkpoint: Checkpoint) -> None:
    import torch

    folder = checkpoint("glm-4.1v")
    family = Glm4v(mmproj(folder))
    pieces = [family.preprocess(media(noise(w, h)), MediaSettings())[0].pieces[0] for w, h in ((84, 84), (140, 56), (56, 252))]
    with torch.no_grad():
        patches = torch.from_numpy(np.concatenate([p.inputs["patches"] for p in pieces]))
        wanted = model(folder).visual(patches, grid_thw=torch.tensor([p.grid for p in pieces])).pooler_output.numpy()
    assert far(np.concatenate(FamilyHalf(family, Options()).encode(pieces)), wanted) < 1e-5


@pytest.mark.parity
def test_the_two_frames_of_a_patch_meet_their_own_kernels(checkpoint: Checkpoint) -> None:
    folder = checkpoint("glm-ocr")
    check_frames(Glm4v(mmproj(folder)), model(folder).visual, (84, 112))


FAULTS = {
    "glm-4.1v": [
        ("v.blk.0.ln1.weight", "v.blk.1.ln2.weight"),
        ("v.blk.0.ffn_gate.weight", "v.blk.0.ffn_up.weight"),
        ("v.norm_embd.weight", "v.post_ln.weight"),
        ("mm.gate.weight", "mm.up.weight"),
        ("mm.post_norm.bias", "mm.patch_merger.bias"),
    ],
    "glm-ocr": [
        ("v.blk.0.attn_q_norm.weight", "v.blk.0.attn_k_norm.weight"),
        ("v.blk.0.ffn_gate.bias", "v.blk.0.ffn_up.bias"),
        ("v.blk.0.attn_out.bias", "v.blk.0.ffn_down.bias"),
    ],
}


@pytest.mark.parity
@pytest.mark.parametrize(("name", "pair"), [(name, pair) for name, pairs in FAULTS.items() for pair in pairs])
def test_two_weights_in_each_others_place_are_caught(name: str, pair: tuple[str, str], checkpoint: Checkpoint) -> None:
    folder = checkpoint(name)
    check_caught(swapped(mmproj(folder), *pair), transformers(folder), (112, 56))


@pytest.mark.parity
@pytest.mark.parametrize(
    ("name", "value"),
    [("CUBIC", -0.5), ("MERGER_EPS", 1e-2), ("cubic", lambda n, side: np.roll(cubic(n, side), 1, axis=1))],
)
def test_numbers_of_another_make_are_caught(
    name: str, value: object, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = checkpoint("glm-4.1v")
    monkeypatch.setattr(glm4v, name, value)
    check_caught(mmproj(folder), transformers(folder), (112, 56))


@pytest.mark.parity
def test_lines_and_columns_of_the_position_table_in_each_others_place_are_caught(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = Glm4v.tables

    def turned(self: Glm4v, grid: tuple[int, ...]) -> dict[str, Any]:
        made = right(self, grid)
        return {**made, "down": made["across"], "across": made["down"]}

    monkeypatch.setattr(Glm4v, "tables", turned)
    folder = checkpoint("glm-4.1v")
    check_caught(mmproj(folder), transformers(folder), (112, 56))


@pytest.mark.parity
@pytest.mark.parametrize(("n", "side"), [(1, 24), (2, 3), (6, 6), (7, 24), (24, 24), (25, 24), (60, 24), (5, 1), (400, 24)])
def test_shares_are_those_of_grid_sample(n: int, side: int) -> None:
    import torch

    given = np.random.default_rng(n).standard_normal((side, 5)).astype(np.float32)
    at = torch.stack([torch.zeros(n, dtype=torch.float64), (torch.arange(n, dtype=torch.float64) + 0.5) / n * 2 - 1], -1)[
        None, None
    ]
    one_column = torch.from_numpy(given).double().T[None, :, :, None]
    made = torch.nn.functional.grid_sample(one_column, at, "bicubic", "border", align_corners=False)[0, :, 0].T
    np.testing.assert_allclose(cubic(n, side) @ given, made, atol=2e-6)


@pytest.mark.parity
@pytest.mark.parametrize(
    ("low", "high"), [(112 * 112, 28 * 28 * 15000), (112 * 112, 9633792), (2 * 28 * 28 * 16, 2 * 28 * 28 * 30), (2, 1568)]
)
def test_sizes_are_those_of_transformers(low: int, high: int, checkpoint: Checkpoint) -> None:
    from transformers.models.glm4v.image_processing_pil_glm4v import smart_resize

    family = Glm4v(mmproj(checkpoint("glm-4.1v")))
    check_sizes(lambda w, h: family.used(w, h, low // 2, high // 2), lambda w, h: smart_resize(2, h, w, 2, 28, low, high)[::-1])


@pytest.mark.parity
@pytest.mark.parametrize("name", ["glm-4.1v", "glm-4.5v", "glm-4.6v", "glm-ocr"])
def test_positions_are_those_of_transformers(name: str, checkpoint: Checkpoint) -> None:
    folder = checkpoint(name)
    check_rope_index(Glm4v(mmproj(folder)), model(folder))


# what llama.cpp's converter writes for these checkpoints
NAMES = {
    "v.patch_embd.weight", "v.patch_embd.weight.1", "v.patch_embd.bias", "v.post_ln.weight", "mm.patch_merger.weight",
    "mm.patch_merger.bias", "mm.model.fc.weight", "mm.post_norm.weight", "mm.post_norm.bias", "mm.gate.weight",
    "mm.up.weight", "mm.down.weight",
}  # fmt: skip
LAYER = {"ln1.weight", "ln2.weight", "attn_qkv.weight", "attn_out.weight", "ffn_gate.weight", "ffn_up.weight", "ffn_down.weight"}
BIASES = {"attn_qkv.bias", "attn_out.bias", "ffn_gate.bias", "ffn_up.bias", "ffn_down.bias"}
NORMS = {"attn_q_norm.weight", "attn_k_norm.weight"}
OF_OTHERS = {"v.norm_embd.weight", "v.position_embd.weight"}


@pytest.mark.parametrize(
    ("name", "n_layer", "whole", "layer"),
    [
        ("glm-4.1v", 2, NAMES | OF_OTHERS, LAYER),
        ("glm-4.6v-moe", 2, NAMES | OF_OTHERS, LAYER | {"attn_qkv.bias"}),
        ("glm-ocr", 3, NAMES, LAYER | BIASES | NORMS),
        ("glm-ocr-plain", 2, NAMES, LAYER | NORMS),
    ],
)
def test_tensors_have_the_names_of_llama_cpps_converter(
    name: str, n_layer: int, whole: set[str], layer: set[str], checkpoint: Checkpoint
) -> None:
    wanted = whole | {f"v.blk.{i}.{n}" for i in range(n_layer) for n in layer}
    assert set(mmproj(checkpoint(name)).tensors) == wanted


def test_files_of_llama_cpps_converter_load(checkpoint: Checkpoint) -> None:
    """It writes neither the limits of pixels nor the merge size; the class defaults apply."""
    weights = mmproj(checkpoint("tight-budget"))
    plain = {k: v for k, v in weights.metadata.items() if "_pixels" not in k and "merge" not in k}
    half = FamilyHalf(Glm4v(Weights(plain, weights.tensors)), Options())
    (chunk,) = half.preprocess(media(gradient(2000, 1000)), MediaSettings())
    assert chunk.used == (1988, 1008)
    (small,) = half.preprocess(media(gradient(28, 28)), MediaSettings())
    assert small.used == (84, 84)  # at least 6,272 pixels
    assert half.encode(small.pieces)[0].shape == (9, 96)


CONFIG = {  # of GLM-4.1V-9B-Thinking
    "architectures": ["Glm4vForConditionalGeneration"],
    "vision_config": {
        "hidden_size": 1536, "depth": 24, "num_heads": 12, "attention_bias": False, "intermediate_size": 13696,
        "hidden_act": "silu", "image_size": 336, "patch_size": 14, "out_hidden_size": 4096, "rms_norm_eps": 1e-05,
        "spatial_merge_size": 2, "temporal_patch_size": 2,
    },
}  # fmt: skip
PROCESSOR = {"size": {"shortest_edge": 12544, "longest_edge": 9633792}}


@pytest.mark.parametrize("silent", [False, True])
def test_metadata_is_that_of_llama_cpps_converter_and_the_limits_of_one_frame(silent: bool) -> None:
    config = {**CONFIG, "vision_config": {"model_type": "glm4v"}} if silent else CONFIG
    wanted = {
        "has_vision_encoder": True, "projector_type": "glm4v", "use_silu": True, "vision.projection_dim": 4096,
        "vision.image_size": 336, "vision.patch_size": 14, "vision.embedding_length": 1536, "vision.block_count": 24,
        "vision.feed_forward_length": 13696, "vision.attention.head_count": 12, "vision.attention.layer_norm_epsilon": 1e-5,
        "vision.image_mean": [0.48145466, 0.4578275, 0.40821073], "vision.image_std": [0.26862954, 0.26130258, 0.27577711],
        "vision.image_min_pixels": 6272, "vision.image_max_pixels": 4816896, "vision.spatial_merge_size": 2,
    }  # fmt: skip
    assert Glm4v.metadata(config, PROCESSOR) == {f"clip.{k}": v for k, v in wanted.items()}


def test_glm_ocr_has_defaults_of_its_own() -> None:
    config = {"architectures": [GLM_OCR], "vision_config": {}}
    made = Glm4v.metadata(config, {})
    names = ("projection_dim", "embedding_length", "feed_forward_length", "attention.head_count", "image_max_pixels")
    assert [made[f"clip.vision.{n}"] for n in names] == [1536, 1024, 4096, 16, 28 * 28 * 7500]
    assert "visual.blocks.{i}.mlp.up_proj.bias" in Glm4v.table(config)


@pytest.mark.parametrize("convert_half", [convert.mmproj, convert.text])
@pytest.mark.parametrize("vision", [{}, {"vision_config": "none"}])
def test_a_config_without_a_tower_is_refused_by_both_halves(
    convert_half: Callable[[convert.Checkpoint, str], Weights], vision: dict[str, Any], checkpoint: Checkpoint
) -> None:
    read = convert.read_checkpoint(checkpoint("glm-4.1v"))
    without = {k: v for k, v in read.config.items() if k != "vision_config"}
    with pytest.raises(FileError, match="is not that of a Glm4vForConditionalGeneration"):
        convert_half(replace(read, config={**without, **vision}), "f32")


@pytest.mark.parametrize(("name", "value"), [("hidden_act", "gelu"), ("temporal_patch_size", 1), ("in_channels", 1)])
def test_a_tower_of_another_make_is_refused(name: str, value: object) -> None:
    config = {**CONFIG, "vision_config": {**CONFIG["vision_config"], name: value}}
    with pytest.raises(FileError, match=f"{name} {value!r}"):
        Glm4v.metadata(config, {})


def test_a_processor_with_rules_of_its_own_is_refused() -> None:
    with pytest.raises(FileError, match="patch_expand_factor 2"):
        Glm4v.metadata(CONFIG, {"patch_expand_factor": 2})


@pytest.mark.parametrize(
    "missing", ["v.norm_embd.weight", "v.position_embd.weight", "v.blk.1.ln2.weight", "mm.patch_merger.bias"]
)
def test_a_missing_tensor_is_named(missing: str, checkpoint: Checkpoint) -> None:
    check_missing(mmproj(checkpoint("glm-4.1v")), missing)


def test_a_position_table_that_is_no_square_is_refused(checkpoint: Checkpoint) -> None:
    weights = mmproj(checkpoint("glm-4.1v"))
    name = "v.position_embd.weight"
    odd = replace(weights.tensors[name], shape=(35, 64))
    with pytest.raises(FileError, match=f"{name} has 35 rows"):
        FamilyHalf(Glm4v(Weights(weights.metadata, {**weights.tensors, name: odd})), Options())


@pytest.mark.parametrize("name", ["glm-4.1v", "glm-ocr"])
@pytest.mark.parametrize("size", [(84, 84), (196, 56)])
def test_a_static_graph_has_one_input_and_the_same_rows(
    name: str, size: tuple[int, int], checkpoint: Checkpoint, tmp_path: Path
) -> None:
    folder = checkpoint(name)
    path, _ = export.export(folder, tmp_path / "out", sizes=[size])
    half, picture = half_of(mmproj(folder)), media(noise(*size))
    (chunk,) = half.preprocess(picture, MediaSettings())
    assert {name: a.shape for name, a in chunk.pieces[0].inputs.items()} == {"patches": (size[0] * size[1] // 196, 1176)}
    check_graph(path, half, chunk.pieces)
    check_deployed(half.family, half, picture, size)


def test_an_exported_graph_says_how_it_is_fed(checkpoint: Checkpoint) -> None:
    told = Glm4v(mmproj(checkpoint("glm-4.1v"))).explain()
    assert "each line of the table" in told["down"]
    assert "each column of the table" in told["across"]
    assert "down" not in Glm4v(mmproj(checkpoint("glm-ocr"))).explain()


def test_the_layout_puts_a_picture_between_its_tokens(checkpoint: Checkpoint) -> None:
    family = families.for_architecture("Glm4vForConditionalGeneration")(mmproj(checkpoint("glm-4.1v")))
    check_marks(family, "<|begin_of_image|>", "<|end_of_image|>")
