"""Tiny random PaddleOCR-VL checkpoints, written as `PaddleOCRVLForConditionalGeneration.save_pretrained` does."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tiny_text
from tiny_shape import MropeText, Tower, draw

NAME = "PaddleOCRVLForConditionalGeneration"


@dataclass(frozen=True, kw_only=True)
class PaddleOCR(Tower, MropeText):
    """The shape of a tiny PaddleOCR-VL. `table` is the side of its position table: 27 in the published ones."""

    v_ff: int = 96
    v_eps: float = 1e-6
    table: int = 6
    head_dim: int = 32
    eps: float = 1e-5
    scale: float = 3.0  # on the initial weights, so that tokens have margins and pictures matter


def config(shape: PaddleOCR) -> dict[str, Any]:
    """config.json in the nested style that transformers 5 writes."""
    tokens = tiny_text.tokenizer(NAME)
    image, video, start, end = map(
        tokens.token_to_id, ("<|IMAGE_PLACEHOLDER|>", "<|video_pad|>", "<|IMAGE_START|>", "<|IMAGE_END|>")
    )
    return {
        "vision_config": {
            "num_hidden_layers": shape.v_depth, "hidden_size": shape.v_embd, "num_attention_heads": shape.v_head,
            "intermediate_size": shape.v_ff, "layer_norm_eps": shape.v_eps, "image_size": shape.table * 14 + 6,
            "patch_size": 14, "spatial_merge_size": 2,
        },
        "text_config": {
            "vocab_size": tokens.get_vocab_size() + tiny_text.N_SPARE, "hidden_size": shape.hidden,
            "num_hidden_layers": shape.n_layer, "num_attention_heads": shape.n_head,
            "num_key_value_heads": shape.n_head_kv, "head_dim": shape.head_dim,
            "intermediate_size": shape.n_ff, "rms_norm_eps": shape.eps, "max_position_embeddings": 4096,
            "tie_word_embeddings": shape.tied, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
            "rope_parameters": {
                "rope_type": "default", "type": "mrope", "mrope_section": list(shape.sections), "rope_theta": shape.rope_theta,
            },
        },
        "image_token_id": image, "video_token_id": video, "vision_start_token_id": start, "vision_end_token_id": end,
        "tie_word_embeddings": shape.tied,
    }  # fmt: skip


def paddleocr(folder: Path, shape: PaddleOCR = PaddleOCR()) -> Path:
    """Write the checkpoint: config.json, safetensors with the published names, the processor's settings and the tokenizer."""
    import torch
    from transformers import PaddleOCRVLConfig, PaddleOCRVLForConditionalGeneration

    torch.manual_seed(shape.seed)
    model = PaddleOCRVLForConditionalGeneration(PaddleOCRVLConfig(**config(shape)))
    draw(model, shape.scale)
    with torch.no_grad():
        model.model.visual.vision_model.embeddings.position_embedding.weight.normal_(0, 0.5)
    folder.mkdir(parents=True, exist_ok=True)
    model.to(getattr(torch, shape.dtype)).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(processor(shape)))
    tiny_text.write_tokenizer(folder, NAME)
    (folder / "chat_template.jinja").write_text(chat_template("1.5"))
    return folder


def processor(shape: PaddleOCR) -> dict[str, Any]:
    """preprocessor_config.json as published, but for the limits of pixels."""
    return {
        "image_processor_type": "PaddleOCRVLImageProcessor", "processor_class": "PaddleOCRVLProcessor",
        "min_pixels": shape.min_pixels, "max_pixels": shape.max_pixels, "patch_size": 14, "temporal_patch_size": 1,
        "merge_size": 2, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "resample": 3, "rescale_factor": 1 / 255,
        "do_resize": True, "do_rescale": True, "do_normalize": True, "do_convert_rgb": True,
    }  # fmt: skip


def chat_template(version: str) -> str:
    """What a published template prints: the pictures of a message first, then its text. It takes lists of parts only.

    The first version has what stands for a picture in a variable, the later one in its text.
    """
    picture, end = "'<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>'", {"1.0": "Assistant: ", "1.5": "Assistant:\\n"}[version]
    first = "{%- if not picture is defined -%}{%- set picture = " + picture + " -%}{%- endif -%}" if version == "1.0" else ""
    part = "{%- for part in message.content if part.type == 'KIND' -%}{{ PRINT }}{%- endfor -%}"
    pictures = part.replace("KIND", "image").replace("PRINT", "picture" if version == "1.0" else picture)
    texts = part.replace("KIND", "text").replace("PRINT", "part.text")
    return (
        first + "{{ cls_token | default('<|begin_of_sentence|>') }}{%- for message in messages -%}"
        "{%- if message.role == 'user' -%}{{ 'User: ' }}" + pictures + texts + "{{ '\\n' }}"
        "{%- elif message.role == 'assistant' -%}{{ '" + end + "' }}" + texts + "{{ eos_token | default('</s>') }}"
        "{%- elif message.role == 'system' -%}" + texts + "{{ '\\n' }}{%- endif -%}{%- endfor -%}"
        "{%- if add_generation_prompt | default(true) -%}{{ '" + end + "' }}{%- endif -%}"
    )
