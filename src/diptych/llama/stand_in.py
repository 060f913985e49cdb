"""A text half for libmtmd where there is none: it asks for one to prepare media, and runs none of it.

The stand-in has rows as wide as the mmproj's, its kind of positions, one layer of zeros, and a vocabulary of all bytes
and of the special tokens that libmtmd sets around media.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from diptych.llama.model import TextModel
from diptych.options import Options
from diptych.weights import Weights, write_gguf
from diptych.weights.tensor import in_memory

# What libmtmd looks up or tokenises around media (mtmd.cpp, init_vision and init_audio). Rows and columns of tiles are
# left out: as bytes they do as well, since nobody decodes them.
_SPECIAL = (
    "<image>", "</image>", "<slice>", "</slice>", "<img>", "</img>", "<im_start>", "<im_end>", "<patch_start>", "<patch_end>",
    "<patch_newline>", "<fake_token_around_image>", "<global-img>", "<start_of_image>", "<end_of_image>", "<vision>",
    "</vision>", "<|IMAGE_START|>", "<|IMAGE_END|>", "<|begin_of_image|>", "<|end_of_image|>", "<|im_start|>", "<|im_end|>",
    "<|image>", "<image|>", "<|image_start|>", "<|image_end|>", "<|img|>", "<|endofimg|>", "<|img_thumbnail|>",
    "<|media_begin|>", "<|media_start|>", "<|media_end|>", "<|vision_start|>", "<|vision_end|>", "[IMG_END]",
    "<｜hy_place▁holder▁no▁100｜>", "<｜hy_place▁holder▁no▁101｜>", "]<]start of image[>[", "]<]end of image[>[",
    "<sound>", "[BEGIN_AUDIO]", "<|audio>", "<audio|>", "<|audio_bos|>", "<|audio_eos|>", "<|audio_start|>", "<|audio_end|>",
    "<|audio_comp_start|>", "<|audio_comp_end|>", "<|mimo_audio_start|>", "<|mimo_audio_end|>", "\n\n",
)  # fmt: skip
_UNKNOWN, _CONTROL, _BYTE = 2, 3, 6  # llama_token_type
_N_HEAD_EMBD = 32  # any width that four sections of rotary frequencies fit in


def stand_in(n_embd: int, n_pos: int) -> TextModel:
    """A text half that takes rows of width `n_embd` at `n_pos` planes of positions, written, loaded and removed again."""
    arch = "qwen3vl" if n_pos == 4 else "qwen3"
    with tempfile.TemporaryDirectory(prefix="diptych-") as folder:
        file = Path(folder) / "stand-in.gguf"
        write_gguf(file, _weights(arch, n_embd))
        return TextModel.load(file, Options(n_gpu_layers=0, mmap=False))


def _weights(arch: str, n_embd: int) -> Weights:
    d, tokens = _N_HEAD_EMBD, ["<unk>", *_SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
    shapes = {
        "token_embd": (len(tokens), n_embd), "output_norm": (n_embd,),
        "blk.0.attn_norm": (n_embd,), "blk.0.attn_q": (d, n_embd), "blk.0.attn_k": (d, n_embd), "blk.0.attn_v": (d, n_embd),
        "blk.0.attn_output": (n_embd, d), "blk.0.attn_q_norm": (d,), "blk.0.attn_k_norm": (d,), "blk.0.ffn_norm": (n_embd,),
        "blk.0.ffn_gate": (1, n_embd), "blk.0.ffn_up": (1, n_embd), "blk.0.ffn_down": (n_embd, 1),
    }  # fmt: skip
    tensors = [in_memory(f"{name}.weight", np.zeros(shape, np.float32)) for name, shape in shapes.items()]
    metadata: dict[str, Any] = {
        "general.architecture": arch,
        f"{arch}.context_length": 32,
        f"{arch}.embedding_length": n_embd,
        f"{arch}.block_count": 1,
        f"{arch}.feed_forward_length": 1,
        f"{arch}.attention.head_count": 1,
        f"{arch}.attention.head_count_kv": 1,
        f"{arch}.attention.key_length": d,
        f"{arch}.attention.value_length": d,
        f"{arch}.attention.layer_norm_rms_epsilon": 1e-6,
        f"{arch}.rope.dimension_sections": [4, 4, 4, 4],
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [0.0] * len(tokens),
        "tokenizer.ggml.token_type": [_UNKNOWN] + [_CONTROL] * len(_SPECIAL) + [_BYTE] * 256,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.eos_token_id": tokens.index("<|im_end|>"),
        "tokenizer.ggml.add_space_prefix": False,
        "tokenizer.ggml.add_bos_token": False,
    }
    return Weights(metadata, {t.name: t for t in tensors})
