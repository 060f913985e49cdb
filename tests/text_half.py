"""Tiny Qwen2-VL text halves in llama.cpp, each with the transformers model it was made from, to compare them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

import tiny
from diptych import positions
from diptych.llama.context import Context
from diptych.llama.model import TextModel
from diptych.types import Batch, Grid, MediaChunk, Segment

N_VOCAB = 284  # of the tiny checkpoints: 274 tokens and ten spare rows


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture of random patches: what PyTorch takes, its merged grid (h, w), and the rows PyTorch's tower makes of it."""

    patches: NDArray[np.float32]
    grid: tuple[int, int]
    rows: NDArray[np.float32]


Part = list[int] | Picture


@dataclass(frozen=True)
class Pair:
    """The text half in llama.cpp, and the whole model in PyTorch. A prompt is a list of parts: tokens, or a picture."""

    text: TextModel
    torch: Any
    shape: tiny.Qwen2VL

    def picture(self, h: int, w: int, seed: int = 0) -> Picture:
        """A random picture of a merged grid of h × w."""
        import torch

        patches = np.random.default_rng(seed).standard_normal((4 * h * w, 3 * 2 * 14 * 14)).astype(np.float32)
        with torch.no_grad():
            rows = self.torch.model.visual(torch.from_numpy(patches), grid_thw=torch.tensor([[1, 2 * h, 2 * w]])).pooler_output
        return Picture(patches, (h, w), rows.numpy())

    def tokens(self, n: int, seed: int = 0) -> list[int]:
        """Random plain tokens."""
        return np.random.default_rng(seed).integers(0, 256, n).tolist()

    def reference(self, parts: Sequence[Part]) -> NDArray[np.float32]:
        """(n, n_vocab) logits of every row of a prompt, in transformers from end to end, positions included."""
        import torch

        image = self.torch.config.image_token_id
        ids = [t for p in parts for t in (p if isinstance(p, list) else [image] * len(p.rows))]
        given: dict[str, Any] = {"attention_mask": torch.ones((1, len(ids)), dtype=torch.long)}
        if pictures := [p for p in parts if isinstance(p, Picture)]:
            given["pixel_values"] = torch.from_numpy(np.concatenate([p.patches for p in pictures]))
            given["image_grid_thw"] = torch.tensor([[1, 2 * p.grid[0], 2 * p.grid[1]] for p in pictures])
            given["mm_token_type_ids"] = torch.tensor([[int(i == image) for i in ids]])
        with torch.no_grad():
            return self.torch(input_ids=torch.tensor([ids]), **given).logits[0].numpy()

    def greedy(self, parts: Sequence[Part], n: int) -> tuple[list[int], list[float]]:
        """`n` greedy tokens of transformers, and by how much each led the second."""
        parts, tokens, margins = list(parts), [], []
        for _ in range(n):
            second, first = np.sort(logits := self.reference([*parts, tokens])[-1])[-2:]
            tokens.append(int(logits.argmax()))
            margins.append(float(first - second))
        return tokens, margins

    def segments(self, parts: Sequence[Part], seq_id: int = 0, wants: bool = True) -> list[Segment]:
        """A prompt as segments of one row each, so that every row can be asked for its logits."""
        out, start, n_pos = [], 0, self.text.n_pos
        placed = positions.mrope if n_pos == 4 else positions.linear
        for part in parts:
            if isinstance(part, list):
                planes, start = positions.text(len(part), start, n_pos)
                rows = {"tokens": np.array(part, np.int32)}
            else:
                grid = Grid(1, *part.grid)
                planes, start = placed(MediaChunk("image", len(part.rows), grid, bytes(32), ()), start)
                rows = {"embeddings": part.rows}
            for i in range(planes.shape[1]):
                one = {name: value[i : i + 1] for name, value in rows.items()}
                out.append(Segment(seq_id, planes[:, i : i + 1], **one, wants_logits=wants))
        return out


def batches(segments: Sequence[Segment], n: int) -> list[Batch]:
    """Segments in order → batches of one kind and at most `n` rows."""
    out: list[list[Segment]] = []
    for segment in segments:
        same = out and (out[-1][0].tokens is None) == (segment.tokens is None)
        if not same or sum(s.n_rows for s in out[-1]) + segment.n_rows > n:
            out.append([])
        out[-1].append(segment)
    return [Batch(tuple(b)) for b in out]


def decode(context: Context, segments: Sequence[Segment], n: int | None = None) -> NDArray[np.float32]:
    """Decode segments in order; the logits of every row that asked for them."""
    out = []
    for batch in batches(segments, n or context.n_outputs):
        assert context.decode(batch)
        out += [context.logits(i) for i in range(sum(s.wants_logits for s in batch.segments))]
    return np.array(out)


