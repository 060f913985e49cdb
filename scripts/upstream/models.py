"""Tiny models of random weights in the place of those that llama.cpp's tests download."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf import PoolingType, TokenType
from numpy.typing import NDArray

import splitting
import tiny_mmproj
from diptych.weights import Weights, open_gguf, write_gguf
from diptych.weights.tensor import in_memory
from upstream import vocabulary

N_FF, N_LAYER, N_HEAD = 96, 2, 4
N_EMBD = 64
N_EMBD_SEEING = 128  # of the text half that has a media half
N_CTX, N_CTX_BERT = 8192, 512  # the most that a test asks for
_STEADY = 0  # a feature that no layer touches: it is the same behind every token, so that logits can lean on it
_NEVER = -20.0  # a logit that is never sampled

Shapes = dict[str, tuple[int, ...]]


def write(folder: Path, source: Path) -> Path:
    """Write the models, and a JSON file that tells which of them stands for which repository and file; its path.

    `source` is llama.cpp's, which holds the vocabulary that BERT's tests count with.
    """
    stories = llama(folder / "stories.gguf")
    parts = splitting.split(stories, folder / "split", 3)
    seeing = {"model": gemma3(folder / "gemma3.gguf"), "mmproj": mmproj(folder / "mmproj-gemma3.gguf")}
    embedding = bert(folder / "bert.gguf", source / "models" / "ggml-vocab-bert-bge.gguf")
    found = {
        "": {"model": stories},  # the router, of which some tests need no model at all
        "ggml-org/test-model-stories260K": {"model": stories},
        "ggml-org/test-model-stories260K-infill": {"model": stories},
        "ggml-org/stories15M_MOE": {"model": stories},
        "ggml-org/tinygemma3-GGUF": seeing,
        "ggml-org/models/bert-bge-small/ggml-model-f16.gguf": {"model": embedding},
        "ggml-org/models/jina-reranker-v1-tiny-en/ggml-model-f16.gguf": {"model": embedding},
        "ggml-org/models/tinyllamas/split/stories15M-q8_0-00001-of-00003.gguf": {"model": parts},
    }
    table = folder / "models.json"
    table.write_text(json.dumps({repo: {kind: str(path) for kind, path in files.items()} for repo, files in found.items()}))
    return table


def llama(path: Path) -> Path:
    """A Llama that writes words and letters, and never ends by itself."""
    words = vocabulary.metadata(vocabulary.STORIES, prefix=True)
    own = {"llama.rope.dimension_count": N_EMBD // N_HEAD}
    return _generating(path, "llama", N_EMBD, words, own, {})


def gemma3(path: Path) -> Path:
    """A text half that sees pictures: Gemma 3, whose media rows all see each other."""
    words = vocabulary.metadata(vocabulary.GEMMA, prefix=False, special=("<start_of_image>", "<end_of_image>"))
    n_head = N_EMBD_SEEING // N_HEAD
    own = {
        "gemma3.attention.key_length": n_head,
        "gemma3.attention.value_length": n_head,
        "gemma3.attention.sliding_window": 512,
    }
    more: Shapes = {}
    for i in range(N_LAYER):
        more |= {f"blk.{i}.{name}.weight": (N_EMBD_SEEING,) for name in ("post_attention_norm", "post_ffw_norm")}
        more |= {f"blk.{i}.attn_{x}_norm.weight": (n_head,) for x in "qk"}
    return _generating(path, "gemma3", N_EMBD_SEEING, words, own, more)


def mmproj(path: Path) -> Path:
    """16 × 16 patches, of which four become a row: two pictures must be more than 64 tokens."""
    shapes = {**tiny_mmproj.vit(16 * 16), "mm.input_projection.weight": (64, N_EMBD_SEEING), "mm.soft_emb_norm.weight": (64,)}
    settings = {**tiny_mmproj.vision(16 * 14, N_EMBD_SEEING), "clip.vision.projector.scale_factor": 2}
    return tiny_mmproj.write(path, "gemma3", shapes, settings)


def bert(path: Path, vocabulary_of: Path) -> Path:
    """A model that only embeds, with the vocabulary of another file."""
    known = open_gguf(vocabulary_of).metadata
    words = {key: value for key, value in known.items() if key.startswith("tokenizer.")}
    shapes: Shapes = {
        "token_embd.weight": (len(words["tokenizer.ggml.tokens"]), N_EMBD),
        "token_types.weight": (2, N_EMBD),
        "position_embd.weight": (N_CTX_BERT, N_EMBD),
        **tiny_mmproj.norm("token_embd_norm"),
    }
    for i in range(N_LAYER):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            shapes |= {f"blk.{i}.{name}.weight": (N_EMBD, N_EMBD), f"blk.{i}.{name}.bias": (N_EMBD,)}
        shapes |= {f"blk.{i}.ffn_up.weight": (N_FF, N_EMBD), f"blk.{i}.ffn_up.bias": (N_FF,)}
        shapes |= {f"blk.{i}.ffn_down.weight": (N_EMBD, N_FF), f"blk.{i}.ffn_down.bias": (N_EMBD,)}
        shapes |= {**tiny_mmproj.norm(f"blk.{i}.attn_output_norm"), **tiny_mmproj.norm(f"blk.{i}.layer_output_norm")}
    own = {
        "bert.attention.layer_norm_epsilon": 1e-12,
        "bert.attention.causal": False,
        "bert.pooling_type": int(PoolingType.CLS),
    }
    return _write(path, {**_described("bert", N_EMBD, N_CTX_BERT), **own, **words}, _random(shapes))


def _generating(path: Path, architecture: str, n_embd: int, words: dict[str, Any], own: dict[str, Any], more: Shapes) -> Path:
    """Random weights behind which no token is ever chosen that is no text."""
    kinds = words["tokenizer.ggml.token_type"]
    shapes: Shapes = {
        "token_embd.weight": (len(kinds), n_embd),
        "output.weight": (len(kinds), n_embd),
        "output_norm.weight": (n_embd,),
    }
    for i in range(N_LAYER):
        layer = dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_output"), (n_embd, n_embd))
        layer |= {"ffn_gate": (N_FF, n_embd), "ffn_up": (N_FF, n_embd), "ffn_down": (n_embd, N_FF)}
        shapes |= {f"blk.{i}.{name}.weight": shape for name, shape in layer.items()}
        shapes |= {f"blk.{i}.{name}.weight": (n_embd,) for name in ("attn_norm", "ffn_norm")}
    arrays = _random(shapes | more)
    for name, array in arrays.items():
        if name.endswith(("attn_output.weight", "ffn_down.weight", "post_attention_norm.weight", "post_ffw_norm.weight")):
            array[_STEADY] = 0.0
    arrays["token_embd.weight"][:, _STEADY] = arrays["output_norm.weight"][_STEADY] = 1.0
    silent = [i for i, kind in enumerate(kinds) if kind != TokenType.NORMAL]
    arrays["output.weight"][:, _STEADY] = arrays["output.weight"][silent] = 0.0
    arrays["output.weight"][silent, _STEADY] = _NEVER
    heads = {f"{architecture}.attention.head_count_kv": N_HEAD, f"{architecture}.attention.layer_norm_rms_epsilon": 1e-5}
    return _write(path, {**_described(architecture, n_embd, N_CTX), **heads, **own, **words}, arrays)


def _described(architecture: str, n_embd: int, n_ctx: int) -> dict[str, Any]:
    sizes = {
        "context_length": n_ctx, "embedding_length": n_embd, "block_count": N_LAYER, "feed_forward_length": N_FF,
        "attention.head_count": N_HEAD,
    }  # fmt: skip
    return {"general.architecture": architecture, **{f"{architecture}.{name}": value for name, value in sizes.items()}}


def _random(shapes: Shapes) -> dict[str, NDArray[np.float32]]:
    """Values about 0, and about 1 for the weights of norms; strong at both ends, so that some words are likelier than others."""
    out = {}
    for i, (name, shape) in enumerate(shapes.items()):
        about = 1.0 if "norm" in name and name.endswith(".weight") else 0.0
        strength = 0.25 if name in ("token_embd.weight", "output.weight") else 0.15
        out[name] = (np.random.default_rng(i).standard_normal(shape) * strength + about).astype(np.float32)
    return out


def _write(path: Path, metadata: dict[str, Any], arrays: Mapping[str, NDArray[np.float32]]) -> Path:
    write_gguf(path, Weights(metadata, {name: in_memory(name, array) for name, array in arrays.items()}))
    return path
