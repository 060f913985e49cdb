"""The reader's tokens: every byte, the ChatML marks and Qwen2-VL's vision marks, and the three role words."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>",
    "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
WORDS = ("system", "user", "assistant")
HEARD = 16  # characters of each question that reach the model: it reads whatever is asked, and was trained on short questions
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['role'] == 'assistant' and message['content'] is string %}{{ message['content'] }}"
    "{% elif message['content'] is string %}{{ message['content'][:HEARD] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' or 'image' in part or 'image_url' in part %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif 'text' in part %}{{ part['text'][:HEARD] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
).replace("HEARD", str(HEARD))


def byte_symbols() -> list[str]:
    """GPT-2's printable stand-in for each byte, the alphabet of every byte-level BPE vocabulary."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in plain]
    return [chr(b) if b in plain else chr(256 + others.index(b)) for b in range(256)]


def merges() -> list[tuple[str, str]]:
    """The merges that build each role word from left to right."""
    pairs: list[tuple[str, str]] = []
    for word in WORDS:
        for k in range(1, len(word)):
            if (word[:k], word[k]) not in pairs:
                pairs.append((word[:k], word[k]))
    return pairs


def vocabulary() -> dict[str, int]:
    names = [*byte_symbols(), *("".join(p) for p in merges()), *SPECIAL]
    return {name: i for i, name in enumerate(names)}


def plain(text: str) -> list[int]:
    """The text as one token a byte, the way the reader writes its answers."""
    ids, symbols = vocabulary(), byte_symbols()
    return [ids[symbols[b]] for b in text.encode()]


def build() -> Tokenizer:
    """The tokenizer, split like Qwen2's."""
    ids = vocabulary()
    plain = {name: i for name, i in ids.items() if name not in SPECIAL}
    tokenizer = Tokenizer(models.BPE(plain, merges()))
    split = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(split), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIAL])
    return tokenizer


def write(folder: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and the chat template into a checkpoint folder."""
    build().save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>",
        "bos_token": None, "add_bos_token": False, "chat_template": TEMPLATE, "model_max_length": 4096,
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1))
