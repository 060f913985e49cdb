"""Tiny random GLM-4V and GLM-OCR checkpoints, as people download them; their towers are the point."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tiny_text
from tiny_shape import Tower, draw

CHAT_TEMPLATE = (
    "[gMASK]<sop>{% for m in messages %}{% if m.role == 'system' %}<|system|>\n{{ m.content }}"
    "{% elif m.role == 'user' %}<|user|>\n{% if m.content is string %}{{ m.content }}{% else %}{% for item in m.content %}"
    "{% if item.type == 'image' or 'image' in item %}<|begin_of_image|><|image|><|end_of_image|>"
    "{% elif item.type == 'text' %}{{ item.text }}{% endif %}{% endfor %}{% endif %}"
    "{% elif m.role == 'assistant' %}<|assistant|>\n{{ m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)  # GLM-4.1V's own, video left out


@dataclass(frozen=True, kw_only=True)
class Glm(Tower):
    """The shape of a tiny model. `name` is its class in transformers, `moe` asks for GLM-4.6V's larger text half.

    `v_ff` is that of GLM-OCR's blocks and of the others' merger: the width of GLM-4V's blocks is `hidden`.
    """

    name: str = field(default="Glm4vForConditionalGeneration", kw_only=False)
    hidden: int = 96
    v_ff: int = 80
    side: int = 6  # of the table of positions
    bias: bool = False
    moe: bool = False
    min_pixels: int = 112 * 112  # of two frames, as the processor counts
    max_pixels: int = 28 * 28 * 15000
    scale: float = 3.0  # on the initial weights, so that pictures matter


def config(shape: Glm) -> dict[str, Any]:
    """The keyword arguments of the model's configuration class."""
    text = {
        "vocab_size": 64, "hidden_size": shape.hidden, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 1, "intermediate_size": 32, "pad_token_id": None, "eos_token_id": None,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [8, 8, 8]},
    }  # fmt: skip
    vision = {
        "depth": shape.v_depth, "hidden_size": shape.v_embd, "num_heads": shape.v_head, "out_hidden_size": shape.hidden,
        "intermediate_size": shape.v_ff, "image_size": 14 * shape.side, "attention_bias": shape.bias,
    }  # fmt: skip
    if shape.moe or "Moe" in shape.name:
        text |= {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "first_k_dense_replace": 0}
    if "46V" in shape.name:
        text["model_type"] = "glm4v_moe_text" if shape.moe else "glm4v_text"
        vision["model_type"] = "glm4v_moe_vision" if shape.moe else "glm4v_vision"
    ids = {f"{name}_token_id": i for i, name in enumerate(("image_start", "image_end", "image", "video"))}
    return {"text_config": text, "vision_config": vision, **ids}


def build(shape: Glm) -> Any:
    """The model in transformers."""
    import torch
    import transformers

    torch.manual_seed(shape.seed)
    made = getattr(transformers, shape.name)
    model = made(made.config_class(**config(shape)))
    draw(model, shape.scale)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "position_embedding" in name:
                p.normal_(0, 1)  # of the size of the normalised patches beside them
    return model.to(getattr(torch, shape.dtype)).eval()


def write(folder: Path, shape: Glm = Glm()) -> Path:
    """Write a checkpoint as `save_pretrained` does."""
    folder.mkdir(parents=True, exist_ok=True)
    build(shape).save_pretrained(folder)
    write_processor(folder, shape)
    return folder


def write_processor(folder: Path, shape: Glm) -> None:
    """The picture processor's settings."""
    kind = "Glm46V" if "46V" in shape.name else "Glm4v"
    settings = {
        "image_processor_type": f"{kind}ImageProcessor", "processor_class": f"{kind}Processor",
        "size": {"shortest_edge": shape.min_pixels, "longest_edge": shape.max_pixels},
        "patch_size": 14, "temporal_patch_size": 2, "merge_size": 2,
        "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
        "do_resize": True, "do_rescale": True, "do_normalize": True, "do_convert_rgb": True,
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))


def whole(folder: Path, architecture: str, **fields: Any) -> Path:
    """Write a checkpoint of `tiny_text.shape` that can be asked about pictures of up to 224 × 224 pixels."""
    shape = tiny_text.shape(architecture, **fields)
    tiny_text.write(folder, shape)
    write_processor(folder, Glm(architecture, max_pixels=2 * 224 * 224))
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    ids = [tiny_text.tokenizer(architecture).token_to_id(end) for end in ("<|endoftext|>", "<|user|>", "<|observation|>")]
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ids}))
    return folder
