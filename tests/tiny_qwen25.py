"""Tiny random Qwen2.5-VL and Qwen2.5-Omni, written as the checkpoint directories that people download."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tiny

OMNI = {  # Qwen2.5-Omni's names for the special tokens of Qwen2.5-VL
    "<|vision_start|>": "<|vision_bos|>", "<|vision_end|>": "<|vision_eos|>", "<|vision_pad|>": "<|AUDIO|>",
    "<|image_pad|>": "<|IMAGE|>", "<|video_pad|>": "<|VIDEO|>",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Qwen25VL(tiny.Qwen2VL):
    """The shape of a tiny Qwen2.5-VL: windows of 2 × 2 cells, and every second layer sees the whole picture."""

    v_depth: int = 4
    v_ff: int = 100
    window: int = 56
    full: tuple[int, ...] = (1, 3)


def config(shape: Qwen25VL) -> dict[str, Any]:
    """config.json in the nested style that transformers 5 writes."""
    tower = {
        "depth": shape.v_depth, "hidden_size": shape.v_embd, "num_heads": shape.v_head, "intermediate_size": shape.v_ff,
        "out_hidden_size": shape.hidden, "window_size": shape.window, "fullatt_block_indexes": list(shape.full),
    }  # fmt: skip
    return {**tiny.config(shape), "vision_config": tower}


def qwen25vl(folder: Path, shape: Qwen25VL = Qwen25VL()) -> Path:
    """Write a tiny random checkpoint as `Qwen2_5_VLForConditionalGeneration.save_pretrained` does."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    return tiny.save(Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLConfig(**config(shape)), folder, shape)


def thinker(folder: Path, shape: Qwen25VL = Qwen25VL()) -> Path:
    """Write the thinker of a tiny random Qwen2.5-Omni, the part that sees, hears and writes, by itself."""
    from transformers import Qwen2_5OmniThinkerConfig, Qwen2_5OmniThinkerForConditionalGeneration

    made = Qwen2_5OmniThinkerConfig(**_thinker_config(shape))
    return _with_omni_tokens(tiny.save(Qwen2_5OmniThinkerForConditionalGeneration, made, folder, shape))


def omni(folder: Path, shape: Qwen25VL = Qwen25VL()) -> Path:
    """Write a whole tiny random Qwen2.5-Omni: the thinker, the talker and what makes sound of its tokens."""
    from transformers import Qwen2_5OmniConfig, Qwen2_5OmniForConditionalGeneration

    made = Qwen2_5OmniConfig(
        thinker_config=_thinker_config(shape),
        talker_config={
            "vocab_size": 64, "embedding_size": shape.hidden, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "pad_token_id": 0,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2]},
        },
        token2wav_config={
            "dit_config": {
                "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1, "emb_dim": 64, "num_embeds": 8,
                "enc_emb_dim": 64, "enc_dim": 8, "enc_channels": [16] * 5, "enc_attention_channels": 8, "enc_se_channels": 8,
            },
            "bigvgan_config": {"upsample_initial_channel": 64},
        },
    )  # fmt: skip
    return _with_omni_tokens(tiny.save(Qwen2_5OmniForConditionalGeneration, made, folder, shape))


def _thinker_config(shape: Qwen25VL) -> dict[str, Any]:
    whole = config(shape)
    ids = {name: whole.pop(f"{name}_token_id") for name in ("image", "video")}
    return {
        **whole, "image_token_index": ids["image"], "video_token_index": ids["video"],
        "audio_token_index": tiny.tokenizer().token_to_id("<|vision_pad|>"),
        "audio_config": {
            "d_model": 32, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 32, "output_dim": shape.hidden,
        },
    }  # fmt: skip


def _with_omni_tokens(folder: Path) -> Path:
    for file in (folder / "tokenizer.json", folder / "tokenizer_config.json"):
        text = file.read_text()
        for old, new in OMNI.items():
            text = text.replace(old, new)
        file.write_text(text)
    return folder
