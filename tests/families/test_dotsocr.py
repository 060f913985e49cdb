"""dots.ocr against libmtmd on the same file, and against the blocks of transformers that its own code shares.

Its code comes with the checkpoint and is no part of transformers. What transformers has is the tower of its successor,
dots3-note, which is the same but for norms of queries and keys and layers with experts: `tiny.tower` leaves these out. The
blocks alone are also Qwen2.5-VL's with windows and biases left out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from check import (
    TRANSFORMERS,
    Reference,
    check_caught,
    check_family,
    check_marks,
    check_missing,
    check_static,
    far,
    media,
    swapped,
    within,
)
from checkpoints import Checkpoint, mmproj, of_shapes
from conversations import A, B, prompt_ids
from reference import check_limits, processor, processor_class, reference

import tiny_dotsocr as tiny
from diptych import convert, families
from diptych.encoder.half import FamilyHalf
from diptych.errors import FileError
from diptych.families.dotsocr import DotsOCR
from diptych.families.packed import Packed
from diptych.options import Options
from diptych.prompt import ChatTemplate
from diptych.types import MediaSettings
from pictures import noise

SHAPES = {
    "usual": tiny.DotsOCR(),
    "three-layers": tiny.DotsOCR(seed=1, v_depth=3, v_embd=96, v_head=6, v_eps=1e-3, hidden=96),
    "wide-head": tiny.DotsOCR(seed=2, v_embd=256, v_head=2, v_ff=72, hidden=64),  # 128 a head, as the real one
    "f16": tiny.DotsOCR(seed=3, dtype="float16"),
    "tight-budget": tiny.DotsOCR(seed=4, min_pixels=28 * 28 * 16, max_pixels=28 * 28 * 30),
}
SIZES = [(84, 84), (112, 56), (61, 93), (333, 30), (9, 5), (1, 1), (28, 28 * 30), (1500, 1000), (14, 42), (42, 70), (4000, 20)]
checkpoint = of_shapes(tiny.dotsocr, SHAPES)


def transformers(folder: Path) -> Reference:
    return reference(tiny.tower(folder), processor(folder))


@pytest.mark.parity
@pytest.mark.parametrize("name", SHAPES)
def test_the_family_holds_what_every_family_must(name: str, checkpoint: Checkpoint) -> None:
    folder, shape = checkpoint(name), SHAPES[name]
    agreeing = within([(84, 84), (112, 168), (56, 140)], shape.min_pixels, shape.max_pixels)
    check_family(mmproj(folder), SIZES if name == "usual" else SIZES[1:4], transformers(folder), agreeing=agreeing)


@pytest.mark.parity
@pytest.mark.parametrize("name", ["usual", "wide-head"])
def test_the_blocks_are_those_of_qwen25vl_without_windows_and_biases(name: str, checkpoint: Checkpoint) -> None:
    """The patches' kernel, the norm behind the blocks and the merger are of `tiny.tower` here; Qwen2.5-VL has others."""
    import torch
    from transformers import Qwen2_5_VLConfig
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel

    folder, shape = checkpoint(name), SHAPES[name]
    around = tiny.tower(folder)
    vision = {
        "depth": shape.v_depth, "hidden_size": shape.v_embd, "num_heads": shape.v_head, "intermediate_size": shape.v_ff,
        "out_hidden_size": shape.hidden, "fullatt_block_indexes": list(range(shape.v_depth)),
    }  # fmt: skip
    model = Qwen2_5_VisionTransformerPretrainedModel._from_config(Qwen2_5_VLConfig(vision_config=vision).vision_config).eval()
    model.patch_embed, model.merger = around.patch_embed, torch.nn.Sequential(around.norm, around.merger)
    weights = around.blocks.state_dict()
    biases = {n: torch.zeros_like(p) for n, p in model.blocks.state_dict().items() if n.endswith("bias")}
    model.blocks.load_state_dict({**weights, **biases})
    for block in model.blocks:
        block.norm1.variance_epsilon = block.norm2.variance_epsilon = shape.v_eps
    half = FamilyHalf(DotsOCR(mmproj(folder)), Options())
    for width, height in ((84, 84), (140, 56), (28, 308)):
        (chunk,) = half.preprocess(media(noise(width, height)), MediaSettings())
        (piece,) = chunk.pieces
        with torch.no_grad():
            wanted = model(torch.from_numpy(piece.inputs["patches"]), grid_thw=torch.tensor([piece.grid])).pooler_output.numpy()
        assert far(half.encode([piece])[0], wanted) < TRANSFORMERS


