"""A Qwen2-VL of random weights for benchmarks of both halves together: a text half of Qwen2-0.5B's shape, a small tower."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from measure import qwen2vl, write

N_LAYER, N_EMBD, N_FF, N_HEAD, N_KV, N_VOCAB = 24, 896, 4864, 14, 2, 151_936
TOWER_LAYERS, TOWER_EMBD, TOWER_HEADS = 8, 640, 8
CHATML = """
{%- for message in messages %}<|im_start|>{{ message['role'] }}
{% if message['content'] is string %}{{ message['content'] }}{% else %}
{%- for part in message['content'] %}
{%- if part['type'] == 'text' %}{{ part['text'] }}{% else %}<|vision_start|><|image_pad|><|vision_end|>{% endif %}
{%- endfor %}{% endif %}<|im_end|>
{% endfor %}<|im_start|>assistant
"""


def made(cache: Path) -> tuple[Path, Path]:
    """The text half (Q8_0, 0.5 GB) and the mmproj (f16), made if the cache has none."""
    text, mmproj = cache / "bench-text-q8_0.gguf", cache / "bench-mmproj.gguf"
    cache.mkdir(parents=True, exist_ok=True)
    if not mmproj.exists():
        write(mmproj, qwen2vl("serve", TOWER_LAYERS, TOWER_EMBD, TOWER_HEADS, N_EMBD))
    if not text.exists():
        from diptych.llama.quantize import quantize

        write_text(whole := cache / "bench-text-f16.gguf")
        quantize(whole, text, "Q8_0")
        whole.unlink()
    return text, mmproj


def write_text(path: Path) -> None:
    """The text half in f16, one tensor at a time. Its vocabulary is the reader's, filled up to Qwen2's size."""
    from gguf import GGMLQuantizationType

    from diptych import reader
    from diptych.weights import Tensor, Weights, open_gguf, write_gguf

    head = N_EMBD // N_HEAD
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (N_VOCAB, N_EMBD), "output_norm.weight": (N_EMBD,)}
    for i in range(N_LAYER):
        block = {
            "attn_norm": (N_EMBD,), "ffn_norm": (N_EMBD,), "attn_q": (N_EMBD, N_EMBD), "attn_k": (N_KV * head, N_EMBD),
            "attn_v": (N_KV * head, N_EMBD), "attn_output": (N_EMBD, N_EMBD), "ffn_gate": (N_FF, N_EMBD),
            "ffn_up": (N_FF, N_EMBD), "ffn_down": (N_EMBD, N_FF),
        }  # fmt: skip
        shapes |= {f"blk.{i}.{name}.weight": shape for name, shape in block.items()}
        shapes |= {f"blk.{i}.attn_{n}.bias": block[f"attn_{n}"][:1] for n in "qkv"}
    rng = np.random.default_rng(1)

    def values(name: str, shape: tuple[int, ...]) -> np.ndarray:
        if len(shape) == 1:
            return np.full(shape, float("norm" in name), np.float32)
        return (rng.standard_normal(shape, np.float32) * shape[1] ** -0.5).astype(np.float16)

    tensors = {}
    for name, shape in shapes.items():
        kind = GGMLQuantizationType.F32 if len(shape) == 1 else GGMLQuantizationType.F16
        tensors[name] = Tensor(name, shape, kind, lambda name=name, shape=shape: values(name, shape))
    metadata: dict[str, Any] = dict(open_gguf(reader.FOLDER / "text.gguf").metadata)
    tokens, types = list(metadata["tokenizer.ggml.tokens"]), list(metadata["tokenizer.ggml.token_type"])
    fill = [f"<fill {i}>" for i in range(N_VOCAB - len(tokens))]
    for key in [k for k in metadata if k.startswith("general.sampling") or k == "general.file_type"]:
        del metadata[key]
    metadata |= {
        "qwen2vl.block_count": N_LAYER, "qwen2vl.context_length": 32768, "qwen2vl.embedding_length": N_EMBD,
        "qwen2vl.feed_forward_length": N_FF, "qwen2vl.attention.head_count": N_HEAD, "qwen2vl.attention.head_count_kv": N_KV,
        "qwen2vl.rope.freq_base": 1e6, "qwen2vl.rope.dimension_sections": [16, 24, 24, 0],
        "tokenizer.ggml.tokens": tokens + fill, "tokenizer.ggml.token_type": [int(t) for t in types] + [1] * len(fill),
        "tokenizer.chat_template": CHATML,
    }  # fmt: skip
    write_gguf(path, Weights(metadata, tensors))
