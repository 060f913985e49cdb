"""Write a trained reader as a Hugging Face checkpoint: `python checkpoint.py runs/reader/checkpoint.pt OUT`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

import tokens
from model import Sizes

MIN_PIXELS, MAX_PIXELS = 56 * 56, 28 * 28 * 512


def write(state: dict[str, Tensor], folder: Path) -> None:
    """Weights, configuration, tokenizer and picture processor, as `from_pretrained` reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {}
    for name, value in state.items():
        if not name.startswith("reader."):
            continue  # the throw-away head
        name = name.removeprefix("reader.")
        if name == "visual.patch_embed.weight":
            half = (value / 2).view(-1, 3, 1, 14, 14)  # a still picture feeds the same frame twice
            weights["visual.patch_embed.proj.weight"] = half.repeat(1, 1, 2, 1, 1)
        else:
            weights[name.replace("language_model.", "model.")] = value
    save_file({k: v.float().contiguous() for k, v in weights.items()}, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config(), indent=1))
    (folder / "generation_config.json").write_text(
        json.dumps({"do_sample": False, "temperature": 0.0, "eos_token_id": id_of("<|im_end|>")})
    )
    (folder / "preprocessor_config.json").write_text(json.dumps(processor(), indent=1))
    tokens.write(folder)


def id_of(name: str) -> int:
    return tokens.vocabulary()[name]


def config() -> dict[str, Any]:
    s = Sizes(n_vocab=len(tokens.vocabulary()))
    return {
        "architectures": ["Qwen2VLForConditionalGeneration"], "model_type": "qwen2_vl", "tie_word_embeddings": True,
        "image_token_id": id_of("<|image_pad|>"), "video_token_id": id_of("<|video_pad|>"),
        "vision_start_token_id": id_of("<|vision_start|>"), "vision_end_token_id": id_of("<|vision_end|>"),
        "text_config": {
            "model_type": "qwen2_vl_text", "vocab_size": s.n_vocab, "hidden_size": s.n_embd, "num_hidden_layers": s.n_layer,
            "num_attention_heads": s.n_head, "num_key_value_heads": s.n_head_kv, "intermediate_size": s.n_ff,
            "rms_norm_eps": s.eps, "hidden_act": "silu", "max_position_embeddings": 4096, "tie_word_embeddings": True,
            "bos_token_id": None, "eos_token_id": id_of("<|im_end|>"),
            "rope_parameters": {
                "rope_type": "default", "type": "mrope", "mrope_section": list(s.sections), "rope_theta": s.theta,
            },
        },
        "vision_config": {
            "model_type": "qwen2_vl_vision", "depth": s.v_layer, "embed_dim": s.v_embd, "num_heads": s.v_head, "mlp_ratio": 4,
            "hidden_size": s.n_embd, "hidden_act": "quick_gelu", "patch_size": s.patch, "spatial_merge_size": s.merge,
            "temporal_patch_size": 2, "in_channels": 3,
        },
    }  # fmt: skip


def processor() -> dict[str, Any]:
    return {
        "image_processor_type": "Qwen2VLImageProcessor", "min_pixels": MIN_PIXELS, "max_pixels": MAX_PIXELS,
        "patch_size": 14, "temporal_patch_size": 2, "merge_size": 2,
        "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
        "do_resize": True, "do_rescale": True, "do_normalize": True, "do_convert_rgb": True,
    }  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path)
    parsed = parser.parse_args()
    write(torch.load(parsed.checkpoint, weights_only=True)["model"], parsed.out)
    print(f"wrote {parsed.out}; next: diptych convert {parsed.out} -o DIR")
