"""A tiny random BERT: the transformers model, and its GGUF, which only embeds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import torch

N_CTX = 64
WORDS = ("hello", "world", "this", "is", "a", "test")
TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"▁{word}" for word in WORDS))  # ▁ begins a word, as llama.cpp has it
CLS, SEP = 2, 3


def bert(path: Path, pooling: gguf.PoolingType = gguf.PoolingType.CLS) -> Any:
    """Write a GGUF of random weights; the same model in transformers, with llama.cpp's GELU."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(TOKENS), hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128,
        max_position_embeddings=N_CTX, hidden_act="gelu", attn_implementation="eager",
    )  # fmt: skip
    model = BertModel(config, add_pooling_layer=False).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    for layer in model.encoder.layer:
        layer.intermediate.intermediate_act_fn = _Gelu()
    writer = gguf.GGUFWriter(path, "bert")
    _describe(writer, config, pooling)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.BERT, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        new = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert new, name
        writer.add_tensor(new, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


class _Gelu(torch.nn.Module):
    """As llama.cpp has it on a CPU: the tanh form out of a table of 16-bit numbers."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.gelu(x.half().float(), approximate="tanh").half().float()


def _describe(writer: gguf.GGUFWriter, config: Any, pooling: gguf.PoolingType) -> None:
    writer.add_context_length(N_CTX)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_layer_norm_eps(config.layer_norm_eps)
    writer.add_causal_attention(False)
    writer.add_pooling_type(pooling)
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(TOKENS)
    kinds = gguf.TokenType
    writer.add_token_types([kinds.NORMAL if token.startswith("▁") else kinds.CONTROL for token in TOKENS])
    writer.add_token_type_count(2)
    writer.add_bos_token_id(CLS)
    writer.add_eos_token_id(SEP)
    writer.add_unk_token_id(1)
    writer.add_sep_token_id(SEP)
    writer.add_pad_token_id(0)
    writer.add_mask_token_id(4)
