"""Qwen2-VL against transformers and libmtmd, on tiny random checkpoints."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from check import (
    check_caught,
    check_family,
    check_marks,
    check_missing,
    check_precisions,
    far,
    half_of,
    media,
    rows_of,
    swapped,
    within,
)
from checkpoints import Checkpoint, mmproj, of_shapes
from reference import check_frames, check_limits, check_rope_index, check_sizes, model, processor_class, transformers

import tiny
from diptych import families
from diptych.errors import FileError, InputError
from diptych.families.packed import fit
from diptych.families.qwen2vl import Qwen2VL
from diptych.types import MediaSettings
from diptych.weights import Weights
from pictures import gradient, noise

SHAPES = {
    "usual": tiny.Qwen2VL(),
    "three-layers": tiny.Qwen2VL(seed=1, v_depth=3, v_embd=96, v_head=6, hidden=96, n_head=6, n_head_kv=3, sections=(4, 2, 2)),
    "wide-head": tiny.Qwen2VL(seed=2, v_embd=160, v_head=2, v_mlp_ratio=2, hidden=64),  # 80 a head, as the real one
    "f16": tiny.Qwen2VL(seed=3, dtype="float16"),
    "tight-budget": tiny.Qwen2VL(seed=4, min_pixels=28 * 28 * 16, max_pixels=28 * 28 * 30),
}
SIZES = [(84, 84), (112, 56), (61, 93), (333, 30), (9, 5), (1, 1), (28, 28 * 60), (1500, 1000), (14, 42), (42, 70), (4000, 20)]
checkpoint = of_shapes(tiny.qwen2vl, SHAPES)


@pytest.mark.parity
@pytest.mark.parametrize("name", SHAPES)
def test_the_family_holds_what_every_family_must(name: str, checkpoint: Checkpoint) -> None:
    folder, shape = checkpoint(name), SHAPES[name]
    agreeing = within([(84, 84), (112, 168), (56, 140)], shape.min_pixels, shape.max_pixels)
    check_family(mmproj(folder), SIZES if name == "usual" else SIZES[1:4], transformers(folder), agreeing=agreeing)


@pytest.mark.parity
@pytest.mark.parametrize("pair", [("v.blk.0.attn_q.weight", "v.blk.0.attn_k.weight"), ("v.blk.0.ln1.bias", "v.blk.1.ln2.bias")])
def test_two_weights_in_each_others_place_are_caught(pair: tuple[str, str], checkpoint: Checkpoint) -> None:
    folder = checkpoint("usual")
    check_caught(swapped(mmproj(folder), *pair), transformers(folder), (84, 56))


@pytest.mark.parity
def test_rows_and_columns_of_patches_in_each_others_place_are_caught(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = Qwen2VL.angles
    monkeypatch.setattr(Qwen2VL, "angles", lambda self, grid: np.roll(right(self, grid), 4, axis=1))
    folder = checkpoint("usual")
    check_caught(mmproj(folder), transformers(folder), (84, 56))


@pytest.mark.parity
def test_the_two_frames_of_a_patch_meet_their_own_kernels(checkpoint: Checkpoint) -> None:
    folder = checkpoint("usual")
    check_frames(Qwen2VL(mmproj(folder)), model(folder).visual, (84, 56))


@pytest.mark.parity
def test_positions_are_those_of_transformers(checkpoint: Checkpoint) -> None:
    folder = checkpoint("usual")
    check_rope_index(Qwen2VL(mmproj(folder)), model(folder))


@pytest.mark.parity
@pytest.mark.parametrize(("low", "high"), [(3136, 1003520), (28 * 28 * 16, 28 * 28 * 30), (1, 784)])
def test_sizes_are_those_of_transformers(low: int, high: int) -> None:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    check_sizes(lambda w, h: fit(w, h, 28, low, high), lambda w, h: smart_resize(h, w, 28, low, high)[::-1])


def test_pixel_limits_of_a_request_go_before_those_of_the_file(checkpoint: Checkpoint) -> None:
    family = Qwen2VL(mmproj(checkpoint("tight-budget")))
    picture = media(gradient(600, 400))
    asked = (MediaSettings(), MediaSettings(max_pixels=10**6), MediaSettings(max_pixels=7000))
    assert [family.preprocess(picture, settings)[0].used for settings in asked] == [(168, 112), (588, 392), (84, 56)]


def test_without_limits_in_the_file_those_of_the_processor_apply(checkpoint: Checkpoint) -> None:
    weights = mmproj(checkpoint("tight-budget"))
    plain = {k: v for k, v in weights.metadata.items() if "_pixels" not in k and "merge" not in k}  # as llama.cpp writes them
    (chunk,) = Qwen2VL(Weights(plain, weights.tensors)).preprocess(media(gradient(2000, 1000)), MediaSettings())
    assert chunk.used == (1400, 700)
    assert (chunk.grid.h, chunk.grid.w, chunk.n_tokens) == (25, 50, 1250)


def test_files_of_old_converters_load(checkpoint: Checkpoint) -> None:
    """Up and down of the MLP under each other's names, or q, k and v in one tensor, give the same rows."""
    weights, picture = mmproj(checkpoint("usual")), noise(84, 56)
    wanted = rows_of(weights, picture)
    for layer in range(2):
        for kind in ("weight", "bias"):
            weights = swapped(weights, f"v.blk.{layer}.ffn_up.{kind}", f"v.blk.{layer}.ffn_down.{kind}")
    np.testing.assert_array_equal(rows_of(weights, picture), wanted)
    assert far(rows_of(fused(weights), picture), wanted) < 1e-5


