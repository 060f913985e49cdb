"""The `tokenizer.*` metadata of a vocabulary, from tokenizer.json or vocab.json and merges.txt.

Two kinds: a BPE over bytes (`gpt2` in GGUF), and one over characters that falls back to bytes, as sentencepiece makes
them (`llama`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from gguf import TokenType
from numpy.typing import NDArray

from diptych.convert.checkpoint import Checkpoint, read_json
from diptych.errors import FileError

_QWEN2 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_QWEN35 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
_GLM4 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PRE = {
    (_QWEN2, False): "qwen2",
    (_QWEN35, False): "qwen35",
    (_GLM4, True): "glm4",
    (_GLM4, False): "chatglm-bpe",
}  # the expression text is split with, whether a whole piece that is a token is taken as it is → llama.cpp's name
# Hugging Face's name of a special token → GGUF's, misspelling included
_SPECIAL = {
    "bos": "bos", "eos": "eos", "unk": "unknown", "sep": "seperator", "pad": "padding", "cls": "cls", "mask": "mask",
}  # fmt: skip
# What llama.cpp knows to end an answer by its text (llama-vocab.cpp)
_ENDS = {
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|calls|>", "<|flush|>", "<end_of_turn>", "<|endoftext|>",
    "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>", "<end_of_utterance>", "<eos>", "<turn|>",
    "<|tool_response>", "<｜end▁of▁sentence｜>", "[e~[",
}  # fmt: skip
_ADDED, _UNUSED = -1000.0, -10000.0  # scores of tokens that no merge leads to, as llama.cpp's converter has them


@dataclass(frozen=True)
class _Vocab:
    ids: Mapping[str, int]
    merges: Sequence[tuple[str, str]]
    added: dict[int, tuple[str, bool]] = field(default_factory=dict)  # id → (text, special)
    splits: frozenset[str] = frozenset()  # expressions text is split with, where the file says
    post: Mapping[str, Any] = field(default_factory=dict)  # what puts tokens before and after a text
    ignore_merges: bool = False  # a piece of text that is a token is taken as it is
    byte_fallback: bool = False  # over characters, with a token for each byte
    prefix: bool = False  # a space is put before a text


def vocabulary(checkpoint: Checkpoint, n_vocab: int, pre: str, special: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The metadata of a vocabulary with `n_vocab` rows in the embedding table.

    `pre` is how text is split where no file says, by llama.cpp's name; `special` are tokens that no file names, GGUF's
    name → text. Raises FileError when no file holds a vocabulary, when it has more tokens than the table rows, or splits
    text in a way that llama.cpp does not.
    """
    settings = read_json(checkpoint.folder / "tokenizer_config.json", {})
    try:
        return _vocabulary(checkpoint, settings, n_vocab, pre, special or {})
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise FileError(
            f"{checkpoint.folder}: the tokenizer's files are not as the tokenizers package writes them "
            f"({type(error).__name__}: {error}); download them again"
        ) from error


def _vocabulary(
    checkpoint: Checkpoint, settings: Mapping[str, Any], n_vocab: int, pre: str, special: Mapping[str, str]
) -> dict[str, Any]:
    vocab = _read(checkpoint.folder)
    _take_added(vocab.added, checkpoint.folder, settings)
    tokens, types = _tokens(vocab, n_vocab, checkpoint.folder)
    ids = {**vocab.ids, **{text: i for i, (text, _) in vocab.added.items()}}
    named = {f"tokenizer.ggml.{name}_token_id": ids[text] for name, text in special.items() if text in ids}
    named = {**_special(checkpoint, settings, ids, n_vocab), **named}
    return {
        **(_characters(vocab, settings, types) if vocab.byte_fallback else _bytes(vocab, pre, checkpoint.folder)),
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        **named,
        **_ends(checkpoint.folder, tokens, named),
        **_affixes(vocab.post, settings),
        **_templates(checkpoint.folder, settings),
    }


