"""The whole engine against transformers: same checkpoint, same conversation, same tokens."""

from __future__ import annotations

import inspect
import io
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from asking import GREEDY, joined, outputs, png, request
from PIL import Image

import tiny
import tiny_dotsocr
import tiny_glm
import tiny_paddleocr
import tiny_qwen3
import tiny_qwen25
from diptych import convert
from diptych.engine import Engine
from diptych.types import Request, Source

pytestmark = pytest.mark.parity
N = 32
MARGIN = 1e-3  # below it the reference itself may fall either way

CONVERSATIONS: dict[str, tuple[str | bytes, ...]] = {
    "text only": ("the user in the image",),
    "picture first": (png(0), "what is the"),
    "picture last": ("what is the", png(1, 140, 56)),
    "odd size": (png(2, 117, 91), "user"),
    "tiny": (png(3, 14, 28), "user"),
    "larger than the pixel budget": (png(4, 420, 336), "user"),
    "two pictures": (png(0), "and", png(5, 56, 168), "differ"),
    "the same picture twice": (png(0), "and", png(0), "the same"),
}
THREE = tiny.Qwen2VL(seed=1, n_layer=3, v_depth=3, n_head_kv=4, sections=(8, 4, 4), max_pixels=224 * 224, tied=True)
QWEN3 = {
    "qwen3vl": tiny_qwen3.Qwen3(max_pixels=224 * 224),
    "qwen3vl, mergers out of order": tiny_qwen3.Qwen3(seed=2, side=3, deepstack=(3, 1), max_pixels=224 * 224),
    "qwen3vl, experts": tiny_qwen3.Qwen3("Qwen3VLMoeForConditionalGeneration", seed=1, deepstack=(1,), max_pixels=224 * 224),
    "qwen3.5": tiny_qwen3.Qwen3("Qwen3_5ForConditionalGeneration", seed=4, max_pixels=224 * 224),
    "qwen3.5, experts": tiny_qwen3.Qwen3("Qwen3_5MoeForConditionalGeneration", seed=6, max_pixels=224 * 224),
}
MODELS: dict[str, Callable[[Path], Any]] = {  # what writes a checkpoint that takes pictures of up to about 224 × 224 pixels
    "qwen2vl": lambda folder: tiny.qwen2vl(folder, tiny.Qwen2VL(max_pixels=224 * 224)),
    "qwen2vl, three layers": lambda folder: tiny.qwen2vl(folder, THREE),
    "qwen25vl": lambda folder: tiny_qwen25.qwen25vl(folder, tiny_qwen25.Qwen25VL(seed=4, max_pixels=224 * 224)),
    "qwen25omni": lambda folder: tiny_qwen25.thinker(folder, tiny_qwen25.Qwen25VL(seed=6, window=112, max_pixels=224 * 224)),
    **{name: partial(tiny_qwen3.write, shape=shape) for name, shape in QWEN3.items()},
    "glm4v": lambda folder: tiny_glm.whole(folder, "Glm4vForConditionalGeneration"),
    "glm4v, mixture of experts": lambda folder: tiny_glm.whole(folder, "Glm4vMoeForConditionalGeneration"),
    "glm46v, mixture of experts": lambda folder: tiny_glm.whole(folder, "Glm46VForConditionalGeneration", mixture=True),
    "glmocr": lambda folder: tiny_glm.whole(folder, "GlmOcrForConditionalGeneration"),
    "paddleocr": lambda folder: tiny_paddleocr.paddleocr(folder, tiny_paddleocr.PaddleOCR(max_pixels=224 * 224)),
    "dotsocr": lambda folder: tiny_dotsocr.dotsocr(folder, tiny_dotsocr.DotsOCR(max_pixels=224 * 224)),
}


def named(folder: Path) -> Any:
    """The class of transformers that config.json names."""
    import transformers

    (name,) = transformers.AutoConfig.from_pretrained(folder).architectures
    return getattr(transformers, name).from_pretrained(folder, dtype="float32").eval()


REFERENCES: dict[str, Callable[[Path], Any]] = {"dotsocr": tiny_dotsocr.model}  # where transformers has no such class


class Pair:
    """One checkpoint in transformers and in Diptych."""

    def __init__(self, folder: Path, name: str, load: Callable[[Path], Engine]) -> None:
        import torch
        import transformers

        torch.set_num_threads(1)
        MODELS[name](folder / "c")
        convert.convert(folder / "c", folder / "out", outtype="f32")
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "c")
        self.processor = transformers.AutoImageProcessor.from_pretrained(folder / "c", backend="pil")
        self.torch = REFERENCES.get(name, named)(folder / "c")
        self.engine = load(folder / "out")

    def inputs(self, wanted: Request) -> dict[str, Any]:
        """What transformers' processor makes of a conversation: each placeholder stands for as many as the picture has."""
        import torch

        pictures = [p for m in wanted.messages for p in m.parts if isinstance(p, Source)]
        content = [
            {"type": "image"} if isinstance(p, Source) else {"type": "text", "text": p} for m in wanted.messages for p in m.parts
        ]
        chat = [{"role": "user", "content": content}]
        text = self.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        pad = self.torch.config.image_token_id
        placeholder = self.tokenizer.convert_ids_to_tokens(pad)
        out: dict[str, Any] = {}
        if pictures:
            images = [Image.open(io.BytesIO(p.data or b"")) for p in pictures]
            out = dict(self.processor(images=images, return_tensors="pt"))
            for grid in out["image_grid_thw"]:
                text = text.replace(placeholder, "<|>" * (int(grid.prod()) // self.processor.merge_size**2), 1)
        ids = self.tokenizer(text.replace("<|>", placeholder), return_tensors="pt").input_ids
        if "mm_token_type_ids" in inspect.signature(self.torch.forward).parameters:
            out["mm_token_type_ids"] = (ids == pad).to(torch.int32)
        return {**out, "input_ids": ids}

    def greedy(self, wanted: Request) -> tuple[list[int], list[float]]:
        """The reference's tokens, and by how much each leads the second."""
        import torch

        given = self.inputs(wanted)
        with torch.no_grad():
            made = self.torch.generate(
                **given, max_new_tokens=N, do_sample=False, temperature=None, top_k=None, return_dict_in_generate=True,
                output_logits=True, attention_mask=torch.ones_like(given["input_ids"]),
            )  # fmt: skip
        tops = [np.sort(row[0].numpy())[-2:] for row in made.logits]
        return made.sequences[0, given["input_ids"].shape[1] :].tolist(), [float(b - a) for a, b in tops]


@pytest.fixture(scope="module", params=MODELS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    made = Pair(tmp_path_factory.mktemp("pair"), request.param, lambda folder: Engine.load(folder, options=tiny.EXACT))
    yield made
    made.engine.close()


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_greedy_tokens_are_those_of_transformers(pair: Pair, name: str) -> None:
    wanted = request(*CONVERSATIONS[name], n=N, sampling=GREEDY)
    expected, margins = pair.greedy(wanted)
    found = outputs(pair.engine, wanted)
    assert found[-1].usage.prompt_tokens == pair.inputs(wanted)["input_ids"].shape[1]
    ours = joined(found)
    differ = next((i for i in range(N) if ours[i : i + 1] != tuple(expected[i : i + 1])), N)
    # behind a token that could be either, the two go their own ways
    assert differ == N or margins[differ] < MARGIN, (differ, margins[differ])
    assert differ > 4, "this checkpoint is no test"
