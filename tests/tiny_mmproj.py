"""Tiny random mmproj files of families that Diptych has no file for, as llama.cpp's converter names things."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

import text_half
import tiny
from diptych.weights import Weights, open_gguf, write_gguf

N_OUT = 128  # the width of `tiny.Qwen2VL`'s text half
N_EMBD, N_FF, N_LAYER = 64, 96, 2
_STRONG = np.float32(4)  # on the text half's matrices, so that answers depend on what is seen
Shapes = Mapping[str, tuple[int, ...]]


def text(path: Path, architecture: str, *special: str) -> Path:
    """A tiny text half to go with them (`qwen2`: one plane of positions, `qwen2vl`: four), with special tokens of its own."""
    shape = tiny.Qwen2VL()
    tensors = {name: array * (_STRONG if array.ndim > 1 else 1) for name, array in text_half.random(shape).items()}
    made = open_gguf(text_half.write_text(path.with_suffix(".plain"), shape, tensors, architecture))
    tokens, kinds = list(made.metadata["tokenizer.ggml.tokens"]), list(made.metadata["tokenizer.ggml.token_type"])
    for i, name in enumerate(special, start=len(tokens) - len(special)):
        tokens[i], kinds[i] = name, gguf.TokenType.CONTROL
    own = {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": [int(k) for k in kinds]}
    write_gguf(path, Weights({**made.metadata, **own}, made.tensors))
    return path


def gemma3(path: Path, n_out: int = N_OUT) -> Path:
    """A picture of any size becomes 112 × 112 pixels and 16 rows, which all see each other."""
    own = {"mm.input_projection.weight": (N_EMBD, n_out), "mm.soft_emb_norm.weight": (N_EMBD,)}
    return write(path, "gemma3", {**vit(8 * 8), **own}, {**vision(112, n_out), "clip.vision.projector.scale_factor": 2})


def idefics3(path: Path, n_out: int = N_OUT) -> Path:
    """A picture becomes tiles of 56 × 56 pixels, with tokens between them, and 4 rows each."""
    own = {"mm.model.fc.weight": (n_out, 4 * N_EMBD)}
    more = {"clip.vision.projector.scale_factor": 2, "clip.vision.preproc_image_size": 112}
    return write(path, "idefics3", {**vit(4 * 4), **own}, {**vision(56, n_out), **more})


def hunyuanvl(path: Path, n_out: int = N_OUT) -> Path:
    """A picture of h × w rows has a row more at the end of each line, and one at either end; the fourth plane counts pictures."""
    own = {
        "mm.0.weight": (N_EMBD, N_EMBD, 2, 2), "mm.0.bias": (N_EMBD,), "mm.2.weight": (N_FF, N_EMBD, 1, 1), "mm.2.bias": (N_FF,),
        "mm.model.fc.weight": (n_out, N_FF), "mm.model.fc.bias": (n_out,), "mm.pre_norm.weight": (N_EMBD,),
        "mm.post_norm.weight": (n_out,), "mm.image_begin": (n_out,), "mm.image_end": (n_out,), "v.image_newline": (N_FF,),
    }  # fmt: skip
    more = {"clip.vision.image_min_pixels": 28 * 28, "clip.vision.image_max_pixels": 28 * 28 * 64}
    return write(path, "hunyuanvl", {**vit(8 * 8), **own}, {**vision(112, n_out), **more})


def ultravox(path: Path, n_out: int = N_OUT) -> Path:
    """Each 30 seconds of sound become 375 rows."""
    own = {
        "mm.a.mlp.1.weight": (N_FF, 4 * N_EMBD), "mm.a.mlp.2.weight": (n_out, N_FF // 2), "mm.a.norm_pre.weight": (4 * N_EMBD,),
        "mm.a.norm_mid.weight": (N_FF // 2,),
    }  # fmt: skip
    return write(path, "ultravox", {**whisper(), **own}, {**audio(n_out), "clip.audio.projector.stack_factor": 4})


def qwen2a(path: Path, n_out: int = N_OUT) -> Path:
    """Each 30 seconds of sound become 750 rows, between tokens of their own."""
    return write(path, "qwen2a", {**whisper(), "mm.a.fc.weight": (n_out, N_EMBD), "mm.a.fc.bias": (n_out,)}, audio(n_out))


def vision(image_size: int, n_out: int) -> dict[str, Any]:
    return {
        "clip.has_vision_encoder": True, "clip.use_gelu": True, "clip.vision.image_size": image_size,
        "clip.vision.patch_size": 14, "clip.vision.image_mean": [0.5] * 3, "clip.vision.image_std": [0.5] * 3,
        **encoder("vision", n_out),
    }  # fmt: skip


def audio(n_out: int) -> dict[str, Any]:
    return {"clip.has_audio_encoder": True, "clip.audio.num_mel_bins": 80, **encoder("audio", n_out)}


def encoder(side: str, n_out: int) -> dict[str, Any]:
    return {
        f"clip.{side}.embedding_length": N_EMBD, f"clip.{side}.feed_forward_length": N_FF, f"clip.{side}.block_count": N_LAYER,
        f"clip.{side}.attention.head_count": 4, f"clip.{side}.attention.layer_norm_epsilon": 1e-6,
        f"clip.{side}.projection_dim": n_out,
    }  # fmt: skip


def vit(n_patch: int) -> dict[str, tuple[int, ...]]:
    """A SigLIP tower for square pictures of `n_patch` patches."""
    own = {
        "v.patch_embd.weight": (N_EMBD, 3, 14, 14),
        "v.patch_embd.bias": (N_EMBD,),
        "v.position_embd.weight": (n_patch, N_EMBD),
    }
    return {**own, **norm("v.post_ln"), **blocks("v")}


def whisper() -> dict[str, tuple[int, ...]]:
    """Whisper's encoder for 80 mel bins; its keys have no bias."""
    own = {
        "a.conv1d.1.weight": (N_EMBD, 80, 3), "a.conv1d.1.bias": (N_EMBD, 1), "a.conv1d.2.weight": (N_EMBD, N_EMBD, 3),
        "a.conv1d.2.bias": (N_EMBD, 1), "a.position_embd.weight": (1500, N_EMBD),
    }  # fmt: skip
    made = {**own, **norm("a.post_ln"), **blocks("a")}
    return {name: shape for name, shape in made.items() if not name.endswith("attn_k.bias")}