def _bytes(vocab: _Vocab, pre: str, folder: Path) -> dict[str, Any]:
    """A BPE over bytes: how text is split first, and the merges."""
    for split in sorted(vocab.splits):
        ways = {name for (known, _), name in PRE.items() if known == split}
        if not ways:
            known = ", ".join(PRE.values())
            raise FileError(f"{folder / 'tokenizer.json'} splits text with {split!r}, and the way of {known} is expected")
        pre = PRE.get((split, vocab.ignore_merges), min(ways))
    merges = [" ".join(part.replace(" ", "Ġ") for part in merge) for merge in vocab.merges]
    return {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": pre, "tokenizer.ggml.merges": merges}


def _characters(vocab: _Vocab, settings: Mapping[str, Any], types: NDArray[np.int32]) -> dict[str, Any]:
    """A BPE over characters: the score of each token, which stands for its place among the merges.

    sentencepiece scores the pieces 0, -1, -2, … in the order they were found, the single characters behind them.
    """
    rank: dict[str, int] = {}
    for i, (left, right) in enumerate(vocab.merges):
        rank.setdefault(left + right, i)
    scores = np.full(len(types), _UNUSED, np.float32)
    for text, i in vocab.ids.items():
        if re.fullmatch("<0x[0-9A-F]{2}>", text):
            types[i] = TokenType.BYTE
    pieces = [text for text, i in vocab.ids.items() if types[i] == TokenType.NORMAL]
    for place, text in enumerate(sorted(pieces, key=lambda t: (rank.get(t, len(vocab.merges)), vocab.ids[t]))):
        scores[vocab.ids[text]] = -place
    scores[types == TokenType.BYTE] = 0
    scores[list(vocab.added)] = _ADDED
    said = settings.get("add_prefix_space")
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.add_space_prefix": said if isinstance(said, bool) else vocab.prefix,
    }


def _read(folder: Path) -> _Vocab:
    """tokenizer.json, or the pair of older files when it is missing or of a kind that is not known."""
    path = folder / "tokenizer.json"
    whole = read_json(path, {})
    model = whole.get("model") or {}
    pair = folder / "vocab.json", folder / "merges.txt"
    if model.get("type", "BPE") == "BPE" and model.get("vocab") and model.get("merges") is not None:
        added = {int(t["id"]): (str(t["content"]), bool(t.get("special"))) for t in whole.get("added_tokens") or ()}
        fallback = bool(model.get("byte_fallback"))
        return _Vocab(
            model["vocab"],
            [_merge(m) for m in model["merges"]],
            added,
            frozenset(() if fallback else _splits(whole.get("pre_tokenizer") or {})),
            whole.get("post_processor") or {},
            bool(model.get("ignore_merges")),
            fallback,
            any(_prefixes(whole)),
        )
    if all(p.is_file() for p in pair):
        return _Vocab(read_json(pair[0]), _merges(pair[1]))
    kind = f"has a {model.get('type')} model" if whole else "is missing"
    raise FileError(f"{path} {kind}, there is no {pair[0].name} with {pair[1].name} beside it, and a BPE is expected")


def _merge(merge: str | Sequence[str]) -> tuple[str, str]:
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right


def _prefixes(whole: Mapping[str, Any]) -> Iterator[bool]:
    """Whether parts of a tokenizer put a space before the text."""
    for name, of in (("normalizer", "normalizers"), ("pre_tokenizer", "pretokenizers")):
        outer = whole.get(name) or {}
        for part in outer.get(of) or [outer]:
            yield part.get("type") == "Prepend" or (part.get("type") == "Metaspace" and part.get("prepend_scheme") != "never")


def _splits(pre_tokenizer: Mapping[str, Any]) -> Iterator[str]:
    for part in pre_tokenizer.get("pretokenizers") or [pre_tokenizer]:
        if part.get("type") == "Split":
            yield part["pattern"].get("Regex") or str(part["pattern"])
        elif part.get("type") != "ByteLevel" or part.get("use_regex", True):
            yield str(part.get("type"))


def _merges(path: Path) -> list[tuple[str, str]]:
    try:
        lines = path.read_text("utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(f"cannot read {path}: {error}; download it again") from error
    return [_merge(line.rstrip("\r")) for line in lines if line.strip() and not line.startswith("#version")]


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


def _ends(folder: Path, tokens: Sequence[str], named: Mapping[str, int]) -> dict[str, int]:
    """The tokens that end an answer by generation_config.json alone, in the places a GGUF has for more than one."""
    said = read_json(folder / "generation_config.json", {}).get("eos_token_id")
    ends = [i for i in (said if isinstance(said, list) else [said]) if type(i) is int and 0 <= i < len(tokens)]
    more = [i for i in ends if i not in named.values() and tokens[i] not in _ENDS]
    free = [key for key in ("tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id") if key not in named]
    return dict(zip(free, more, strict=False))


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
