"""The picture side of Qwen2.5-Omni against transformers and libmtmd, on tiny random checkpoints."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from check import Reference, check_caught, check_family, check_marks, check_static, media, rows_of, swapped
from checkpoints import Checkpoint, mmproj, written_once
from reference import model, processor, reference

from diptych import convert, families
from diptych.errors import FileError
from diptych.families.qwen25omni import Qwen25Omni
from diptych.families.qwen25vl import Qwen25VL
from diptych.positions import text
from diptych.types import MediaSettings
from diptych.weights import Weights, open_gguf, write_gguf
from pictures import noise
from tiny_qwen25 import Qwen25VL as Shape
from tiny_qwen25 import omni, thinker

CHECKPOINTS: dict[str, Callable[[Path], Path]] = {
    "thinker": lambda folder: thinker(folder, Shape()),
    "whole": lambda folder: omni(folder, Shape(seed=1, window=112, v_embd=96, v_head=6, v_ff=72)),
}
SIZES = [(84, 140), (112, 84), (28, 28 * 13), (333, 30), (1, 1)]
checkpoint = written_once(CHECKPOINTS)


def thinking(folder: Path) -> Any:
    return model(folder, "Qwen2_5OmniThinkerForConditionalGeneration")


def transformers(folder: Path) -> Reference:
    return reference(thinking(folder).visual, processor(folder))


@pytest.mark.parity
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_the_family_holds_what_every_family_must(name: str, checkpoint: Checkpoint) -> None:
    folder = checkpoint(name)
    agreeing = [(112, 112), (364, 308)] if name == "whole" else []  # llama.cpp knows windows of 112 pixels alone
    check_family(mmproj(folder), SIZES, transformers(folder), agreeing=agreeing)


@pytest.mark.parity
def test_two_weights_in_each_others_place_are_caught(checkpoint: Checkpoint) -> None:
    folder = checkpoint("thinker")
    check_caught(swapped(mmproj(folder), "v.blk.2.attn_q.weight", "v.blk.2.attn_k.weight"), transformers(folder), (84, 140))


@pytest.mark.parity
def test_a_static_graph_gives_the_same_rows(checkpoint: Checkpoint) -> None:
    check_static(mmproj(checkpoint("whole")), (140, 196))


@pytest.mark.parity
def test_positions_are_those_of_transformers(checkpoint: Checkpoint) -> None:
    import torch

    folder = checkpoint("thinker")
    whole, family = thinking(folder), Qwen25Omni(mmproj(folder))
    chunks = [family.preprocess(media(noise(w, h)), MediaSettings())[0] for w, h in ((112, 56), (61, 300), (84, 84))]
    config, planes, ids, at = whole.config, [], [], 0
    for n, chunk in zip((4, 1, 2), chunks, strict=True):  # words, mark, picture, mark
        words, at = text(n + 1, at, 4)
        made, at = family.positions(chunk, at)
        end, at = text(1, at, 4)
        planes += [words, made, end]
        ids += [1] * n + [config.vision_start_token_id, *[config.image_token_id] * chunk.n_tokens, config.vision_end_token_id]
    grids = torch.tensor([c.pieces[0].grid for c in chunks])
    wanted, _ = whole.get_rope_index(torch.tensor([ids]), image_grid_thw=grids, attention_mask=torch.ones(1, len(ids)))
    np.testing.assert_array_equal(np.concatenate(planes, axis=1)[:3], wanted[:, 0])


def test_what_hears_and_speaks_is_left_out(checkpoint: Checkpoint) -> None:
    checkpoints = convert.read_checkpoint(checkpoint("whole"))
    roots = {name.split(".")[0] for name in checkpoints.tensors}
    assert roots >= {"visual", "audio_tower", "talker", "token2wav"}
    assert {name.split(".")[0] for name in mmproj(checkpoint("whole")).tensors} == {"v", "mm"}


# All clip.* metadata that llama.cpp's converter (llama-cpp-python 0.3.36) wrote for a whole checkpoint of this shape. It
# knows that by the architecture Qwen2_5OmniModel alone. Its tensors of the picture side were ours by name, shape and value.
CONVERTED = {
    "general.architecture": "clip", "clip.has_vision_encoder": True, "clip.has_audio_encoder": True,
    "clip.projector_type": "qwen2.5o", "clip.use_silu": True,
    "clip.vision.projection_dim": 128, "clip.vision.image_size": 560, "clip.vision.patch_size": 14,
    "clip.vision.embedding_length": 96, "clip.vision.feed_forward_length": 72, "clip.vision.block_count": 4,
    "clip.vision.attention.head_count": 6, "clip.vision.attention.layer_norm_epsilon": 1e-6, "clip.vision.n_wa_pattern": 2,
    "clip.vision.image_mean": [0.48145466, 0.4578275, 0.40821073], "clip.vision.image_std": [0.26862954, 0.26130258, 0.27577711],
    "clip.audio.projection_dim": 128, "clip.audio.embedding_length": 32, "clip.audio.feed_forward_length": 32,
    "clip.audio.block_count": 1, "clip.audio.attention.head_count": 2, "clip.audio.attention.layer_norm_epsilon": 1e-5,
    "clip.audio.num_mel_bins": 128,
}  # fmt: skip
AUDIO = {
    f"{name}.{kind}"
    for name in (
        *(f"a.blk.0.{n}" for n in ("attn_q", "attn_k", "attn_v", "attn_out", "ffn_up", "ffn_down", "ln1", "ln2")),
        "a.conv1d.1", "a.conv1d.2", "a.position_embd", "a.post_ln", "mm.a.fc",
    )
    for kind in ("weight", "bias")
} - {"a.blk.0.attn_k.bias", "a.position_embd.bias"}  # fmt: skip


def test_a_file_of_llama_cpps_converter_gives_the_same_rows(checkpoint: Checkpoint, tmp_path: Path) -> None:
    weights = mmproj(checkpoint("whole"))
    audio = {name: replace(weights.tensors["mm.2.bias"], name=name) for name in AUDIO}
    write_gguf(tmp_path / "theirs.gguf", Weights(CONVERTED, {**weights.tensors, **audio}))
    theirs = open_gguf(tmp_path / "theirs.gguf")
    family = families.open_family(tmp_path / "theirs.gguf")
    assert isinstance(family, Qwen25Omni)
    assert theirs.tensors.keys() > weights.tensors.keys()
    np.testing.assert_array_equal(rows_of(theirs, noise(364, 308)), rows_of(weights, noise(364, 308)))


def test_the_settings_of_the_thinker_are_those_of_the_whole(checkpoint: Checkpoint) -> None:
    whole = json.loads((checkpoint("whole") / "config.json").read_text())
    made = Qwen25Omni.metadata(whole, {})
    assert made == Qwen25Omni.metadata(whole["thinker_config"], {})
    assert made == {**Qwen25VL.metadata(whole["thinker_config"], {}), "clip.projector_type": "qwen2.5o"}


def test_a_config_without_a_picture_side_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = tmp_path / "c"
    folder.mkdir()
    for file in checkpoint("whole").iterdir():
        (folder / file.name).symlink_to(file)
    config = json.loads((folder / "config.json").read_text())
    del config["thinker_config"]["vision_config"]
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(FileError, match="is not that of a Qwen2_5OmniForConditionalGeneration"):
        mmproj(folder)


@pytest.mark.parametrize(
    "name", ["Qwen2_5OmniModel", "Qwen2_5OmniForConditionalGeneration", "Qwen2_5OmniThinkerForConditionalGeneration"]
)
def test_the_layout_puts_a_picture_between_its_own_marks(name: str, checkpoint: Checkpoint) -> None:
    family = families.for_architecture(name)(mmproj(checkpoint("thinker")))
    check_marks(family, "<|vision_bos|>", "<|vision_eos|>")
    assert family.placeholders["image"] == ("<|vision_bos|><|IMAGE|><|vision_eos|>", "<|IMAGE|>")