def fused(weights: Weights) -> Weights:
    tensors = dict(weights.tensors)
    for layer in range(2):
        for kind in ("weight", "bias"):
            parts = [tensors.pop(f"v.blk.{layer}.attn_{n}.{kind}") for n in "qkv"]
            whole = np.concatenate([p.read() for p in parts])
            name = f"v.blk.{layer}.attn_qkv.{kind}"
            tensors[name] = replace(parts[0], name=name, shape=whole.shape, read=lambda whole=whole: whole, place=None)
    return Weights(weights.metadata, tensors)


FLAT = {  # config.json as Qwen2-VL was published
    "architectures": ["Qwen2VLForConditionalGeneration"], "hidden_size": 1536, "model_type": "qwen2_vl", "rms_norm_eps": 1e-05,
    "vision_config": {
        "depth": 32, "embed_dim": 1280, "mlp_ratio": 4, "num_heads": 16, "in_chans": 3, "hidden_size": 1536, "patch_size": 14,
        "spatial_merge_size": 2, "spatial_patch_size": 14, "temporal_patch_size": 2,
    },
}  # fmt: skip


@pytest.mark.parametrize("nested", [False, True])
def test_metadata_is_read_from_both_styles_of_config(nested: bool) -> None:
    flat = {k: v for k, v in FLAT.items() if k not in ("hidden_size", "rms_norm_eps")}
    config = {**flat, "text_config": {"hidden_size": 1536, "rms_norm_eps": 1e-5}} if nested else FLAT
    made = Qwen2VL.metadata(config, {"min_pixels": 3136, "max_pixels": 12845056})
    wanted = {
        "projector_type": "qwen2vl_merger", "vision.projection_dim": 1536, "vision.embedding_length": 1280,
        "vision.feed_forward_length": 5120, "vision.block_count": 32, "vision.attention.head_count": 16,
        "vision.patch_size": 14, "vision.image_min_pixels": 3136, "vision.image_max_pixels": 12845056,
        "vision.attention.layer_norm_epsilon": 1e-6,
    }  # fmt: skip
    assert {k: made[f"clip.{k}"] for k in wanted} == wanted


@pytest.mark.parity
@pytest.mark.parametrize(
    "settings",
    [
        {"min_pixels": 4000, "max_pixels": 90000},
        {"size": {"shortest_edge": 4000, "longest_edge": 90000}},
        {"size": {"shortest_edge": 4000, "longest_edge": 90000}, "max_pixels": 50000},
        {},
    ],
)
def test_pixel_limits_are_read_as_transformers_reads_them(settings: dict) -> None:
    check_limits(Qwen2VL, FLAT, settings, processor_class())


@pytest.mark.parametrize(("name", "value"), [("hidden_act", "gelu"), ("temporal_patch_size", 1), ("in_chans", 1)])
def test_a_tower_of_another_make_is_refused(name: str, value: object) -> None:
    config = {**FLAT, "vision_config": {**FLAT["vision_config"], name: value}}
    with pytest.raises(FileError, match=f"{name} {value!r}"):
        Qwen2VL.metadata(config, {})


def test_a_missing_tensor_is_named(checkpoint: Checkpoint) -> None:
    check_missing(mmproj(checkpoint("usual")), "v.blk.1.ln2.weight")


def test_the_layout_puts_a_picture_between_its_tokens(checkpoint: Checkpoint) -> None:
    family = families.for_architecture("Qwen2VLForConditionalGeneration")(mmproj(checkpoint("usual")))
    check_marks(family, "<|vision_start|>", "<|vision_end|>")


def test_limits_that_exclude_each_other_are_refused(checkpoint: Checkpoint) -> None:
    family = families.for_architecture("Qwen2VLForConditionalGeneration")(mmproj(checkpoint("usual")))
    with pytest.raises(InputError, match="min_pixels is 9000, more than max_pixels, 8000"):
        family.preprocess(media(gradient(56, 56)), MediaSettings(min_pixels=9000, max_pixels=8000))


def test_arithmetic_that_is_too_coarse_breaks_its_gate(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers of 4 bits in the place of 8."""
    monkeypatch.setattr("diptych.graph.int8._MOST", 7)
    half = half_of(mmproj(checkpoint("usual")))
    with pytest.raises(AssertionError, match="'int8'"):
        check_precisions(half, half.preprocess(media(noise(84, 56)), MediaSettings()))
    half.close()
