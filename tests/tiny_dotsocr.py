"""Tiny random dots.ocr checkpoints: transformers has no such class, so the tensors are written by their published names."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import tiny
from tiny_shape import Text, Tower

SPECIAL = (
    "<|endoftext|>", "<|imgpad|>", "<|img|>", "<|endofimg|>", "<|systemprompt|>", "<|endofsystemprompt|>", "<|user|>",
    "<|endofuser|>", "<|assistant|>", "<|endofassistant|>",
)  # fmt: skip


N_SPARE = 10  # rows of the embedding table without a token, as real checkpoints have


@dataclass(frozen=True, kw_only=True)
class DotsOCR(Tower, Text):
    """The shape of a tiny dots.ocr."""

    v_ff: int = 96
    v_eps: float = 1e-5
    scale: float = 0.07  # spread of matrices


def tokenizer() -> Any:
    """Qwen2's, with the model's own special tokens behind."""
    tokens = tiny.tokenizer()
    tokens.add_special_tokens(list(SPECIAL[1:]))
    return tokens


def config(shape: DotsOCR) -> dict[str, Any]:
    """config.json as published, but for `auto_map`, which names the code beside it: the text half's settings at the top."""
    tokens = tokenizer()
    return {
        "architectures": ["DotsOCRForCausalLM"], "model_type": "dots_ocr",
        "attention_bias": True, "attention_dropout": 0.0, "hidden_act": "silu", "hidden_size": shape.hidden,
        "initializer_range": 0.02, "intermediate_size": shape.n_ff, "max_position_embeddings": 4096, "max_window_layers": 28,
        "num_attention_heads": shape.n_head, "num_hidden_layers": shape.n_layer, "num_key_value_heads": shape.n_head_kv,
        "rms_norm_eps": shape.eps, "rope_theta": shape.rope_theta, "sliding_window": 4096,
        "tie_word_embeddings": False, "torch_dtype": shape.dtype, "use_cache": True, "use_sliding_window": False,
        "vocab_size": tokens.get_vocab_size() + N_SPARE, "image_token_id": tokens.token_to_id("<|imgpad|>"),
        "video_token_id": tokens.token_to_id("<|video_pad|>"),
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
    n_vocab = config(shape)["vocab_size"]
    text: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (n_vocab, t), "model.norm.weight": (t,), "lm_head.weight": (n_vocab, t),
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
    """Write the checkpoint: config.json, safetensors, the processor's settings and the tokenizer."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    dtype = getattr(torch, shape.dtype)
    stored = {name: torch.from_numpy(values).to(dtype) for name, values in tensors(shape).items()}
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config(shape)))
    (folder / "preprocessor_config.json").write_text(json.dumps(processor(shape)))
    write_tokenizer(folder)
    return folder


def write_tokenizer(folder: Path) -> None:
    """The tokenizer, the processor's chat template, and what ends an answer, which only generation_config.json says."""
    tokens = tokenizer()
    tokens.save(str(folder / "tokenizer.json"))
    added = {str(tokens.token_to_id(s)): {"content": s, "special": True} for s in (*tiny.SPECIAL, *SPECIAL[1:])}
    settings = {
        "tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "bos_token": None,
        "add_bos_token": False, "added_tokens_decoder": added,
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "chat_template.jinja").write_text(chat_template())
    ends = [tokens.token_to_id(s) for s in ("<|endoftext|>", "<|endofassistant|>")]
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))


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


def tower(folder: Path) -> Any:
    """dots3-note's tower with the checkpoint's weights, no norms of queries and keys, and no experts: that is dots.ocr's."""
    import torch
    from safetensors.torch import load_file
    from transformers.models.dots3_note.configuration_dots3_note import Dots3NoteVisionConfig
    from transformers.models.dots3_note.modeling_dots3_note import Dots3NoteVisionModel

    vision = json.loads((folder / "config.json").read_text())["vision_config"]
    model = Dots3NoteVisionModel(
        Dots3NoteVisionConfig(
            hidden_size=vision["embed_dim"], num_hidden_layers=vision["num_hidden_layers"],
            num_attention_heads=vision["num_attention_heads"], intermediate_size=vision["intermediate_size"],
            rms_norm_eps=vision["rms_norm_eps"], patch_size=14, spatial_merge_size=2, adapter_in_dim=vision["embed_dim"],
            adapter_out_dim=vision["hidden_size"], adapter_merge_size=2,
            mlp_layer_types=["dense"] * vision["num_hidden_layers"],
        )
    )  # fmt: skip
    for block in model.blocks:
        block.attn.q_norm = block.attn.k_norm = torch.nn.Identity()
    named = {"patchifier.": "", "post_trunk_norm": "norm", "fc1": "gate_proj", "fc2": "down_proj", "fc3": "up_proj"}
    state = {}
    for name, value in load_file(folder / "model.safetensors").items():
        if name.startswith("vision_tower."):
            for theirs, ours in named.items():
                name = name.replace(theirs, ours)
            state[name.removeprefix("vision_tower.")] = value.float()
    model.load_state_dict(state)
    return model.eval()


def model(folder: Path) -> Any:
    """The whole of it in transformers: Qwen2 with the rows of `tower` in the place of the picture's tokens."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    class Whole(Qwen2ForCausalLM):
        def forward(self, input_ids: Any, pixel_values: Any = None, image_grid_thw: Any = None, **others: Any) -> Any:
            embedded = self.get_input_embeddings()(input_ids)
            if pixel_values is not None and input_ids.shape[1] > 1:  # not in the steps behind the prompt
                rows = self.tower(pixel_values, grid_thw=image_grid_thw).pooler_output
                embedded = embedded.masked_scatter((input_ids == self.config.image_token_id)[..., None], rows)
            return super().forward(inputs_embeds=embedded, **others)

    settings = json.loads((folder / "config.json").read_text())
    config = Qwen2Config(**{k: v for k, v in settings.items() if k not in ("vision_config", "architectures")})
    made = Whole.from_pretrained(folder, config=config, dtype=torch.float32).eval()
    made.tower = tower(folder)
    return made
