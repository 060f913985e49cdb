"""Any tiny text half in llama.cpp as Diptych converts it, with the transformers model of the same checkpoint beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import text_half
import tiny
import tiny_text
from diptych.convert import read_checkpoint, text
from diptych.llama.model import TextModel
from diptych.weights import write_gguf


@dataclass(frozen=True)
class TinyPair(text_half.Pair):
    """A pair of any architecture; `picture` runs the tower that the model in transformers has."""

    def picture(self, h: int, w: int, seed: int = 0) -> text_half.Picture:
        """A random picture of a merged grid of h × w."""
        import torch

        if not hasattr(self.torch.config, "vision_config"):
            rows = np.random.default_rng(seed).standard_normal((h * w, self.torch.config.hidden_size)).astype(np.float32) * 0.3
            return text_half.Picture(rows, (h, w), rows)
        vision = self.torch.config.vision_config
        frames = getattr(vision, "temporal_patch_size", 1)
        patch = (3, frames, vision.patch_size, vision.patch_size)
        patches = np.random.default_rng(seed).standard_normal((4 * h * w, int(np.prod(patch)))).astype(np.float32)
        if frames == 1:  # PaddleOCR-VL takes patches as small pictures
            patches = patches.reshape(-1, 3, *patch[2:])
        grid = torch.tensor([[1, 2 * h, 2 * w]])
        with torch.no_grad():
            found = self.torch.get_image_features(torch.from_numpy(patches), grid)
        taps = getattr(found, "deepstack_features", None) or ()
        rows = [whole if isinstance(whole, torch.Tensor) else torch.cat(whole) for whole in (found.pooler_output, *taps)]
        return text_half.Picture(patches, (h, w), torch.cat(rows, dim=-1).numpy())

    def reference(self, parts: Sequence[text_half.Part]) -> NDArray[np.float32]:
        """(n, n_vocab) logits of every row; of a model without a tower, its rows in the place of embedded tokens."""
        import torch

        if hasattr(self.torch.config, "vision_config"):
            return super().reference(parts)
        table = self.torch.get_input_embeddings()
        with torch.no_grad():
            rows = [table(torch.tensor(p, dtype=torch.long)) if isinstance(p, list) else torch.from_numpy(p.rows) for p in parts]
            return self.torch(inputs_embeds=torch.cat(rows)[None]).logits[0].numpy()

    def shown(self, h: int, w: int, seed: int = 0) -> list[text_half.Part]:
        """A picture between the tokens that say where it begins and ends."""
        config = self.torch.config
        if not hasattr(config, "vision_config"):
            return [self.picture(h, w, seed)]
        start, end = (
            next(i for name in (f"vision_{x}_token_id", f"image_{x}_token_id") if (i := getattr(config, name, None)) is not None)
            for x in ("start", "end")
        )
        return [[start], self.picture(h, w, seed), [end]]


class TinyMaker:
    """Makes pairs from architectures and the fields of their shapes, each once, and frees them."""

    def __init__(self, folders: pytest.TempPathFactory) -> None:
        self._folders = folders
        self._made: dict[tiny_text.Shape, TinyPair] = {}

    def make(self, architecture: str, **fields: Any) -> TinyPair:
        """The pair of `tiny_text.shape(architecture, **fields)`."""
        import torch

        shape = tiny_text.shape(architecture, **fields)
        if shape not in self._made:
            torch.set_num_threads(1)
            folder = tiny_text.write(self._folders.mktemp("tiny"), shape)
            path = folder / "text.gguf"
            write_gguf(path, text(read_checkpoint(folder), "f32"))
            self._made[shape] = TinyPair(TextModel.load(path, tiny.EXACT), tiny_text.build(shape), shape)
        return self._made[shape]

    def close(self) -> None:
        """Free every text half."""
        for pair in self._made.values():
            pair.text.close()
