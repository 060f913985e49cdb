"""Tiny random checkpoints of every architecture whose text half converts, as people download them.

The text half is the point; the towers beside it are as small as transformers builds them, so that a picture's rows and
positions come from the model itself.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tiny

N_SPARE = 10  # rows of the embedding table without a token, as real checkpoints have
QWEN = tiny.SPECIAL
GLM = (
    "<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>", "<|system|>", "<|user|>", "<|assistant|>",
    "<|observation|>", "<|begin_of_image|>", "<|end_of_image|>", "<|image|>", "<|begin_of_video|>", "<|end_of_video|>",
    "<|video|>",
)  # fmt: skip
ERNIE = (
    "<unk>", "<s>", "</s>", "<|begin_of_sentence|>", "<|end_of_sentence|>", "<|IMAGE_PLACEHOLDER|>", "<|video_pad|>",
    "<|IMAGE_START|>", "<|IMAGE_END|>",
)  # fmt: skip
_QWEN_SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPLITS = {
    "qwen2": _QWEN_SPLIT,
    "qwen35": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|"
        r"\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    "glm4": _QWEN_SPLIT.replace(r"|\p{N}|", r"|\p{N}{1,3}|"),
}  # as the models' own tokenizer.json has them


@dataclass(frozen=True)
class Shape:
    """The sizes of a tiny model. The defaults avoid llama.cpp's known faults; see `SHAPES` for what differs by architecture."""

    architecture: str
    seed: int = 0
    hidden: int = 128
    n_layer: int = 2
    n_head: int = 4
    n_head_kv: int = 2
    head_dim: int = 32
    n_ff: int = 192
    eps: float = 1e-6
    sections: tuple[int, int, int] = (6, 5, 5)
    rope_theta: float = 10000.0
    n_expert: int = 6
    n_expert_used: int = 2
    n_ff_expert: int = 96
    n_deepstack: int = 2
    n_nextn: int = 1
    tied: bool = False
    dtype: str = "float32"


def shape(architecture: str, **fields: Any) -> Shape:
    """A shape with what the architecture itself asks for."""
    return Shape(architecture, **{**_FIELDS.get(architecture, {}), **fields})


def write(folder: Path, shape: Shape) -> Path:
    """A checkpoint folder with config.json, safetensors and the tokenizer's files."""
    import torch

    model = build(shape).to(getattr(torch, shape.dtype))
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    _ADJUST.get(shape.architecture, lambda *_: None)(folder, shape)
    write_tokenizer(folder, shape.architecture)
    return folder


def build(shape: Shape) -> Any:
    """The model in transformers, its weights random: matrices spread by 0.07, norms around their neutral value."""
    import torch
    import transformers

    name, config = MODELS[shape.architecture](shape)
    torch.manual_seed(shape.seed)
    cls = getattr(transformers, name)
    model = cls(cls.config_class(**config)).eval()
    with torch.no_grad():
        for name, p in [*model.named_parameters(), *model.named_buffers()]:
            if p.ndim > 1 and "inv_freq" not in name:
                p.normal_(0, 0.07)
            elif name.endswith("A_log"):
                p.uniform_(0.1, 4).log_()
            elif name.endswith((".weight", ".bias", "dt_bias")):
                p.add_(torch.randn_like(p) * 0.1)
            elif name.endswith("e_score_correction_bias"):
                p.uniform_(0, 0.1)
    return model


def _text(shape: Shape, **more: Any) -> dict[str, Any]:
    tokens = tokenizer(shape.architecture)
    return {
        "vocab_size": tokens.get_vocab_size() + N_SPARE, "hidden_size": shape.hidden, "num_hidden_layers": shape.n_layer,
        "num_attention_heads": shape.n_head, "num_key_value_heads": shape.n_head_kv, "intermediate_size": shape.n_ff,
        "rms_norm_eps": shape.eps, "max_position_embeddings": 4096, "tie_word_embeddings": shape.tied,
        "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
        "rope_parameters": {"rope_type": "default", "rope_theta": shape.rope_theta, "mrope_section": list(shape.sections)},
        **more,
    }  # fmt: skip


def _tower(shape: Shape, **more: Any) -> dict[str, Any]:
    """What most towers have in common."""
    return {
        "depth": 2, "hidden_size": 64, "num_heads": 4, "intermediate_size": 96, "out_hidden_size": shape.hidden,
        "spatial_merge_size": 2, "temporal_patch_size": 2, **more,
    }  # fmt: skip


def _whole(shape: Shape, tower: dict[str, Any], text: dict[str, Any], image: str, video: str, **more: Any) -> dict[str, Any]:
    ids = tokenizer(shape.architecture).token_to_id
    return {
        "vision_config": tower, "text_config": text, "image_token_id": ids(image), "video_token_id": ids(video),
        "tie_word_embeddings": shape.tied, **more,
    }  # fmt: skip