class Maker:
    """Makes pairs from shapes, each once, and frees them."""

    def __init__(self, folders: pytest.TempPathFactory) -> None:
        self._folders = folders
        self._made: dict[tiny.Qwen2VL, Pair] = {}

    def make(self, **fields: Any) -> Pair:
        """The pair of `tiny.Qwen2VL(**fields)`."""
        import torch
        from transformers import Qwen2VLForConditionalGeneration

        shape = tiny.Qwen2VL(**fields)
        if shape not in self._made:
            torch.set_num_threads(1)
            folder = tiny.qwen2vl(self._folders.mktemp("tiny"), shape)
            model = Qwen2VLForConditionalGeneration.from_pretrained(folder, dtype="float32").eval()
            self._made[shape] = Pair(
                TextModel.load(write_text(folder / "text.gguf", shape, of_torch(model)), tiny.EXACT), model, shape
            )
        return self._made[shape]

    def close(self) -> None:
        """Free every text half."""
        for pair in self._made.values():
            pair.text.close()


def of_torch(model: Any) -> dict[str, NDArray[np.float32]]:
    """The text half of a PyTorch model by GGUF names, as the gguf package knows them."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3VL, 8)  # Qwen2-VL's names, and two norms more
    out = {}
    for name, tensor in model.state_dict().items():
        if "visual" in name or (name == "lm_head.weight" and model.config.tie_word_embeddings):
            continue
        plain = name if name == "lm_head.weight" else "model." + name.removeprefix("model.language_model.")
        new = names.get_name(plain, try_suffixes=(".weight", ".bias"))
        assert new, name
        out[new] = tensor.numpy().astype(np.float32)
    return out


def random(shape: tiny.Qwen2VL) -> dict[str, NDArray[np.float32]]:
    """Random weights of a shape by GGUF names, made without PyTorch."""
    rng, d, kv = np.random.default_rng(shape.seed), shape.hidden, shape.hidden * shape.n_head_kv // shape.n_head
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (N_VOCAB, d),
        "output.weight": (N_VOCAB, d),
        "output_norm.weight": (d,),
    }
    for i in range(shape.n_layer):
        layer: dict[str, tuple[int, ...]] = {"attn_norm.weight": (d,), "ffn_norm.weight": (d,), "attn_output.weight": (d, d)}
        layer |= {"ffn_gate.weight": (shape.n_ff, d), "ffn_up.weight": (shape.n_ff, d), "ffn_down.weight": (d, shape.n_ff)}
        for name, n in {"attn_q": d, "attn_k": kv, "attn_v": kv}.items():
            layer |= {f"{name}.weight": (n, d), f"{name}.bias": (n,)}
        shapes |= {f"blk.{i}.{name}": s for name, s in layer.items()}
    return {n: (rng.standard_normal(s) * 0.06 + ("norm" in n)).astype(np.float32) for n, s in shapes.items()}


def write_text(
    path: Path,
    shape: tiny.Qwen2VL,
    tensors: dict[str, NDArray[np.float32]],
    architecture: str = "qwen2vl",
    suppressed: Sequence[int] = (),
) -> Path:
    """A text GGUF in f32, with the tiny tokenizer."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(8192)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.n_layer)
    writer.add_feed_forward_length(shape.n_ff)
    writer.add_head_count(shape.n_head)
    writer.add_head_count_kv(shape.n_head_kv)
    writer.add_layer_norm_rms_eps(shape.eps)
    writer.add_rope_freq_base(shape.rope_theta)
    writer.add_rope_dimension_sections([*shape.sections, 0])
    _add_tokenizer(writer)
    if suppressed:
        writer.add_array("tokenizer.ggml.suppress_tokens", suppressed)
    for name, array in tensors.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_tokenizer(writer: gguf.GGUFWriter) -> None:
    data = json.loads(tiny.tokenizer().to_str())
    tokens = {i: t for t, i in data["model"]["vocab"].items()}
    special = {t["id"]: t["content"] for t in data["added_tokens"]}
    texts = [special.get(i, tokens.get(i, f"[PAD{i}]")) for i in range(N_VOCAB)]
    kinds = gguf.TokenType
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(texts)
    writer.add_token_types(
        [kinds.CONTROL if i in special else kinds.NORMAL if i in tokens else kinds.UNUSED for i in range(N_VOCAB)]
    )
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in data["model"]["merges"]])
    writer.add_eos_token_id(texts.index("<|im_end|>"))
    writer.add_pad_token_id(texts.index("<|endoftext|>"))
    writer.add_add_bos_token(False)
    writer.add_chat_template(tiny.CHAT_TEMPLATE)
