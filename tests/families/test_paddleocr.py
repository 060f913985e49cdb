"""PaddleOCR-VL against transformers and libmtmd, on tiny random checkpoints."""

from __future__ import annotations

import io
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from check import LIBMTMD, Reference, check_caught, check_family, check_marks, check_static, far, rows_of, swapped, within
from checkpoints import Checkpoint, mmproj, of_shapes
from conversations import A, B, prompt_ids
from PIL import Image
from reference import check_limits, check_rope_index, check_sizes, model, reference
from safetensors.numpy import load_file, save_file

import tiny_paddleocr as tiny
import tiny_text
from diptych import convert, families
from diptych.encoder.half import FamilyHalf
from diptych.errors import FileError
from diptych.families import paddleocr
from diptych.families.packed import Packed
from diptych.families.paddleocr import PaddleOCR
from diptych.options import Options
from diptych.prompt import ChatTemplate
from diptych.weights import Weights, open_gguf, write_gguf
from mtmd import Mtmd
from pictures import noise

SHAPES = {
    "usual": tiny.PaddleOCR(),
    "three-layers": tiny.PaddleOCR(seed=1, v_depth=3, v_embd=96, v_head=6, v_eps=1e-5, table=3, hidden=96, n_head=3),
    "wide-head": tiny.PaddleOCR(seed=2, v_embd=144, v_head=2, v_ff=72, table=7, hidden=64),  # 72 a head, as the real one
    "f16": tiny.PaddleOCR(seed=3, dtype="float16", tied=True),
    "tight-budget": tiny.PaddleOCR(seed=4, min_pixels=28 * 28 * 16, max_pixels=28 * 28 * 30),
}
# grids larger and smaller than the table, and both at once; sides below a cell; ties of rounding
SIZES = [(84, 84), (168, 56), (61, 93), (333, 30), (9, 5), (1, 1), (28, 28 * 30), (1500, 1000), (14, 42), (42, 70), (4000, 20)]
checkpoint = of_shapes(tiny.paddleocr, SHAPES)


def pil_processor() -> Any:
    from transformers.models.paddleocr_vl.image_processing_pil_paddleocr_vl import PaddleOCRVLImageProcessorPil

    return PaddleOCRVLImageProcessorPil