def _qwen(shape: Shape, tower: dict[str, Any], text: dict[str, Any], **more: Any) -> dict[str, Any]:
    ids = tokenizer(shape.architecture).token_to_id
    ends = {"vision_start_token_id": ids("<|vision_start|>"), "vision_end_token_id": ids("<|vision_end|>")}
    return _whole(shape, tower, text, "<|image_pad|>", "<|video_pad|>", **ends, **more)


def qwen25vl(shape: Shape) -> tuple[str, dict[str, Any]]:
    """Qwen2.5-VL."""
    tower = _tower(shape, patch_size=14, window_size=56, fullatt_block_indexes=[1])
    return "Qwen2_5_VLForConditionalGeneration", _qwen(shape, tower, _text(shape))


def qwen25omni(shape: Shape) -> tuple[str, dict[str, Any]]:
    """The thinker of Qwen2.5-Omni, the part that reads and writes text."""
    tower = _tower(shape, patch_size=14, window_size=56, fullatt_block_indexes=[1])
    audio = {"d_model": 32, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 32, "output_dim": shape.hidden}
    ids = tokenizer(shape.architecture).token_to_id
    config = _qwen(shape, tower, _text(shape), audio_config=audio)
    del config["image_token_id"], config["video_token_id"]
    config |= {"image_token_index": ids("<|image_pad|>"), "video_token_index": ids("<|video_pad|>"), "audio_token_index": 0}
    return "Qwen2_5OmniThinkerForConditionalGeneration", config


def _qwen3_tower(shape: Shape) -> dict[str, Any]:
    taps = list(range(shape.n_deepstack))
    return _tower(shape, depth=len(taps) + 1, patch_size=16, num_position_embeddings=64, deepstack_visual_indexes=taps)


def qwen3vl(shape: Shape) -> tuple[str, dict[str, Any]]:
    """Qwen3-VL."""
    text = _text(shape, head_dim=shape.head_dim)
    text["rope_parameters"]["mrope_interleaved"] = True
    return "Qwen3VLForConditionalGeneration", _qwen(shape, _qwen3_tower(shape), text)


def qwen3vlmoe(shape: Shape) -> tuple[str, dict[str, Any]]:
    """Qwen3-VL with a mixture of experts."""
    _, config = qwen3vl(shape)
    config["text_config"] |= {
        "num_experts": shape.n_expert, "num_experts_per_tok": shape.n_expert_used, "moe_intermediate_size": shape.n_ff_expert,
    }  # fmt: skip
    return "Qwen3VLMoeForConditionalGeneration", config


MODELS: dict[str, Callable[[Shape], tuple[str, dict[str, Any]]]] = {
    "Qwen2_5_VLForConditionalGeneration": qwen25vl,
    "Qwen2_5OmniThinkerForConditionalGeneration": qwen25omni,
    "Qwen2_5OmniModel": qwen25omni,
    "Qwen3VLForConditionalGeneration": qwen3vl,
    "Qwen3VLMoeForConditionalGeneration": qwen3vlmoe,
}
_QWEN2 = {"eps": 1e-12}  # llama.cpp's qwen2vl does not read it
_FIELDS: dict[str, dict[str, Any]] = {
    "Qwen2_5_VLForConditionalGeneration": _QWEN2,
    "Qwen2_5OmniThinkerForConditionalGeneration": _QWEN2,
    "Qwen2_5OmniModel": _QWEN2,
    "Qwen3VLForConditionalGeneration": {"n_layer": 3, "n_head": 6},
    "Qwen3VLMoeForConditionalGeneration": {"n_layer": 3},
}


def _as_omni(folder: Path, shape: Shape) -> None:
    """The thinker as it stands in the whole: its tensors and settings one level down, with talker and vocoder beside it."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    spare = next(iter(tensors.values()))
    tensors = {f"thinker.{n}": t for n, t in tensors.items()}
    tensors |= {
        "talker.model.layers.0.mlp.up_proj.weight": spare.clone(),
        "token2wav.code2wav_dit_model.proj.weight": spare.clone(),
    }
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    path = folder / "config.json"
    thinker = json.loads(path.read_text())
    path.write_text(json.dumps({"architectures": [shape.architecture], "model_type": "qwen2_5_omni", "thinker_config": thinker}))


def _turn_experts(folder: Path, shape: Shape) -> None:
    """As Qwen published them; transformers reads both, and writes them the other way."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    tensors = {n: t.transpose(1, 2).contiguous() if ".experts." in n else t for n, t in tensors.items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


_ADJUST: dict[str, Callable[[Path, Shape], None]] = {
    "Qwen2_5OmniModel": _as_omni,
    "Qwen3VLMoeForConditionalGeneration": _turn_experts,
}


def tokenizer(architecture: str) -> Any:
    """The tokenizer an architecture comes with, tiny."""
    return tiny.tokenizer()


def write_tokenizer(folder: Path, architecture: str) -> None:
    """tokenizer.json and tokenizer_config.json."""
    tokens = tokenizer(architecture)
    tokens.save(str(folder / "tokenizer.json"))
    added = {str(tokens.token_to_id(s)): {"content": s, "special": True} for s in QWEN}
    settings = {
        "tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "bos_token": None,
        "add_bos_token": False, "added_tokens_decoder": added,
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
