"""Tiny random checkpoints of Qwen3-VL and Qwen3.5 with towers of any shape, the text halves those of `tiny_text`."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tiny
import tiny_text
from tiny_shape import Tower


@dataclass(frozen=True, kw_only=True)
class Qwen3(Tower):
    """The shape of a tower; `side` is that of the position table. The text half is as `tiny_text` has it."""

    architecture: str = field(default="Qwen3VLForConditionalGeneration", kw_only=False)
    v_depth: int = 4
    v_ff: int = 96
    side: int = 6
    deepstack: tuple[int, ...] = (0, 2)
    min_pixels: int = 32 * 32
    max_pixels: int = 320 * 320


def config(shape: Qwen3) -> tuple[str, dict[str, Any]]:
    """The class in transformers and its configuration."""
    text = tiny_text.shape(shape.architecture, seed=shape.seed, n_deepstack=len(shape.deepstack))
    name, made = tiny_text.MODELS[shape.architecture](text)
    tower = {
        "depth": shape.v_depth, "hidden_size": shape.v_embd, "num_heads": shape.v_head, "intermediate_size": shape.v_ff,
        "patch_size": 16, "spatial_merge_size": 2, "temporal_patch_size": 2, "out_hidden_size": text.hidden,
        "num_position_embeddings": shape.side**2,
    }  # fmt: skip
    if "Qwen3VL" in name:
        tower["deepstack_visual_indexes"] = list(shape.deepstack)
    return name, {**made, "vision_config": tower}


def write(folder: Path, shape: Qwen3) -> Path:
    """Write a checkpoint as `save_pretrained` does, with the tokenizer's and the processor's files."""
    import torch
    import transformers

    name, made = config(shape)
    cls = getattr(transformers, name)
    torch.manual_seed(shape.seed)
    model = cls(cls.config_class(**made))
    with torch.no_grad():
        for n, p in model.named_parameters():
            p.copy_(_random(n, p))
    model = model.to(getattr(torch, shape.dtype))
    ends = [tiny_text.tokenizer(shape.architecture).token_to_id(s) for s in ("<|im_end|>", "<|endoftext|>")]
    model.generation_config = transformers.GenerationConfig(eos_token_id=ends)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tiny_text.write_tokenizer(folder, shape.architecture)
    _write_processor(folder, shape)
    return folder


def _random(name: str, p: Any) -> Any:
    """Weights that make positions count, pictures matter, and tokens stand apart."""
    import torch

    if name.endswith("A_log"):
        return torch.empty_like(p).uniform_(0.1, 4).log_()
    if p.ndim == 1:
        return p + 0.1 * torch.randn_like(p)
    return torch.randn_like(p) * (0.5 if "pos_embed" in name else 0.07)


def _write_processor(folder: Path, shape: Qwen3) -> None:
    """preprocessor_config.json as these models have it, and the chat template."""
    (folder / "preprocessor_config.json").write_text(
        json.dumps(
            {
                "size": {"longest_edge": shape.max_pixels, "shortest_edge": shape.min_pixels}, "patch_size": 16,
                "temporal_patch_size": 2, "merge_size": 2, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],
                "processor_class": "Qwen3VLProcessor", "image_processor_type": "Qwen2VLImageProcessorFast",
            }
        )
    )  # fmt: skip
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": tiny.CHAT_TEMPLATE}))
