"""Tiny random checkpoints of every architecture whose text half converts, as people download them.

The text half is the point; the towers beside it are as small as transformers builds them, so that a picture's rows and
positions come from the model itself.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tiny_shape import MropeText
from tiny_tokenizer import tokenizer, write_tokenizer

N_SPARE = 10  # rows of the embedding table without a token, as real checkpoints have


@dataclass(frozen=True, kw_only=True)
class Shape(MropeText):
    """The sizes of a tiny model. The defaults avoid llama.cpp's known faults; see `SHAPES` for what differs by architecture."""

    architecture: str = field(kw_only=False)
    head_dim: int = 32
    n_expert: int = 6
    n_expert_used: int = 2
    n_ff_expert: int = 96
    n_deepstack: int = 2
    n_key: int = 2  # heads of linear attention
    n_value: int = 6
    interval: int = 4  # every fourth layer has full attention
    mixture: bool = False  # for the architectures that come with experts and without
    mtp: bool = True  # a layer of multi-token prediction behind the last, which transformers does not know


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
            if not p.is_floating_point() or "inv_freq" in name:
                continue
            if p.ndim > 1:
                p.normal_(0, 0.07)
            elif name.endswith("A_log"):
                p.uniform_(0.01, 0.2).log_()  # a head that forgets at once gives next to nothing, and its rounding shows
            elif name.endswith((".weight", ".bias", "dt_bias")):
                p.add_(torch.randn_like(p) * 0.1)
            elif name.endswith("e_score_correction_bias"):
                p.uniform_(0, 0.1)
        if image := getattr(model.config, "image_token_id", None):
            model.get_output_embeddings().weight[image] = 0  # an answer that says it would ask for a picture
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
    config["text_config"] |= _experts(shape)
    return "Qwen3VLMoeForConditionalGeneration", config


def paddleocr(shape: Shape) -> tuple[str, dict[str, Any]]:
    """PaddleOCR-VL."""
    tower = {
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 56,
        "patch_size": 14,
    }  # fmt: skip
    ids = tokenizer(shape.architecture).token_to_id
    ends = {"vision_start_token_id": ids("<|IMAGE_START|>"), "vision_end_token_id": ids("<|IMAGE_END|>")}
    text = _text(shape, head_dim=shape.head_dim, use_bias=False)
    return "PaddleOCRVLForConditionalGeneration", _whole(shape, tower, text, "<|IMAGE_PLACEHOLDER|>", "<|video_pad|>", **ends)


def qwen2(shape: Shape) -> tuple[str, dict[str, Any]]:
    """Qwen2, which is also the text half of dots.ocr."""
    config = _text(shape)
    del config["rope_parameters"]["mrope_section"]
    return "Qwen2ForCausalLM", config


def qwen3(shape: Shape) -> tuple[str, dict[str, Any]]:
    """Qwen3."""
    return "Qwen3ForCausalLM", {**qwen2(shape)[1], "head_dim": shape.head_dim}


def qwen3moe(shape: Shape) -> tuple[str, dict[str, Any]]:
    """Qwen3 with a mixture of experts."""
    return "Qwen3MoeForCausalLM", {**qwen3(shape)[1], **_experts(shape), "norm_topk_prob": True}


def _experts(shape: Shape) -> dict[str, Any]:
    return {
        "num_experts": shape.n_expert, "num_experts_per_tok": shape.n_expert_used, "moe_intermediate_size": shape.n_ff_expert,
    }  # fmt: skip


def qwen35(shape: Shape) -> tuple[str, dict[str, Any]]:
    """Qwen3.5: linear attention in three of four layers."""
    text = _text(
        shape, head_dim=shape.head_dim, linear_key_head_dim=32, linear_value_head_dim=32, linear_num_key_heads=shape.n_key,
        linear_num_value_heads=shape.n_value, layer_types=None, full_attention_interval=shape.interval,
    )  # fmt: skip
    text["rope_parameters"] |= {"mrope_interleaved": True, "partial_rotary_factor": 0.25}
    return "Qwen3_5ForConditionalGeneration", _qwen(shape, _qwen3_tower(shape), text)