@pytest.mark.parity
@pytest.mark.parametrize(
    "pair",
    [
        ("v.blk.0.ffn_up.weight", "v.blk.0.ffn_gate.weight"),
        ("v.blk.0.ln1.weight", "v.blk.1.ln2.weight"),
        ("v.pre_ln.weight", "mm.post_norm.weight"),
    ],
)
def test_two_weights_in_each_others_place_are_caught(pair: tuple[str, str], checkpoint: Checkpoint) -> None:
    folder = checkpoint("usual")
    check_caught(swapped(mmproj(folder), *pair), transformers(folder), (84, 56))


@pytest.mark.parity
@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("in_merge_order", lambda self, lattice: lattice.reshape(-1, *lattice.shape[2:])),
        ("angles", lambda self, grid: np.roll(Packed.angles(self, grid), 4, axis=1)),
    ],
    ids=["angles row by row", "rows and columns of the angles"],
)
def test_places_that_are_mixed_up_are_caught(
    name: str, fault: object, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DotsOCR, name, fault)
    folder = checkpoint("usual")
    check_caught(mmproj(folder), transformers(folder), (84, 56))


@pytest.mark.parity
@pytest.mark.parametrize("size", [(28, 28), (56, 140), (168, 112)])
def test_a_static_graph_gives_the_encoders_rows(size: tuple[int, int], checkpoint: Checkpoint) -> None:
    check_static(mmproj(checkpoint("usual")), size)


def test_exported_graphs_say_in_what_order_patches_come(checkpoint: Checkpoint) -> None:
    said = DotsOCR(mmproj(checkpoint("usual"))).explain()
    assert (
        "a row is a patch of 14 × 14 pixels, (channel, row, column); the 2 × 2 patches of a cell stand together"
        in said["patches"]
    )
    assert set(said) == {"patches", "cos", "sin", "spans", "embeddings"}


def test_rows_of_a_picture_take_a_position_each(checkpoint: Checkpoint) -> None:
    family = DotsOCR(mmproj(checkpoint("usual")))
    (chunk,) = family.preprocess(media(noise(112, 56)), MediaSettings())
    planes, after = family.positions(chunk, 5)
    np.testing.assert_array_equal(planes, [range(5, 13)])
    assert (after, family.n_pos) == (13, 1)


PLACEHOLDER = "<|img|><|imgpad|><|endofimg|>"
TURNS = {
    "text only": ([("user", ("the user",))], "<|user|>the user<|endofuser|><|assistant|>"),
    "picture first": ([("user", (A, "OCR"))], "<|user|>{A}OCR<|endofuser|><|assistant|>"),
    "picture last": ([("user", ("read", A))], "<|user|>read{A}<|endofuser|><|assistant|>"),
    "several turns": (
        [("system", ("Be brief.",)), ("user", (A, "a", B)), ("assistant", ("12",)), ("user", (A,))],
        "<|system|>Be brief.<|endofsystem|>\n<|user|>{A}a{B}<|endofuser|><|assistant|>12<|endofassistant|>"
        "<|user|>{A}<|endofuser|><|assistant|>",
    ),
}


@pytest.mark.parity
@pytest.mark.parametrize("turns", TURNS)
@pytest.mark.parametrize("lists", [True, False], ids=["the processor's template", "the tokenizer's, for text alone"])
def test_prompts_are_what_both_published_templates_mean(lists: bool, turns: str, checkpoint: Checkpoint) -> None:
    template, (given, wanted) = tiny.chat_template(lists), TURNS[turns]
    tokens = tiny.tokenizer()
    ids = prompt_ids(given, ChatTemplate(template), tokens, DotsOCR(mmproj(checkpoint("usual"))), "<|imgpad|>")
    shown = {"A": "<|img|>" + "<|imgpad|>" * 4 + "<|endofimg|>", "B": "<|img|>" + "<|imgpad|>" * 6 + "<|endofimg|>"}
    assert ids == tokens.encode(wanted.format(**shown), add_special_tokens=False).ids
    if lists:  # transformers prints the same with the same template
        from transformers import PreTrainedTokenizerFast

        conversation = [{"role": r, "content": content(parts)} for r, parts in given]
        printed = PreTrainedTokenizerFast(tokenizer_object=tokens).apply_chat_template(
            conversation, chat_template=template, tokenize=False, add_generation_prompt=True
        )
        assert printed == wanted.replace("{A}", PLACEHOLDER).replace("{B}", PLACEHOLDER)


def content(parts: tuple[str | bytes, ...]) -> str | list[dict[str, str]]:
    """A message's parts as transformers takes them."""
    if all(isinstance(p, str) for p in parts):
        return "".join(parts)
    return [{"type": "text", "text": p} if isinstance(p, str) else {"type": "image"} for p in parts]


