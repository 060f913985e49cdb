"""Tiny random dots.ocr checkpoints: transformers has no such class, so the tensors are written by their published names."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SPECIAL = (
    "<|endoftext|>", "<|imgpad|>", "<|img|>", "<|endofimg|>", "<|systemprompt|>", "<|endofsystemprompt|>", "<|user|>",
    "<|endofuser|>", "<|assistant|>", "<|endofassistant|>",
)  # fmt: skip


@dataclass(frozen=True)
class DotsOCR:
    """The shape of a tiny dots.ocr."""

    seed: int = 0
    v_depth: int = 2
    v_embd: int = 64
    v_head: int = 4
    v_ff: int = 96
    v_eps: float = 1e-5
    hidden: int = 128
    n_layer: int = 2
    n_head: int = 4
    n_head_kv: int = 2
    n_ff: int = 192
    eps: float = 1e-6
    rope_theta: float = 10000.0
    min_pixels: int = 56 * 56
    max_pixels: int = 28 * 28 * 100
    n_vocab: int = 300
    dtype: str = "float32"
    scale: float = 0.07  # spread of matrices


def config(shape: DotsOCR) -> dict[str, Any]:
    """config.json as published: the text half's settings at the top."""
    return {
        "architectures": ["DotsOCRForCausalLM"], "model_type": "dots_ocr",
        "auto_map": {
            "AutoConfig": "configuration_dots.DotsOCRConfig", "AutoModelForCausalLM": "modeling_dots_ocr.DotsOCRForCausalLM",
        },
        "attention_bias": True, "attention_dropout": 0.0, "hidden_act": "silu", "hidden_size": shape.hidden,
        "initializer_range": 0.02, "intermediate_size": shape.n_ff, "max_position_embeddings": 4096, "max_window_layers": 28,
        "num_attention_heads": shape.n_head, "num_hidden_layers": shape.n_layer, "num_key_value_heads": shape.n_head_kv,
        "rms_norm_eps": shape.eps, "rope_scaling": None, "rope_theta": shape.rope_theta, "sliding_window": 4096,
        "tie_word_embeddings": False, "torch_dtype": shape.dtype, "use_cache": True, "use_sliding_window": False,
        "vocab_size": shape.n_vocab, "image_token_id": SPECIAL.index("<|imgpad|>"), "video_token_id": 0,
        "vision_config": {
            "embed_dim": shape.v_embd, "hidden_size": shape.hidden, "intermediate_size": shape.v_ff,
            "num_hidden_layers": shape.v_depth, "num_attention_heads": shape.v_head, "num_channels": 3, "patch_size": 14,
            "post_norm": True, "rms_norm_eps": shape.v_eps, "spatial_merge_size": 2, "temporal_patch_size": 1,
            "use_bias": False, "attn_implementation": "flash_attention_2", "init_merger_std": 0.02, "initializer_range": 0.02,
            "is_causal": False, "model_type": "dots_vit",
        },
    }  # fmt: skip


