"""Tiny tokenizers of the kinds that models come with, written as the files that people download."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tiny

_GLM_SPECIAL = (
    "<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>", "<|system|>", "<|user|>", "<|assistant|>",
    "<|observation|>", "<|begin_of_image|>", "<|end_of_image|>", "<|image|>", "<|begin_of_video|>", "<|end_of_video|>",
    "<|video|>",
)  # fmt: skip
_ERNIE_SPECIAL = (
    "<unk>", "<s>", "</s>", "<|begin_of_sentence|>", "<|end_of_sentence|>", "<|IMAGE_PLACEHOLDER|>", "<|video_pad|>",
    "<|IMAGE_START|>", "<|IMAGE_END|>",
)  # fmt: skip
_QWEN2_SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPECIAL = {"qwen2": tiny.SPECIAL, "qwen35": tiny.SPECIAL, "glm4": _GLM_SPECIAL, "ernie": _ERNIE_SPECIAL}
SPLITS = {
    "qwen2": _QWEN2_SPLIT,
    "qwen35": _QWEN2_SPLIT.replace(r"?\p{L}+", r"?[\p{L}\p{M}]+").replace(r"[^\s\p{L}\p{N}]", r"[^\s\p{L}\p{M}\p{N}]"),
    "glm4": _QWEN2_SPLIT.replace(r"|\p{N}|", r"|\p{N}{1,3}|"),
}  # as the models' own tokenizer.json has them


def kind(architecture: str) -> str:
    """Which kind of tokenizer an architecture comes with."""
    kinds = {"Glm": "glm4", "Paddle": "ernie", "Qwen3_5": "qwen35"}
    return next((k for start, k in kinds.items() if architecture.startswith(start)), "qwen2")


def tokenizer(architecture: str) -> Any:
    """A tokenizer of that kind, tiny."""
    which = kind(architecture)
    return sentencepiece_like() if which == "ernie" else byte_level(which)


def byte_level(which: str, *, ignore_merges: bool | None = None) -> Any:
    """A byte-level BPE with a model's own split; GLM's takes a word that is a token as it is."""
    from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers

    made = tiny.tokenizer()
    data = json.loads(made.to_str())["model"]
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in data["merges"]]
    merges += [("à", "¤"), ("à¤", "¹"), ("à¤", "¿"), ("à¤¹", "à¤¿")]  # हि: a letter and a mark, which some splits part
    # "Ġinn" is a token that no merges lead to: whether they are asked first shows
    pieces = [*data["vocab"], *("".join(m) for m in merges[-4:]), "Ġinn"]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    alone = which == "glm4" if ignore_merges is None else ignore_merges
    out = Tokenizer(models.BPE(vocab, merges, ignore_merges=alone))
    out.normalizer, out.decoder = (None if which == "glm4" else made.normalizer), made.decoder
    out.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLITS[which]), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    out.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in SPECIAL[which]])
    return out


def sentencepiece_like(*, prefix: bool = False) -> Any:
    """A BPE over characters that falls back to bytes, as LlamaTokenizerFast writes those made from sentencepiece models.

    `prefix`: a space is put before the text.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

    words = ["th", "the", "▁the", "in", "er", "us", "user", "▁user", "as", "▁▁", "▁▁▁▁", "12", "日本", "▁a", "use", "ins"]
    singles = sorted({c for w in words for c in w} | set("abcdefghijklmnopqrstuvwxyzABCDE0123456789.,:;-'\"<>|_é語"))
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *words, *singles]
    vocab = {p: i for i, p in enumerate(pieces)}
    merges = [(w[:k], w[k:]) for w in words for k in range(1, len(w)) if w[:k] in vocab and w[k:] in vocab]
    out = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    out.normalizer = normalizers.Sequence([*([normalizers.Prepend("▁")] * prefix), normalizers.Replace(" ", "▁")])
    out.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    out.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in _ERNIE_SPECIAL])
    return out


def write_tokenizer(folder: Path, architecture: str) -> None:
    """tokenizer.json and tokenizer_config.json."""
    tokens, which = tokenizer(architecture), kind(architecture)
    tokens.save(str(folder / "tokenizer.json"))
    added = {str(tokens.token_to_id(s)): {"content": s, "special": True} for s in SPECIAL[which]}
    special: dict[str, dict[str, Any]] = {
        "glm4": {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"},
        "ernie": {
            "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>", "add_prefix_space": False,
            "cls_token": "<|begin_of_sentence|>", "sep_token": "<|end_of_sentence|>",
        },
    }  # fmt: skip
    qwen = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "bos_token": None, "add_bos_token": False}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **special.get(which, qwen), "added_tokens_decoder": added}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
