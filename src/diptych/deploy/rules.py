"""What SMT does with pictures by the architecture that a configuration names: sizes, values, positions, boundaries.

A rule holds for names that contain one of its words, whatever their case. Where SMT spells a model in one table and
forgets it in another, the rule has both: `qwen2_vl` has positions and boundaries here as `qwen2vl` has.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from diptych.deploy.deployment import Size

_QWEN = "<|vision_start|>", "<|vision_end|>"
_QWEN_PLACES = "<|vision_start|><|image_pad|><|vision_end|>", "<|image_pad|>"


@dataclass(frozen=True)
class Rule:
    """How pictures go in for some architectures.

    `values`: levels 0 to 255, shares of 1, or normalised by mean and deviation. `places` is what chat templates print
    for a picture. `deepstack`: a graph may have several outputs, joined for each token.
    """

    words: tuple[str, ...]
    size: Size | None = None
    values: Literal["levels", "shares", "normalised"] = "levels"
    n_pos: int = 1
    around: tuple[str, str] = ("", "")
    places: tuple[str, ...] = ("<image>",)
    deepstack: bool = False


_RULES = (
    Rule(("qwen2vl", "qwen2_vl"), None, "normalised", 4, _QWEN, _QWEN_PLACES),
    Rule(("qwen2_5_vl", "qwen25vl"), None, "levels", 4, _QWEN, _QWEN_PLACES),
    Rule(("qwen3vl", "qwen3_vl"), (768, 768), "levels", 4, _QWEN, _QWEN_PLACES, deepstack=True),
    Rule(("llavaqwen2", "fastvlm"), (512, 512), "shares"),
    Rule(("minicpmv", "minicpm_v", "minicpm-v"), (448, 448), "normalised", places=("(<image>./</image>)", "<image>")),
    Rule(
        ("paddleocr",), None, "normalised", 4, ("<|IMAGE_START|>", "<|IMAGE_END|>"),
        ("<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>",),
    ),
    Rule(
        ("glm4v",), None, "levels", 4, ("<|begin_of_image|>", "<|end_of_image|>"),
        ("<|begin_of_image|><|image|><|end_of_image|>",),
    ),
    Rule(("youtuvl",), None, "levels", 1, _QWEN, _QWEN_PLACES),
    Rule(("llama4",), around=("<|image_start|>", "<|image_end|>"), places=("<|image|>",)),
    Rule(("lfm2",), around=("<|image_start|>", "<|image_end|>")),
    Rule(("gemma3",), around=("<start_of_image>", "<end_of_image>"), places=("<start_of_image>",)),
    Rule(("internvl",), around=("<img>", "</img>")),
    Rule(("lightonocr",), around=("<|im_start|>", "<|im_end|>")),
    Rule(()),  # every other
)  # fmt: skip
_ALIASES = {"Qwen3_5ForConditionalGeneration": "Qwen3VL"}


def rule_for(architecture: str) -> Rule:
    """The rule of an architecture; the last one fits all."""
    name = _ALIASES.get(architecture, architecture).lower()
    return next(rule for rule in _RULES if not rule.words or any(word in name for word in rule.words))
