"""Qwen2.5-VL against transformers and libmtmd, on tiny random checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from check import LIBMTMD, check_caught, check_family, check_missing, check_static, far, media, rows_of, swapped
from checkpoints import Checkpoint, mmproj, of_shapes
from reference import check_frames, check_rope_index, model, transformers

from diptych import families
from diptych.errors import FileError
from diptych.families.packed import Packed
from diptych.families.qwen25vl import Qwen25VL
from diptych.types import MediaSettings
from diptych.weights import Weights, open_gguf, write_gguf
from pictures import noise
from tiny_qwen25 import Qwen25VL as Shape
from tiny_qwen25 import qwen25vl

SHAPES = {
    "small-windows": Shape(),
    "usual-windows": Shape(seed=1, window=112),
    "wide-head": Shape(seed=2, v_embd=160, v_head=2, v_depth=6, v_ff=72, hidden=64, window=112, full=(2, 5)),  # 80 a head
    "odd-windows": Shape(seed=3, v_embd=96, v_head=6, v_depth=3, full=(2,), window=100, hidden=96, n_head=6, n_head_kv=3),
    "f16": Shape(seed=4, dtype="float16", window=112),
    "uneven": Shape(seed=5, v_depth=5, full=(0, 2, 3)),
    "windows-alone": Shape(seed=6, v_depth=2, full=(), window=112),
    "no-windows": Shape(seed=7, v_depth=2, full=(0, 1), window=112),
    "tiny-pictures": Shape(seed=8, window=112, min_pixels=28 * 28, max_pixels=28 * 28 * 30),
}
# windows smaller at both edges, at one, whole ones alone, one column of cells, one row, the least there is, many
SIZES = [(84, 140), (112, 84), (112, 56), (28, 28 * 13), (333, 30), (1, 1), (420, 364)]
SMALL = [(28, 28), (84, 56), (56, 140), (300, 300)]  # within one window; the last is beyond the budget
checkpoint = of_shapes(qwen25vl, SHAPES)


@pytest.mark.parity
@pytest.mark.parametrize("name", SHAPES)
def test_the_family_holds_what_every_family_must(name: str, checkpoint: Checkpoint) -> None:
    folder, shape = checkpoint(name), SHAPES[name]
    sizes = SMALL if name == "tiny-pictures" else SIZES if name in ("small-windows", "usual-windows") else SIZES[:5]
    knows = shape.window == 112  # llama.cpp knows no other
    same = [(112, 112), (364, 308), (56, 140)] if knows and name != "tiny-pictures" else []
    check_family(mmproj(folder), sizes, transformers(folder), agreeing=same)


@pytest.mark.parity
@pytest.mark.parametrize("name", ["small-windows", "usual-windows", "windows-alone", "no-windows"])
@pytest.mark.parametrize("size", [(84, 140), (224, 112), (28, 140)])
def test_a_static_graph_has_the_windows_folded_in(name: str, size: tuple[int, int], checkpoint: Checkpoint) -> None:
    check_static(mmproj(checkpoint(name)), size)


@pytest.mark.parity
@pytest.mark.parametrize("window", [28, 56, 100, 112, 140])
def test_windows_are_those_of_transformers(window: int, checkpoint: Checkpoint) -> None:
    import torch
    from transformers.vision_utils import get_vision_window_index

    weights = mmproj(checkpoint("small-windows"))
    family = Qwen25VL(Weights({**weights.metadata, "clip.vision.window_size": window}, weights.tensors))
    rng = np.random.default_rng(window)
    for h, w in [(1, 1), (1, 9), (9, 1), (8, 8), (37, 37), *rng.integers(1, 40, (20, 2)).tolist()]:
        grid = 1, 2 * h, 2 * w
        index, ends = get_vision_window_index(torch.tensor([grid]), 2, window, 14)
        wanted = {frozenset(index[a // 4 : b // 4].tolist()) for a, b in pairwise(ends.tolist())}
        found = family.windows(grid)
        assert {frozenset(cells.tolist()) for cells in found} == wanted
        assert len(found) == len(wanted)
        assert all((np.diff(cells) > 0).all() for cells in found)
        assert sorted(map(len, found), reverse=True) == list(map(len, found))


def test_attention_within_windows_costs_patches_times_window(checkpoint: Checkpoint) -> None:
    family = Qwen25VL(mmproj(checkpoint("usual-windows")))
    wide = MediaSettings(min_pixels=1, max_pixels=10**7)
    pieces = [family.preprocess(media(noise(w, h)), wide)[0].pieces[0] for w, h in ((1036, 1036), (56, 56))]
    fed = family.feed(pieces)
    # 9 × 9 windows of 8 × 8 patches, 18 along two edges, the corner; then one that holds the whole small picture
    assert fed["windows"].tolist() == [[81, 64], [18, 16], [1, 4], [1, 16]]
    assert fed["spans"].tolist() == [[1, 74 * 74], [1, 16]]
    counts, lengths = fed["windows"].T
    assert (counts * lengths).sum() == len(fed["patches"])
    assert (counts * lengths**2).sum() < (fed["spans"][:, 1] ** 2).sum() / 80


@pytest.mark.parity
@pytest.mark.parametrize(
    "pair", [("v.blk.0.ffn_gate.weight", "v.blk.0.ffn_up.weight"), ("v.blk.1.ln1.weight", "v.blk.1.ln2.weight")]
)
def test_two_weights_in_each_others_place_are_caught(pair: tuple[str, str], checkpoint: Checkpoint) -> None:
    folder = checkpoint("small-windows")
    check_caught(swapped(mmproj(folder), *pair), transformers(folder), (84, 140))


WINDOWS, FEED = Qwen25VL.windows, Qwen25VL.feed


def other_cells(family: Qwen25VL, grid: tuple[int, ...]) -> list[np.ndarray]:
    return np.split(np.sort(np.concatenate(WINDOWS(family, grid))), np.cumsum([len(c) for c in WINDOWS(family, grid)])[:-1])


def fed_with(change: Callable[..., dict[str, np.ndarray]]) -> Callable[..., Any]:
    return lambda family, pieces: (fed := FEED(family, pieces)) | change(fed, Packed.feed(family, pieces))


FAULTS: dict[str, tuple[str, Callable[..., Any]]] = {
    "windows of other cells": ("windows", other_cells),
    "rows not put back": ("feed", fed_with(lambda fed, plain: {"restore": np.sort(fed["restore"])})),
    "rows put back the wrong way": ("feed", fed_with(lambda fed, plain: {"restore": fed["order"]})),
    "angles in the picture's order": ("feed", fed_with(lambda fed, plain: {"cos": plain["cos"], "sin": plain["sin"]})),
    "windows in layers that see all": ("full", lambda family, layer: False),
    "layers that see all moved by one": ("full", lambda family, layer: layer % 2 == 0),
}


@pytest.mark.parity
@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_window_order_is_caught(fault: str, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = checkpoint("small-windows")
    weights, wanted = mmproj(folder), transformers(folder)
    check_family(weights, [(140, 112)], wanted)
    monkeypatch.setattr(Qwen25VL, *FAULTS[fault])
    check_caught(weights, wanted, (140, 112))


@pytest.mark.parity
def test_the_two_frames_of_a_patch_meet_their_own_kernels(checkpoint: Checkpoint) -> None:
    folder = checkpoint("usual-windows")
    check_frames(Qwen25VL(mmproj(folder)), model(folder).visual, (84, 140))


@pytest.mark.parity
def test_positions_are_those_of_transformers(checkpoint: Checkpoint) -> None:
    folder = checkpoint("usual-windows")
    check_rope_index(Qwen25VL(mmproj(folder)), model(folder))


# All clip.* metadata that llama.cpp's converter (llama-cpp-python 0.3.36) wrote for the "usual-windows" checkpoint. Its
# tensors were ours by name, shape and value.
CONVERTED = {
    "general.architecture": "clip", "clip.has_vision_encoder": True, "clip.projector_type": "qwen2.5vl_merger",
    "clip.use_silu": True, "clip.vision.projection_dim": 128, "clip.vision.image_size": 560, "clip.vision.patch_size": 14,
    "clip.vision.embedding_length": 64, "clip.vision.feed_forward_length": 100, "clip.vision.block_count": 4,
    "clip.vision.attention.head_count": 4, "clip.vision.attention.layer_norm_epsilon": 1e-6, "clip.vision.n_wa_pattern": 2,
    "clip.vision.image_mean": [0.48145466, 0.4578275, 0.40821073], "clip.vision.image_std": [0.26862954, 0.26130258, 0.27577711],
}  # fmt: skip
BLOCK = ("attn_q", "attn_k", "attn_v", "attn_out", "ffn_gate", "ffn_up", "ffn_down")


def test_a_file_of_llama_cpps_converter_gives_the_same_rows(checkpoint: Checkpoint, tmp_path: Path) -> None:
    weights = mmproj(checkpoint("usual-windows"))
    assert {k: weights.metadata[k] for k in CONVERTED} == CONVERTED
    added = {"image_min_pixels", "image_max_pixels", "spatial_merge_size", "window_size"}
    assert {k for k in weights.metadata if k.startswith("clip.")} - CONVERTED.keys() == {f"clip.vision.{k}" for k in added}
    linear = [f"v.blk.{i}.{n}" for i in range(4) for n in BLOCK] + ["mm.0", "mm.2"]
    norms = [f"v.blk.{i}.ln{k}.weight" for i in range(4) for k in (1, 2)] + ["v.post_ln.weight"]
    names = {f"{n}.{kind}" for n in linear for kind in ("weight", "bias")}
    assert weights.tensors.keys() == names | {*norms, "v.patch_embd.weight", "v.patch_embd.weight.1"}
    write_gguf(tmp_path / "theirs.gguf", Weights(CONVERTED, weights.tensors))
    theirs = open_gguf(tmp_path / "theirs.gguf")
    assert families.for_projector(theirs.metadata["clip.projector_type"]) is Qwen25VL
    np.testing.assert_array_equal(rows_of(theirs, noise(364, 308)), rows_of(weights, noise(364, 308)))


@pytest.mark.parametrize(
    ("full", "n_layer", "wanted"),
    [
        ([7, 15, 23, 31], 32, {"n_wa_pattern": 8}),
        ((31, 23, 15, 7), 32, {"n_wa_pattern": 8}),
        ([7, 15, 23, 31], 16, {"n_wa_pattern": 8}),  # indexes beyond the layers name none
        ([7, 15, 23, 31], 4, {"n_wa_pattern": 5}),  # none at all
        ([3], 4, {"n_wa_pattern": 4}),
        ([0, 1, 2], 3, {"n_wa_pattern": 0}),
        ([], 2, {"n_wa_pattern": 3}),
        ([7], 32, {"wa_layer_indexes": [7]}),  # every eighth would be four
        ([7, 15, 22, 31], 32, {"wa_layer_indexes": [7, 15, 22, 31]}),
        ([6, 14, 22, 30], 32, {"wa_layer_indexes": [6, 14, 22, 30]}),
        ([0, 2, 3], 5, {"wa_layer_indexes": [0, 2, 3]}),
    ],
)
def test_the_layers_that_see_the_whole_picture_are_kept(
    full: list[int], n_layer: int, wanted: dict[str, Any], checkpoint: Checkpoint, tmp_path: Path
) -> None:
    vision = {**CONFIG["vision_config"], "depth": n_layer, "fullatt_block_indexes": full}
    made = Qwen25VL.metadata({"vision_config": vision}, {})
    assert {k.rpartition(".")[2]: v for k, v in made.items() if "wa_" in k} == wanted
    write_gguf(tmp_path / "a.gguf", Weights({"general.architecture": "clip", **made}, {}))
    family = families.open_family(tmp_path / "a.gguf")
    assert isinstance(family, Qwen25VL)
    assert [i for i in range(n_layer) if family.full(i)] == sorted(i for i in full if i < n_layer)


@pytest.mark.parity
def test_libmtmd_refuses_layers_that_it_would_get_wrong(checkpoint: Checkpoint, tmp_path: Path) -> None:
    from mtmd import Mtmd

    write_gguf(tmp_path / "uneven.gguf", mmproj(checkpoint("uneven")))
    with pytest.raises(RuntimeError, match="n_wa_pattern"):
        Mtmd(tmp_path / "uneven.gguf")


@pytest.mark.parity
def test_only_usual_windows_are_libmtmds(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """It takes 112 pixels whatever the file says: with other windows the two must differ, and do."""
    from mtmd import Mtmd

    weights = mmproj(checkpoint("small-windows"))
    write_gguf(tmp_path / "small.gguf", weights)
    with Mtmd(tmp_path / "small.gguf", n_threads=1) as other:
        theirs, _ = other.encode(noise(112, 112))
    assert far(rows_of(weights, noise(112, 112)), theirs) > 10 * LIBMTMD
    as_there = Weights({**weights.metadata, "clip.vision.window_size": 112}, weights.tensors)
    assert far(rows_of(as_there, noise(112, 112)), theirs) < LIBMTMD


CONFIG: dict[str, Any] = {  # config.json as Qwen2.5-VL-3B was published, the text half's part left out
    "architectures": ["Qwen2_5_VLForConditionalGeneration"], "hidden_size": 2048, "model_type": "qwen2_5_vl",
    "vision_config": {
        "depth": 32, "hidden_act": "silu", "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "in_chans": 3,
        "out_hidden_size": 2048, "patch_size": 14, "spatial_merge_size": 2, "spatial_patch_size": 14, "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31], "tokens_per_second": 2, "temporal_patch_size": 2,
    },
}  # fmt: skip


def test_metadata_is_read_from_a_published_config() -> None:
    made = Qwen25VL.metadata(CONFIG, {"min_pixels": 3136, "max_pixels": 12845056})
    wanted = {
        "projector_type": "qwen2.5vl_merger", "use_silu": True, "vision.projection_dim": 2048, "vision.embedding_length": 1280,
        "vision.feed_forward_length": 3420, "vision.block_count": 32, "vision.attention.head_count": 16, "vision.patch_size": 14,
        "vision.spatial_merge_size": 2, "vision.window_size": 112, "vision.n_wa_pattern": 8, "vision.image_min_pixels": 3136,
        "vision.image_max_pixels": 12845056, "vision.attention.layer_norm_epsilon": 1e-6,
    }  # fmt: skip
    assert {k: made[f"clip.{k}"] for k in wanted} == wanted


@pytest.mark.parity
def test_what_a_config_leaves_out_is_as_in_transformers() -> None:
    from transformers import Qwen2_5_VLConfig

    full = Qwen2_5_VLConfig().vision_config.to_dict()
    assert Qwen25VL.metadata({"vision_config": {}}, {}) == Qwen25VL.metadata({"vision_config": full}, {})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("hidden_act", "gelu", "hidden_act 'gelu'"),
        ("temporal_patch_size", 1, "temporal_patch_size 1"),
        ("in_chans", 1, "in_chans 1"),
        ("window_size", 27, "windows are 27 pixels a side and cells 28"),
    ],
)
def test_a_tower_of_another_make_is_refused(name: str, value: object, message: str) -> None:
    config = {**CONFIG, "vision_config": {**CONFIG["vision_config"], name: value}}
    with pytest.raises(FileError, match=message):
        Qwen25VL.metadata(config, {})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("n_wa_pattern", ..., r"has nothing for clip\.vision\.n_wa_pattern, and a whole number"),
        ("n_wa_pattern", "8", r"has '8' for clip\.vision\.n_wa_pattern"),
        ("n_wa_pattern", np.int32(-1), r"clip\.vision\.n_wa_pattern"),
        ("window_size", 0.5, r"has 0\.5 for clip\.vision\.window_size"),
        ("window_size", 0, "windows are 0 pixels a side and cells 28"),
        ("patch_size", 0, "lacks clip.vision.patch_size"),
    ],
)
def test_a_file_that_does_not_say_its_windows_is_refused(name: str, value: object, message: str, checkpoint: Checkpoint) -> None:
    weights = mmproj(checkpoint("usual-windows"))
    metadata = {**weights.metadata, f"clip.vision.{name}": value}
    metadata = {k: v for k, v in metadata.items() if v is not ...}
    with pytest.raises(FileError, match=message):
        Qwen25VL(Weights(metadata, weights.tensors))


def test_without_a_rhythm_of_layers_all_of_them_see_the_whole_picture(checkpoint: Checkpoint) -> None:
    weights = mmproj(checkpoint("usual-windows"))
    for n in (0, 1):
        family = Qwen25VL(Weights({**weights.metadata, "clip.vision.n_wa_pattern": n}, weights.tensors))
        assert all(family.full(i) for i in range(4))


def test_a_missing_tensor_is_named(checkpoint: Checkpoint) -> None:
    check_missing(mmproj(checkpoint("usual-windows")), "v.blk.1.ffn_gate.weight")


def test_the_inputs_of_an_exported_graph_are_explained(checkpoint: Checkpoint) -> None:
    explained = Qwen25VL(mmproj(checkpoint("usual-windows"))).explain()
    assert set(explained) == {"patches", "cos", "sin", "spans", "windows", "order", "restore", "embeddings"}
    assert "windows of 4 × 4 cells" in explained["order"]