def qwen35moe(shape: Shape) -> tuple[str, dict[str, Any]]:
    """Qwen3.5 with a mixture of experts."""
    _, config = qwen35(shape)
    config["text_config"] |= {**_experts(shape), "shared_expert_intermediate_size": 64}
    del config["text_config"]["intermediate_size"]
    return "Qwen3_5MoeForConditionalGeneration", config


def glm4v(shape: Shape) -> tuple[str, dict[str, Any]]:
    """GLM-4.1V."""
    text = _text(shape)
    text["rope_parameters"]["partial_rotary_factor"] = 0.5
    return "Glm4vForConditionalGeneration", _glm(shape, text)


def glm4vmoe(shape: Shape) -> tuple[str, dict[str, Any]]:
    """GLM-4.5V."""
    text = glm4v(shape)[1]["text_config"] | {
        "n_routed_experts": shape.n_expert, "num_experts_per_tok": shape.n_expert_used, "n_shared_experts": 2,
        "moe_intermediate_size": shape.n_ff_expert, "first_k_dense_replace": 1, "routed_scaling_factor": 1.5,
        "norm_topk_prob": True,
    }  # fmt: skip
    return "Glm4vMoeForConditionalGeneration", _glm(shape, text)


def glm46v(shape: Shape) -> tuple[str, dict[str, Any]]:
    """GLM-4.6V, which has the text half of either of the two before."""
    kind, of = ("glm4v_moe_text", glm4vmoe) if shape.mixture else ("glm4v_text", glm4v)
    config = of(shape)[1]
    config["text_config"]["model_type"], config["vision_config"]["model_type"] = kind, kind.replace("text", "vision")
    return "Glm46VForConditionalGeneration", config


def glmocr(shape: Shape) -> tuple[str, dict[str, Any]]:
    """GLM-OCR."""
    return "GlmOcrForConditionalGeneration", glm4v(shape)[1]


def _glm(shape: Shape, text: dict[str, Any]) -> dict[str, Any]:
    ids = tokenizer(shape.architecture).token_to_id
    ends = {"image_start_token_id": ids("<|begin_of_image|>"), "image_end_token_id": ids("<|end_of_image|>")}
    return _whole(shape, _tower(shape, image_size=56, patch_size=14), text, "<|image|>", "<|video|>", **ends)


MODELS: dict[str, Callable[[Shape], tuple[str, dict[str, Any]]]] = {
    "Qwen2_5_VLForConditionalGeneration": qwen25vl,
    "Qwen2_5OmniThinkerForConditionalGeneration": qwen25omni,
    "Qwen2_5OmniModel": qwen25omni,
    "Qwen3VLForConditionalGeneration": qwen3vl,
    "Qwen3VLMoeForConditionalGeneration": qwen3vlmoe,
    "Qwen3_5ForConditionalGeneration": qwen35,
    "Qwen3_5MoeForConditionalGeneration": qwen35moe,
    "PaddleOCRVLForConditionalGeneration": paddleocr,
    "DotsOCRForCausalLM": qwen2,
    "Glm4vForConditionalGeneration": glm4v,
    "Glm4vMoeForConditionalGeneration": glm4vmoe,
    "Glm46VForConditionalGeneration": glm46v,
    "GlmOcrForConditionalGeneration": glmocr,
    "Qwen2ForCausalLM": qwen2,
    "Qwen3ForCausalLM": qwen3,
    "Qwen3MoeForCausalLM": qwen3moe,
}
_QWEN2 = {"eps": 1e-12}  # llama.cpp's qwen2vl does not read it
_QWEN35 = {"n_layer": 4, "head_dim": 64, "sections": (3, 3, 2)}
_GLM = {"sections": (2, 3, 3)}
_FIELDS: dict[str, dict[str, Any]] = {
    "Qwen2_5_VLForConditionalGeneration": _QWEN2,
    "Qwen2_5OmniThinkerForConditionalGeneration": _QWEN2,
    "Qwen2_5OmniModel": _QWEN2,
    "Qwen3VLForConditionalGeneration": {"n_layer": 3, "n_head": 6},
    "Qwen3VLMoeForConditionalGeneration": {"n_layer": 3},
    "Qwen3_5ForConditionalGeneration": _QWEN35,
    "Qwen3_5MoeForConditionalGeneration": _QWEN35,
    "PaddleOCRVLForConditionalGeneration": {"n_head": 6},
    "Glm4vForConditionalGeneration": _GLM,
    "Glm4vMoeForConditionalGeneration": {**_GLM, "n_layer": 3},
    "Glm46VForConditionalGeneration": _GLM,
    "GlmOcrForConditionalGeneration": _GLM,
    "Qwen3ForCausalLM": {"n_head": 6},
}