def transformers(folder: Path) -> Reference:
    def cells(values: np.ndarray, grid: tuple[int, int, int]) -> np.ndarray:
        _, h, w = grid  # it has them row by row
        return values.reshape(h // 2, 2, w // 2, 2, -1).swapaxes(1, 2).reshape(h * w, -1)

    tower, processor = model(folder).get_image_features, pil_processor().from_pretrained(folder)
    return reference(tower, processor, rows=lambda found: found.pooler_output[0], patches=cells)


@pytest.mark.parity
@pytest.mark.parametrize("name", SHAPES)
def test_the_family_holds_what_every_family_must(name: str, checkpoint: Checkpoint) -> None:
    folder, shape = checkpoint(name), SHAPES[name]
    sizes = SIZES if name == "usual" else SIZES[1:4]
    # libmtmd smooths the position table where the picture has fewer patches a side than it, and its GELU in the
    # projector is the tanh form: that and its f16 tables are what its tolerance is for
    larger = [size for size in ((84, 84), (112, 168), (140, 112)) if min(size) >= shape.table * 14]
    agreeing = within(larger, shape.min_pixels, shape.max_pixels)
    assert agreeing
    check_family(mmproj(folder), sizes, transformers(folder), agreeing=agreeing)


@pytest.mark.parity
@pytest.mark.parametrize(
    "pair",
    [
        ("v.blk.0.attn_q.weight", "v.blk.0.attn_k.weight"),
        ("v.blk.0.ln1.bias", "v.blk.1.ln2.bias"),
        ("v.post_ln.weight", "mm.input_norm.weight"),
    ],
)
def test_two_weights_in_each_others_place_are_caught(pair: tuple[str, str], checkpoint: Checkpoint) -> None:
    folder = checkpoint("usual")
    check_caught(swapped(mmproj(folder), *pair), transformers(folder), (84, 56))


BETWEEN = paddleocr.between


def _turned(grid: tuple[int, ...], side: int) -> tuple[np.ndarray, np.ndarray]:
    taps, shares = BETWEEN(grid[::-1], side)
    return taps.swapaxes(0, 1), shares.swapaxes(0, 1)


@pytest.mark.parity
@pytest.mark.parametrize(
    ("owner", "name", "fault"),
    [
        (paddleocr, "between", _turned),
        (PaddleOCR, "in_merge_order", lambda self, lattice: lattice.reshape(-1, *lattice.shape[2:])),
        (PaddleOCR, "angles", lambda self, grid: np.roll(Packed.angles(self, grid), 4, axis=1)),
    ],
    ids=["rows and columns of the position table", "tables row by row", "rows and columns of the angles"],
)
def test_places_that_are_mixed_up_are_caught(
    owner: object, name: str, fault: object, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, name, staticmethod(fault) if owner is paddleocr else fault)
    folder = checkpoint("usual")
    check_caught(mmproj(folder), transformers(folder), (84, 56))


@pytest.mark.parity
@pytest.mark.parametrize("side", [1, 3, 6, 27])
def test_the_position_table_is_stretched_as_pytorch_does(side: int) -> None:
    import torch
    from transformers.vision_utils import get_vision_interpolation_indices_and_weights

    table = torch.randn(1, 5, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(side))
    for grid in ((2, 2), (2, 60), (27, 27), (26, 30), (14, 100)):
        taps, shares = paddleocr.between(grid, side)
        made = (table[0].flatten(1).T.numpy()[taps] * shares[..., None]).sum(2)
        wanted = torch.nn.functional.interpolate(table, size=grid, mode="bilinear", align_corners=False)[0]
        np.testing.assert_allclose(made, wanted.permute(1, 2, 0).numpy(), rtol=0, atol=1e-5)  # shares are of float32
        theirs, their_shares = get_vision_interpolation_indices_and_weights(torch.tensor([(1, *grid)]), side)
        np.testing.assert_array_equal(taps.reshape(-1, 4), theirs.numpy())
        np.testing.assert_allclose(shares.reshape(-1, 4), their_shares.numpy(), rtol=0, atol=1e-7)


@pytest.mark.parity
def test_libmtmd_differs_where_it_smooths_the_position_table_and_there_alone(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """A picture of 4 × 4 patches over a table of 6 × 6: with the table smoothed beforehand, the two agree."""
    import torch

    weights, picture = mmproj(checkpoint("usual")), noise(56, 56)
    write_gguf(tmp_path / "mmproj.gguf", weights)
    with Mtmd(tmp_path / "mmproj.gguf") as other:
        wanted, _ = other.encode(picture)
    assert far(rows_of(weights, picture), wanted) > 0.02
    tensor = weights.tensors["v.position_embd.weight"]
    table = torch.from_numpy(tensor.float32()).T.reshape(1, -1, 6, 6)
    smooth = torch.nn.functional.interpolate(table, size=(4, 4), mode="bilinear", align_corners=False, antialias=True)
    values = np.ascontiguousarray(smooth.reshape(-1, 16).T.numpy())
    other_table = replace(tensor, shape=values.shape, read=lambda: values, place=None)
    assert far(rows_of(Weights(weights.metadata, {**weights.tensors, tensor.name: other_table}), picture), wanted) < LIBMTMD


@pytest.mark.parity
@pytest.mark.parametrize("size", [(28, 28), (56, 140), (84, 84), (168, 112)])  # smaller and larger than the table
def test_a_static_graph_has_the_position_table_folded_in(size: tuple[int, int], checkpoint: Checkpoint) -> None:
    check_static(mmproj(checkpoint("usual")), size)


def test_exported_graphs_say_in_what_order_patches_come(checkpoint: Checkpoint) -> None:
    said = PaddleOCR(mmproj(checkpoint("usual"))).explain()
    assert (
        "a row is a patch of 14 × 14 pixels, (channel, row, column); the 2 × 2 patches of a cell stand together"
        in said["patches"]
    )
    assert "row by row" in said["patches"].rpartition("(")[2]
    assert set(said) == {"patches", "cos", "sin", "taps", "shares", "spans", "embeddings"}


@pytest.mark.parity
@pytest.mark.parametrize(("low", "high"), [(384 * 384, 1536 * 1536), (28 * 28 * 16, 28 * 28 * 30), (1, 784)])
def test_sizes_are_those_of_transformers(low: int, high: int, checkpoint: Checkpoint) -> None:
    from transformers.models.paddleocr_vl.image_processing_pil_paddleocr_vl import smart_resize

    family = PaddleOCR(mmproj(checkpoint("usual")))
    small = [(a, b) for a in range(1, 32) for b in range(1, 32)]  # one side or both smaller than a cell
    edges = [(20, 4000), (4000, 20), (20, 4001), (4001, 20)]
    check_sizes(lambda w, h: family.used(w, h, low, high), lambda w, h: smart_resize(h, w, 28, low, high)[::-1], [*small, *edges])


@pytest.mark.parity
def test_positions_are_those_of_transformers(checkpoint: Checkpoint) -> None:
    folder = checkpoint("usual")
    check_rope_index(PaddleOCR(mmproj(folder)), model(folder))


TURNS = {
    "text only": [("user", ("the user",))],
    "picture first": [("user", (A, "OCR:"))],
    "picture last": [("user", ("Spotting:", A))],
    "two pictures, several turns": [("system", ("Be brief.",)), ("user", (A, "a", B)), ("assistant", ("12",)), ("user", (A,))],
}


@pytest.mark.parity
@pytest.mark.parametrize("turns", TURNS)
@pytest.mark.parametrize("version", ["1.0", "1.5"])
def test_prompts_are_those_of_the_processor(version: str, turns: str, checkpoint: Checkpoint) -> None:
    from transformers import PaddleOCRVLProcessor, PreTrainedTokenizerFast

    folder, template = checkpoint("usual"), tiny.chat_template(version)
    tokens = tiny_text.tokenizer(tiny.NAME)
    named = {"image_token": "<|IMAGE_PLACEHOLDER|>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokens, eos_token="</s>", extra_special_tokens=named)
    processor = PaddleOCRVLProcessor(pil_processor().from_pretrained(folder), tokenizer, chat_template=template)
    given = TURNS[turns]
    content = [
        {"role": role, "content": [{"type": "text", "text": p} if isinstance(p, str) else {"type": "image"} for p in parts]}
        for role, parts in given
    ]
    pictures = [Image.open(io.BytesIO(p)) for _, parts in given for p in parts if isinstance(p, bytes)]
    written = processor.apply_chat_template(content, tokenize=False, add_generation_prompt=True)
    wanted = processor(text=[written], images=pictures or None, add_special_tokens=False)["input_ids"][0]
    made = prompt_ids(given, ChatTemplate(template, "", "</s>"), tokens, PaddleOCR(mmproj(folder)), "<|IMAGE_PLACEHOLDER|>")
    assert made == wanted


FLAT = {  # config.json as PaddleOCR-VL was published, without what conversion of the tower does not read
    "architectures": ["PaddleOCRVLForConditionalGeneration"], "hidden_size": 1024, "model_type": "paddleocr_vl",
    "rms_norm_eps": 1e-05,
    "vision_config": {
        "architectures": ["PaddleOCRVisionModel"], "attention_dropout": 0.0, "hidden_act": "gelu_pytorch_tanh",
        "hidden_size": 1152, "image_size": 384, "intermediate_size": 4304, "layer_norm_eps": 1e-06,
        "model_type": "paddleocr_vl", "num_attention_heads": 16, "num_channels": 3, "num_hidden_layers": 27, "pad_token_id": 0,
        "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2, "tokens_per_second": 2,
    },
}  # fmt: skip
PROCESSOR = {"min_pixels": 147384, "max_pixels": 2822400, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
# what llama.cpp's converter (llama-cpp-python 0.3.36) writes for these; it leaves out the merge size
LLAMA_CPP = {
    "has_vision_encoder": True, "projector_type": "paddleocr", "use_gelu": True, "vision.projection_dim": 1024,
    "vision.image_size": 1680, "vision.patch_size": 14, "vision.embedding_length": 1152, "vision.feed_forward_length": 4304,
    "vision.block_count": 27, "vision.attention.head_count": 16, "vision.attention.layer_norm_epsilon": 1e-6,
    "vision.image_mean": [0.5, 0.5, 0.5], "vision.image_std": [0.5, 0.5, 0.5], "vision.image_min_pixels": 147384,
    "vision.image_max_pixels": 2822400,
}  # fmt: skip


@pytest.mark.parametrize("nested", [False, True])
def test_metadata_is_that_of_llama_cpps_converter_and_the_merge_size(nested: bool) -> None:
    flat = {k: v for k, v in FLAT.items() if k not in ("hidden_size", "rms_norm_eps")}
    config = {**flat, "text_config": {"hidden_size": 1024, "rms_norm_eps": 1e-5}} if nested else FLAT
    made = PaddleOCR.metadata(config, PROCESSOR)
    assert made == {**{f"clip.{k}": v for k, v in LLAMA_CPP.items()}, "clip.vision.spatial_merge_size": 2}


def test_what_a_config_leaves_out_is_as_in_the_models_class() -> None:
    published = PaddleOCR.metadata(FLAT, PROCESSOR)
    assert PaddleOCR.metadata({"vision_config": {}}, PROCESSOR) == published


@pytest.mark.parity
@pytest.mark.parametrize(
    "settings",
    [
        {"min_pixels": 4000, "max_pixels": 90000},
        {"size": {"shortest_edge": 4000, "longest_edge": 90000}},
        {"size": {"min_pixels": 3000, "max_pixels": 80000}, "min_pixels": 4000, "max_pixels": 90000},
        {},
    ],
)
def test_limits_and_levels_are_read_as_transformers_reads_them(settings: dict) -> None:
    check_limits(PaddleOCR, FLAT, settings, pil_processor())


def test_names_are_those_of_the_gguf_package(checkpoint: Checkpoint) -> None:
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.MMPROJ, 3)
    found = convert.read_checkpoint(checkpoint("three-layers")).tensors
    theirs = set()
    for name in found:
        if name.startswith(("visual.", "mlp_AR.")):
            stem, _, kind = name.replace("visual.", "model.").rpartition(".")
            theirs.add(f"{names.get_name(stem)}.{kind}")
    assert set(mmproj(checkpoint("three-layers")).tensors) == theirs


def test_a_file_of_llama_cpps_converter_gives_the_same_rows(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Its tensors and metadata were compared one by one with ours; what it leaves out is the merge size."""
    weights = mmproj(checkpoint("usual"))
    theirs = {k: v for k, v in weights.metadata.items() if k != "clip.vision.spatial_merge_size"}
    write_gguf(tmp_path / "mmproj.gguf", Weights(theirs, weights.tensors))
    np.testing.assert_array_equal(rows_of(open_gguf(tmp_path / "mmproj.gguf"), noise(61, 93)), rows_of(weights, noise(61, 93)))


def test_tensors_that_the_models_code_does_not_read_are_left_out(checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = tmp_path / "published"
    shutil.copytree(checkpoint("usual"), folder)
    tensors = load_file(folder / "model.safetensors")
    front = "visual.vision_model"
    more = ("embeddings.packing_position_embedding.weight", "head.probe", "head.attention.in_proj_weight", "head.mlp.fc1.bias")
    save_file({**tensors, **{f"{front}.{name}": np.ones((4, 4), np.float32) for name in more}}, folder / "model.safetensors")
    assert set(mmproj(folder).tensors) == set(mmproj(checkpoint("usual")).tensors)
    save_file({**tensors, f"{front}.other.weight": np.ones((4, 4), np.float32)}, folder / "model.safetensors")
    with pytest.raises(FileError, match=r"visual\.vision_model\.other\.weight"):
        mmproj(folder)


@pytest.mark.parametrize(
    ("name", "value"), [("hidden_act", "gelu"), ("num_channels", 1), ("rope_parameters", {"rope_theta": 1e6})]
)
def test_a_tower_of_another_make_is_refused(name: str, value: object) -> None:
    config = {**FLAT, "vision_config": {**FLAT["vision_config"], name: value}}
    with pytest.raises(FileError, match=r"vision_config has (hidden_act|num_channels|rope_theta).*PaddleOCR-VL's encoder needs"):
        PaddleOCR.metadata(config, PROCESSOR)


@pytest.mark.parametrize("n_rows", [0, 35])
def test_a_position_table_that_is_not_square_is_refused(n_rows: int, checkpoint: Checkpoint) -> None:
    weights = mmproj(checkpoint("usual"))
    table = weights.tensors["v.position_embd.weight"]
    tensors = {k: v for k, v in weights.tensors.items() if v is not table}
    if n_rows:
        values = table.float32()[:n_rows]
        tensors[table.name] = replace(table, shape=values.shape, read=lambda: values, place=None)
    with pytest.raises(FileError, match=rf"v\.position_embd\.weight has {n_rows} rows.*square.*convert the model again"):
        FamilyHalf(PaddleOCR(Weights(weights.metadata, tensors)), Options())


def test_the_layout_puts_a_picture_between_its_tokens(checkpoint: Checkpoint) -> None:
    family = families.for_architecture("PaddleOCRVLForConditionalGeneration")(mmproj(checkpoint("usual")))
    check_marks(family, "<|IMAGE_START|>", "<|IMAGE_END|>")