def shapes(shape: DotsOCR) -> dict[str, tuple[int, ...]]:
    """Every tensor of the checkpoint by its published name."""
    d, ff, wide, t, kv = shape.v_embd, shape.v_ff, 4 * shape.v_embd, shape.hidden, shape.n_head_kv * shape.hidden // shape.n_head
    tower: dict[str, tuple[int, ...]] = {
        "patch_embed.patchifier.proj.weight": (d, 3, 14, 14), "patch_embed.patchifier.proj.bias": (d,),
        "patch_embed.patchifier.norm.weight": (d,), "post_trunk_norm.weight": (d,),
        "merger.ln_q.weight": (d,), "merger.ln_q.bias": (d,),
        "merger.mlp.0.weight": (wide, wide), "merger.mlp.0.bias": (wide,),
        "merger.mlp.2.weight": (t, wide), "merger.mlp.2.bias": (t,),
    }  # fmt: skip
    for i in range(shape.v_depth):
        tower |= {
            f"blocks.{i}.norm1.weight": (d,), f"blocks.{i}.attn.qkv.weight": (3 * d, d), f"blocks.{i}.attn.proj.weight": (d, d),
            f"blocks.{i}.norm2.weight": (d,), f"blocks.{i}.mlp.fc1.weight": (ff, d), f"blocks.{i}.mlp.fc2.weight": (d, ff),
            f"blocks.{i}.mlp.fc3.weight": (ff, d),
        }  # fmt: skip
    text: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (shape.n_vocab, t), "model.norm.weight": (t,), "lm_head.weight": (shape.n_vocab, t),
    }  # fmt: skip
    for i in range(shape.n_layer):
        layer = {
            "input_layernorm.weight": (t,), "post_attention_layernorm.weight": (t,),
            "self_attn.q_proj.weight": (t, t), "self_attn.q_proj.bias": (t,), "self_attn.k_proj.weight": (kv, t),
            "self_attn.k_proj.bias": (kv,), "self_attn.v_proj.weight": (kv, t), "self_attn.v_proj.bias": (kv,),
            "self_attn.o_proj.weight": (t, t), "mlp.gate_proj.weight": (shape.n_ff, t), "mlp.up_proj.weight": (shape.n_ff, t),
            "mlp.down_proj.weight": (t, shape.n_ff),
        }  # fmt: skip
        text |= {f"model.layers.{i}.{name}": size for name, size in layer.items()}
    return {**{f"vision_tower.{name}": size for name, size in tower.items()}, **text}


def tensors(shape: DotsOCR) -> dict[str, NDArray[np.float32]]:
    """Random values: matrices spread by `scale`, norms about 1, biases about 0."""
    rng = np.random.default_rng(shape.seed)
    made = {}
    for name, size in shapes(shape).items():
        values = rng.standard_normal(size, np.float32) * np.float32(shape.scale if len(size) > 1 else 0.1)
        is_norm = "norm" in name or name.endswith("ln_q.weight")
        made[name] = values + np.float32(is_norm)
    return made


def dotsocr(folder: Path, shape: DotsOCR = DotsOCR()) -> Path:
    """Write the checkpoint: config.json, safetensors and preprocessor_config.json."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    dtype = getattr(torch, shape.dtype)
    stored = {name: torch.from_numpy(values).to(dtype) for name, values in tensors(shape).items()}
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config(shape)))
    (folder / "preprocessor_config.json").write_text(json.dumps(processor(shape)))
    return folder


def processor(shape: DotsOCR) -> dict[str, Any]:
    """preprocessor_config.json as published, but for the limits of pixels."""
    return {
        "image_processor_type": "Qwen2VLImageProcessor", "processor_class": "DotsVLProcessor", "min_pixels": shape.min_pixels,
        "max_pixels": shape.max_pixels, "patch_size": 14, "temporal_patch_size": 1, "merge_size": 2,
        "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
    }  # fmt: skip


def chat_template(lists: bool = True) -> str:
    """What the processor's template prints, which takes lists of parts, or the tokenizer's, which takes text alone."""
    listed = (
        "{%- if m.content is string %}{{- m.content }}{%- else %}{%- for part in m.content %}"
        "{%- if part.type == 'image' %}{{- '<|img|><|imgpad|><|endofimg|>' }}"
        "{%- elif part.type == 'text' %}{{- part.text }}{%- endif %}{%- endfor %}{%- endif %}"
    )
    user = "{{- '<|user|>' }}" + listed + "{{- '<|endofuser|>' }}" if lists else "{{- '<|user|>' + m.content + '<|endofuser|>' }}"
    return (
        "{%- for m in messages %}{%- if m.role == 'system' %}{{- '<|system|>' + m.content + '<|endofsystem|>\\n' }}"
        "{%- elif m.role == 'user' %}" + user + "{%- elif m.role == 'assistant' %}{{- '<|assistant|>' + m.content }}"
        "{%- if not loop.last %}{{- '<|endofassistant|>' }}{%- endif %}{%- endif %}{%- endfor %}"
        "{%- if messages[-1].role != 'assistant' %}{{- '<|assistant|>' }}{%- endif %}"
    )
