"""Tiny random models, written as the checkpoint directories that people download."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diptych.options import Options
from tiny_shape import MropeText, Tower, draw

# arithmetic that does not depend on what else is in a batch
EXACT = Options(n_ctx=1024, threads=1, cache_type_k="f32", cache_type_v="f32", flash_attn="off")
SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>",
    "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
CHAT_TEMPLATE = (
    "{% set image_count = namespace(value=0) %}{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n"
    "{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}"
    "{% set image_count.value = image_count.value + 1 %}{% if add_vision_id %}Picture {{ image_count.value }}: {% endif %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% elif 'text' in content %}{{ content['text'] }}"
    "{% endif %}{% endfor %}<|im_end|>\n"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)  # Qwen2-VL's own, video left out


@dataclass(frozen=True, kw_only=True)
class Qwen2VL(Tower, MropeText):
    """The shape of a tiny Qwen2-VL. The defaults avoid llama.cpp's known faults: a negligible RMS epsilon, and
    sections that cover every rotary frequency."""

    v_mlp_ratio: int = 4
    eps: float = 1e-12
    max_pixels: int = 28 * 28 * 1280
    scale: float = 3.0  # on the initial weights, so that tokens have margins and pictures matter


def tokenizer() -> Any:
    """A byte-level BPE with Qwen2's split and a few merges."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in plain]
    symbols = [chr(b) if b in plain else chr(256 + others.index(b)) for b in range(256)]
    pairs = [
        ("t", "h"),
        ("th", "e"),
        ("Ġ", "the"),
        ("i", "n"),
        ("e", "r"),
        ("u", "s"),
        ("us", "er"),
        ("a", "s"),
        ("Ċ", "Ċ"),
        ("1", "2"),
    ]
    vocab = {s: i for i, s in enumerate([*symbols, *("".join(p) for p in pairs)])}
    out = Tokenizer(models.BPE(vocab, pairs))
    out.normalizer = normalizers.NFC()
    split = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    out.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(split), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    out.decoder = decoders.ByteLevel()
    out.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in SPECIAL])
    return out


def config(shape: Qwen2VL) -> dict[str, Any]:
    """config.json in the nested style that transformers 5 writes."""
    tok = tokenizer()
    ids = {s: tok.token_to_id(s) for s in SPECIAL}
    return {
        "vision_config": {
            "depth": shape.v_depth, "embed_dim": shape.v_embd, "num_heads": shape.v_head, "hidden_size": shape.hidden,
            "mlp_ratio": shape.v_mlp_ratio, "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2,
        },
        "text_config": {
            "vocab_size": tok.get_vocab_size() + 10,  # real checkpoints have spare rows too
            "hidden_size": shape.hidden, "num_hidden_layers": shape.n_layer, "num_attention_heads": shape.n_head,
            "num_key_value_heads": shape.n_head_kv, "intermediate_size": shape.n_ff, "rms_norm_eps": shape.eps,
            "max_position_embeddings": 8192, "tie_word_embeddings": shape.tied, "bos_token_id": None,
            "eos_token_id": ids["<|im_end|>"],
            "rope_parameters": {
                "rope_type": "default", "type": "mrope", "mrope_section": list(shape.sections), "rope_theta": shape.rope_theta,
            },
        },
        "image_token_id": ids["<|image_pad|>"], "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"], "vision_end_token_id": ids["<|vision_end|>"],
        "tie_word_embeddings": shape.tied,
    }  # fmt: skip


def qwen2vl(folder: Path, shape: Qwen2VL = Qwen2VL(), shards: int = 1) -> Path:
    """Write a tiny random Qwen2-VL checkpoint as `Qwen2VLForConditionalGeneration.save_pretrained` does."""
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    return save(Qwen2VLForConditionalGeneration, Qwen2VLConfig(**config(shape)), folder, shape, shards)


def save(model_class: Any, config: Any, folder: Path, shape: Qwen2VL, shards: int = 1) -> Path:
    """Write a model of random weights, and all that stands beside the weights."""
    import torch
    from transformers import GenerationConfig

    torch.manual_seed(shape.seed)
    model = model_class(config)
    draw(model, shape.scale)
    model = model.to(getattr(torch, shape.dtype))
    end = [tokenizer().token_to_id(s) for s in ("<|im_end|>", "<|endoftext|>")]
    model.generation_config = GenerationConfig(eos_token_id=end, do_sample=True, temperature=0.1, top_k=1)
    folder.mkdir(parents=True, exist_ok=True)
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    model.save_pretrained(folder, max_shard_size=size if shards == 1 else size // shards)
    write_processor(folder, shape)
    return folder


def write_processor(folder: Path, shape: Qwen2VL) -> None:
    """The tokenizer, the chat template and the picture processor's settings."""
    tokenizer().save(str(folder / "tokenizer.json"))
    added = {str(tokenizer().token_to_id(s)): {"content": s, "special": True} for s in SPECIAL}
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "bos_token": None,
                "add_bos_token": False, "chat_template": CHAT_TEMPLATE, "added_tokens_decoder": added, "model_max_length": 8192,
            }
        )
    )  # fmt: skip
    (folder / "preprocessor_config.json").write_text(
        json.dumps(
            {
                "image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2VLProcessor",
                "min_pixels": shape.min_pixels, "max_pixels": shape.max_pixels, "patch_size": 14, "temporal_patch_size": 2,
                "merge_size": 2,
                "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
                "do_resize": True, "do_rescale": True, "do_normalize": True, "do_convert_rgb": True,
            }
        )
    )  # fmt: skip