def blocks(prefix: str) -> dict[str, tuple[int, ...]]:
    out: dict[str, tuple[int, ...]] = {}
    for i in range(N_LAYER):
        at = f"{prefix}.blk.{i}"
        for name in ("attn_q", "attn_k", "attn_v", "attn_out"):
            out |= {f"{at}.{name}.weight": (N_EMBD, N_EMBD), f"{at}.{name}.bias": (N_EMBD,)}
        out |= {f"{at}.ffn_up.weight": (N_FF, N_EMBD), f"{at}.ffn_up.bias": (N_FF,)}
        out |= {f"{at}.ffn_down.weight": (N_EMBD, N_FF), f"{at}.ffn_down.bias": (N_EMBD,)}
        out |= {**norm(f"{at}.ln1"), **norm(f"{at}.ln2")}
    return out


def norm(name: str) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (N_EMBD,), f"{name}.bias": (N_EMBD,)}


def write(path: Path, projector: str, shapes: Shapes, metadata: Mapping[str, Any]) -> Path:
    """A file with random tensors; norms about one. Convolutions are f16, as ggml wants them."""
    rng = np.random.default_rng(len(projector))
    writer = gguf.GGUFWriter(path, "clip")
    writer.add_string("clip.projector_type", projector)
    for key, value in metadata.items():
        adders = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, list: writer.add_array}
        adders[type(value)](key, value)
    for name, shape in shapes.items():
        array = rng.standard_normal(shape) * 0.2 + ("norm" in name or ".ln" in name) * ("bias" not in name)
        writer.add_tensor(name, array.astype(np.float16 if len(shape) > 2 else np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