def _rewrite(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]], **text_config: Any) -> None:
    """Change the tensors of a checkpoint, and settings of its text half."""
    from safetensors.torch import load_file, save_file

    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors", {"format": "pt"})
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config.get("text_config", config).update(text_config)
    path.write_text(json.dumps(config))


def _as_omni(folder: Path, shape: Shape) -> None:
    """The thinker as it stands in the whole: its tensors and settings one level down, with talker and vocoder beside it."""
    import torch

    spare = {"talker.model.layers.0.mlp.up_proj.weight": torch.ones(2, 2), "token2wav.dit.proj.weight": torch.ones(2, 2)}
    _rewrite(folder, lambda tensors: {**{f"thinker.{n}": t for n, t in tensors.items()}, **spare})
    path = folder / "config.json"
    thinker = json.loads(path.read_text())
    path.write_text(json.dumps({"architectures": [shape.architecture], "model_type": "qwen2_5_omni", "thinker_config": thinker}))


def _as_dots(folder: Path, shape: Shape) -> None:
    """dots.ocr: Qwen2 with the model's own name, and a tower beside it."""
    import torch

    _rewrite(folder, lambda tensors: {**tensors, "vision_tower.patch_embed.patchifier.proj.weight": torch.ones(2, 2)})
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"architectures": [shape.architecture]}))


def _turn_experts(folder: Path, shape: Shape) -> None:
    """As Qwen published them; transformers reads both, and writes them the other way."""
    _rewrite(folder, lambda ts: {n: t.transpose(1, 2).contiguous() if ".experts." in n else t for n, t in ts.items()})


def _last_layer(tensors: dict[str, Any], shape: Shape, prefix: str, names: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    """The tensors of the last layer and some more under another prefix, with other values."""
    import torch

    last = f"model.language_model.layers.{shape.n_layer - 1}."
    shapes = {prefix + n.removeprefix(last): t.shape for n, t in tensors.items() if n.startswith(last)} | names
    return {n: torch.randn(s) * 0.07 for n, s in shapes.items()}


def _add_qwen_mtp(folder: Path, shape: Shape) -> None:
    d = shape.hidden
    names = {"mtp.fc.weight": (d, 2 * d), "mtp.norm.weight": (d,)}
    names |= {f"mtp.pre_fc_norm_{x}.weight": (d,) for x in ("embedding", "hidden")}
    if shape.mtp:
        _rewrite(folder, lambda ts: ts | _last_layer(ts, shape, "mtp.layers.0.", names), mtp_num_hidden_layers=1)


def _add_glm_mtp(folder: Path, shape: Shape) -> None:
    d, n_vocab = shape.hidden, tokenizer(shape.architecture).get_vocab_size() + N_SPARE
    prefix = f"model.language_model.layers.{shape.n_layer}."
    sizes = {"eh_proj": (d, 2 * d), "enorm": (d,), "hnorm": (d,), "shared_head.norm": (d,)}
    sizes |= {"shared_head.head": (n_vocab, d), "embed_tokens": (n_vocab, d)}
    names = {f"{prefix}{n}.weight": s for n, s in sizes.items()}
    if shape.mtp:
        _rewrite(folder, lambda ts: ts | _last_layer(ts, shape, prefix, names), num_nextn_predict_layers=1)


_ADJUST: dict[str, Callable[[Path, Shape], None]] = {
    "Qwen2_5OmniModel": _as_omni,
    "Qwen3VLMoeForConditionalGeneration": _turn_experts,
    "Qwen3_5ForConditionalGeneration": _add_qwen_mtp,
    "Qwen3_5MoeForConditionalGeneration": _add_qwen_mtp,
    "DotsOCRForCausalLM": _as_dots,
    "Glm4vMoeForConditionalGeneration": _add_glm_mtp,
    "GlmOcrForConditionalGeneration": _add_glm_mtp,
}