PUBLISHED = {  # config.json of rednote-hilab/dots.ocr, without what conversion of the tower does not read
    "architectures": ["DotsOCRForCausalLM"], "model_type": "dots_ocr", "hidden_size": 1536, "rms_norm_eps": 1e-06,
    "vision_config": {
        "embed_dim": 1536, "hidden_size": 1536, "intermediate_size": 4224, "num_hidden_layers": 42, "num_attention_heads": 12,
        "num_channels": 3, "patch_size": 14, "post_norm": True, "rms_norm_eps": 1e-05, "spatial_merge_size": 2,
        "temporal_patch_size": 1, "use_bias": False, "attn_implementation": "flash_attention_2", "init_merger_std": 0.02,
        "initializer_range": 0.02, "is_causal": False,
    },
}  # fmt: skip
MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
PROCESSOR = {"min_pixels": 3136, "max_pixels": 11289600, "image_mean": MEAN, "image_std": STD}
LLAMA_CPP = {  # what llama.cpp's converter (llama-cpp-python 0.3.36) writes for these
    "has_vision_encoder": True, "projector_type": "dots_ocr", "use_silu": True, "vision.projection_dim": 1536,
    "vision.image_size": 0, "vision.patch_size": 14, "vision.projector.scale_factor": 2, "vision.embedding_length": 1536,
    "vision.feed_forward_length": 4224, "vision.block_count": 42, "vision.attention.head_count": 12,
    "vision.attention.layer_norm_epsilon": 1e-5, "vision.image_mean": MEAN, "vision.image_std": STD,
    "vision.image_min_pixels": 3136, "vision.image_max_pixels": 11289600,
}  # fmt: skip


def test_metadata_is_that_of_llama_cpps_converter() -> None:
    """Tensors were compared one by one too, and the rows from its file are those from ours to the bit."""
    assert DotsOCR.metadata(PUBLISHED, PROCESSOR) == {f"clip.{k}": v for k, v in LLAMA_CPP.items()}


def test_what_a_config_leaves_out_is_as_in_the_models_class() -> None:
    assert DotsOCR.metadata({"vision_config": {}}, PROCESSOR) == DotsOCR.metadata(PUBLISHED, PROCESSOR)


@pytest.mark.parity
@pytest.mark.parametrize("settings", [{"size": {"shortest_edge": 4000, "longest_edge": 90000}}, {"max_pixels": 50000}, {}])
def test_limits_are_read_as_transformers_reads_them(settings: dict[str, Any]) -> None:
    check_limits(DotsOCR, PUBLISHED, settings, processor_class())


def test_names_are_those_of_the_gguf_package(checkpoint: Checkpoint) -> None:
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.MMPROJ, 3)
    mlp = {".fc1.": ".gate_proj.", ".fc2.": ".down_proj.", ".fc3.": ".up_proj."}  # as llama.cpp's converter renames them
    theirs = set()
    for name in convert.read_checkpoint(checkpoint("three-layers")).tensors:
        if name.startswith("vision_tower."):
            for old, new in mlp.items():
                name = name.replace("vision_tower.", "visual.").replace(old, new) if old in name else name
            stem, _, kind = name.rpartition(".")
            theirs.add(f"{names.get_name(stem)}.{kind}")
    assert set(mmproj(checkpoint("three-layers")).tensors) == theirs


def test_the_text_half_knows_what_ends_an_answer(checkpoint: Checkpoint) -> None:
    """llama.cpp's converter leaves it out, and its answers end with the token's text."""
    text = convert.text(convert.read_checkpoint(checkpoint("usual")))
    assert text.metadata["tokenizer.ggml.eot_token_id"] == tiny.tokenizer().token_to_id("<|endofassistant|>")
    assert text.metadata["general.architecture"] == "qwen2"


@pytest.mark.parametrize(
    ("name", "value"),
    [("use_bias", True), ("post_norm", False), ("temporal_patch_size", 2), ("num_channels", 1), ("is_causal", True)],
)
def test_a_tower_of_another_make_is_refused(name: str, value: object) -> None:
    config = {**PUBLISHED, "vision_config": {**PUBLISHED["vision_config"], name: value}}
    with pytest.raises(FileError, match=rf"vision_config has {name} {value}, and dots\.ocr's encoder needs"):
        DotsOCR.metadata(config, PROCESSOR)


def test_a_missing_tensor_is_named(checkpoint: Checkpoint) -> None:
    check_missing(mmproj(checkpoint("usual")), "mm.post_norm.weight")


def test_the_layout_puts_a_picture_between_its_tokens(checkpoint: Checkpoint) -> None:
    family = families.for_architecture("DotsOCRForCausalLM")(mmproj(checkpoint("usual")))
    check_marks(family, "<|img|>", "<|endofimg|>")
