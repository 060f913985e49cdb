"""The `tokenizer.*` metadata of a byte-level BPE vocabulary, from tokenizer.json or vocab.json and merges.txt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from gguf import TokenType

from diptych.convert.checkpoint import Checkpoint, read_json
from diptych.errors import FileError

SPLITS = {
    "qwen2": (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"),
}  # llama.cpp's name of a pre-tokenizer → the expression it splits text with
# Hugging Face's name of a special token → GGUF's, misspelling included
_SPECIAL = {
    "bos": "bos", "eos": "eos", "unk": "unknown", "sep": "seperator", "pad": "padding", "cls": "cls", "mask": "mask",
}  # fmt: skip


@dataclass(frozen=True)
class _Vocab:
    ids: Mapping[str, int]
    merges: list[str]
    added: dict[int, tuple[str, bool]] = field(default_factory=dict)  # id → (text, special)
    splits: frozenset[str] = frozenset()  # expressions text is split with, where the file says
    post: Mapping[str, Any] = field(default_factory=dict)  # what puts tokens before and after a text


def vocabulary(checkpoint: Checkpoint, n_vocab: int, pre: str, special: Mapping[str, str] = {}) -> dict[str, Any]:
    """The metadata of a vocabulary with `n_vocab` rows in the embedding table, split by the pre-tokenizer `pre`.

    Raises FileError when no file holds one, when it has more tokens than the table rows, or splits text in another way.
    """
    settings = read_json(checkpoint.folder / "tokenizer_config.json", {})
    try:
        return _vocabulary(checkpoint, settings, n_vocab, pre)
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise FileError(
            f"{checkpoint.folder}: the tokenizer's files are not as the tokenizers package writes them "
            f"({type(error).__name__}: {error}); download them again"
        ) from error


def _vocabulary(checkpoint: Checkpoint, settings: Mapping[str, Any], n_vocab: int, pre: str) -> dict[str, Any]:
    vocab = _read(checkpoint.folder)
    _take_added(vocab.added, checkpoint.folder, settings)
    if other := vocab.splits - {SPLITS[pre]}:
        raise FileError(f"{checkpoint.folder / 'tokenizer.json'} splits text with {min(other)!r}, and {pre}'s way is expected")
    tokens, types = _tokens(vocab, n_vocab, checkpoint.folder)
    ids = {**vocab.ids, **{text: i for i, (text, _) in vocab.added.items()}}
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": vocab.merges,
        **_special(checkpoint, settings, ids, n_vocab),
        **_affixes(vocab.post, settings),
        **_templates(checkpoint.folder, settings),
    }


def _read(folder: Path) -> _Vocab:
    """tokenizer.json, or the pair of older files when it is missing or of a kind that is not known."""
    path = folder / "tokenizer.json"
    whole = read_json(path, {})
    model = whole.get("model") or {}
    pair = folder / "vocab.json", folder / "merges.txt"
    if model.get("type", "BPE") == "BPE" and model.get("vocab") and model.get("merges") is not None:
        merges = [m if isinstance(m, str) else " ".join(part.replace(" ", "Ġ") for part in m) for m in model["merges"]]
        added = {int(t["id"]): (str(t["content"]), bool(t.get("special"))) for t in whole.get("added_tokens") or ()}
        splits = frozenset(_splits(whole.get("pre_tokenizer") or {}))
        return _Vocab(model["vocab"], merges, added, splits, whole.get("post_processor") or {})
    if all(p.is_file() for p in pair):
        return _Vocab(read_json(pair[0]), _merges(pair[1]))
    kind = f"has a {model.get('type')} model" if whole else "is missing"
    raise FileError(f"{path} {kind}, there is no {pair[0].name} with {pair[1].name} beside it, and a byte-level BPE is expected")


def _splits(pre_tokenizer: Mapping[str, Any]) -> Iterator[str]:
    for part in pre_tokenizer.get("pretokenizers") or [pre_tokenizer]:
        if part.get("type") == "Split":
            yield part["pattern"].get("Regex") or str(part["pattern"])
        elif part.get("type") != "ByteLevel" or part.get("use_regex", True):
            yield str(part.get("type"))


def _merges(path: Path) -> list[str]:
    try:
        lines = path.read_text("utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(f"cannot read {path}: {error}; download it again") from error
    return [line.rstrip("\r") for line in lines if line.strip() and not line.startswith("#version")]


def _take_added(added: dict[int, tuple[str, bool]], folder: Path, settings: Mapping[str, Any]) -> None:
    """Tokens that tokenizer_config.json and added_tokens.json add to those known already."""
    special = {str(t) for t in settings.get("additional_special_tokens") or ()}
    for i, token in (settings.get("added_tokens_decoder") or {}).items():
        added.setdefault(int(i), (token["content"], bool(token.get("special"))))
    for text, i in read_json(folder / "added_tokens.json", {}).items():
        added.setdefault(int(i), (text, text in special))


def _tokens(vocab: _Vocab, n_vocab: int, folder: Path) -> tuple[list[str], Any]:
    """The text and the type of each row; rows without a token are unused."""
    tokens = [f"[PAD{i}]" for i in range(n_vocab)]
    types = np.full(n_vocab, TokenType.UNUSED, np.int32)
    numbers = [*vocab.ids.values(), *vocab.added]
    if wrong := [i for i in (min(numbers), max(numbers)) if not 0 <= i < n_vocab]:
        raise FileError(
            f"{folder}: the vocabulary has the token {wrong[0]}, and the embedding table {n_vocab} rows; they are of two models"
        )
    for text, i in vocab.ids.items():
        tokens[i], types[i] = text, TokenType.NORMAL
    for i, (text, special) in vocab.added.items():
        control = special or (text.startswith("<|") and text.endswith("|>"))  # some models leave `special` out
        tokens[i], types[i] = text, TokenType.CONTROL if control else TokenType.USER_DEFINED
    return tokens, types


def _special(checkpoint: Checkpoint, settings: Mapping[str, Any], ids: Mapping[str, int], n_vocab: int) -> dict[str, int]:
    """Special tokens by their text in tokenizer_config.json, else by their number in config.json."""
    out = {}
    for kind, name in _SPECIAL.items():
        entry = settings.get(f"{kind}_token")
        text = entry.get("content") if isinstance(entry, dict) else entry
        number = checkpoint.config.get(f"{kind}_token_id")
        number = checkpoint.text_config.get(f"{kind}_token_id") if number is None else number
        number = number[0] if isinstance(number, list) and number else number
        token = ids.get(text, number) if isinstance(text, str) else number
        if isinstance(token, int) and 0 <= token < n_vocab:
            out[f"tokenizer.ggml.{name}_token_id"] = token
    return out


def _affixes(post: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, bool]:
    """Whether a text gets a beginning and an end token: what tokenizer_config.json says, else the template that adds them."""
    add = {"bos": False, "eos": False}
    for part in post.get("processors") or [post]:
        single = part.get("single") or [{}]
        if part.get("type") == "TemplateProcessing" and len(single) > 1:
            add = {"bos": "SpecialToken" in single[0], "eos": "SpecialToken" in single[-1]}
    said = {kind: settings.get(f"add_{kind}_token") for kind in add}
    return {f"tokenizer.ggml.add_{k}_token": v if isinstance(v := said[k], bool) else add[k] for k in add}


def _templates(folder: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The chat template, the processor's before the tokenizer's, which may know no pictures; named ones beside it."""
    path = folder / "chat_template.jinja"
    found = read_json(folder / "chat_template.json", {}).get("chat_template") or settings.get("chat_template")
    if path.is_file():
        found = path.read_text("utf-8", "replace")
    if isinstance(found, dict):
        found = [{"name": name, "template": text} for name, text in found.items()]
    if not isinstance(found, list):
        return {"tokenizer.chat_template": found} if isinstance(found, str) else {}
    named = {t["name"]: t["template"] for t in found if isinstance(t, dict) and {"name", "template"} <= t.keys()}
    out = {"tokenizer.chat_template" + ("" if name == "default" else f".{name}"): text for name, text in named.items()}
    return {"tokenizer.chat_templates": [n for n in named if n != "default"], **out} if named.keys() - {"default"} else out
