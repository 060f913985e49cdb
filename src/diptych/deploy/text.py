"""What the header of a text half says of the rows it takes, so that halves can be compared before either is loaded."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from diptych.errors import FileError
from diptych.weights import Weights

# llama.cpp's architectures with four planes of positions, and those that have them where their file has rotary sections
# (llama_model_rope_type).
_MROPE = frozenset(("qwen2vl", "paddleocr", "qwen3vl", "qwen3vlmoe", "qwen35", "qwen35moe", "qwen4exp", "qwen3tts"))
_PERHAPS = frozenset(("glm4", "glm4moe", "hunyuan_vl"))


@dataclass(frozen=True)
class TextFacts:
    """A text half by its header: `n_embd` is the width of the rows it takes, `n_pos` its planes of positions."""

    name: str
    architecture: str
    n_embd: int
    n_pos: int
    n_layer: int
    n_ctx: int
    n_vocab: int
    types: dict[str, int]


def text_facts(weights: Weights) -> TextFacts:
    """Raises FileError when it is no text half."""
    metadata = weights.metadata
    architecture = str(metadata.get("general.architecture", ""))

    def number(key: str) -> int:
        value = metadata.get(f"{architecture}.{key}", 0)
        return int(value) if not isinstance(value, str | list) and getattr(value, "ndim", 0) == 0 else 0

    n_embd = number("embedding_length")
    if not n_embd or architecture == "clip":
        raise FileError(f"it holds {architecture or 'no known model'!r} and no text half; name a text GGUF")
    return TextFacts(
        str(metadata.get("general.name", "")),
        architecture,
        n_embd * (1 + number("n_deepstack_layers")),
        4 if architecture in _MROPE or (architecture in _PERHAPS and _has_sections(metadata, architecture)) else 1,
        number("block_count"),
        number("context_length"),
        len(metadata.get("tokenizer.ggml.tokens", ())),
        dict(Counter(t.type.name for t in weights.tensors.values())),
    )


def _has_sections(metadata: Any, architecture: str) -> bool:  # noqa: ANN401
    sections = metadata.get(f"{architecture}.rope.dimension_sections")
    return sections is not None and len(sections) > 1 and sections[0] > 0 and sections[1] > 0
