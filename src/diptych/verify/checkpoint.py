"""The reference of a checkpoint: transformers on PyTorch, which trained models are defined by. Imports both only when asked."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from diptych.errors import EngineError, FileError, InputError, MissingExtra
from diptych.types import Media
from diptych.verify.ours import N_ANSWER
from diptych.verify.side import MEDIA, Answer, Side, lead


class Checkpoint:
    """A checkpoint's model in float32, with its tokenizer and image processor. `see` raises EngineError where it fails."""

    def __init__(self, folder: Path) -> None:
        """Raises MissingExtra without transformers and PyTorch, FileError when the checkpoint cannot be loaded there."""
        self._torch, transformers = _packages()
        self.folder = folder
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self._model = transformers.AutoModelForImageTextToText.from_pretrained(folder, dtype="float32").eval()
                self._tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
                self._processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
        except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
            raise FileError(f"transformers cannot load {folder}: {_line(error)}; leave --checkpoint out to do without") from error
        image = getattr(self._model.config, "image_token_id", None)
        if image is None:
            raise InputError(
                f"{folder} has no image_token_id, which a comparison with transformers needs; leave --checkpoint out"
            )
        self._image = int(image)

    def see(self, media: Media, question: str) -> Side:
        """The same prompt as `Ours.see`, as the checkpoint's own code makes it."""
        given, fed = self._inputs(media, question)
        try:
            with self._torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                rows = _rows(self._core.get_image_features(fed["pixel_values"], fed["image_grid_thw"]))
                planes = self._positions(given, fed)
                answer = self._answer(given, fed)
        except (RuntimeError, ValueError, TypeError, AttributeError, IndexError, KeyError) as error:
            raise EngineError(f"transformers cannot run {self.folder}: {_line(error)}; leave --checkpoint out") from error
        tokens = given["input_ids"][0].numpy()
        marked = np.where(tokens == self._image, MEDIA, tokens)
        return Side(rows, tuple(marked.tolist()), planes.astype(np.int32), fed["pixel_values"].numpy().ravel(), answer)

    @property
    def _core(self) -> Any:  # noqa: ANN401
        """The part of the model that has eyes: inside the one that speaks, or that itself."""
        inside = getattr(self._model, "model", None)
        return inside if hasattr(inside, "get_image_features") else self._model

    def _inputs(self, media: Media, question: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """The prompt's tokens, the picture's placeholder as often as it has rows, and what the processor makes of it."""
        fed = dict(self._processor(images=[media.data], return_tensors="pt", input_data_format="channels_last"))
        if "image_grid_thw" not in fed:
            raise InputError(f"the image processor of {self.folder} gives no image_grid_thw; leave --checkpoint out")
        chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
        try:
            text = self._tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        except ValueError as error:
            raise FileError(f"{self.folder} has no chat template that transformers can use: {_line(error)}") from error
        merge = getattr(self._processor, "merge_size", None) or self._model.config.vision_config.spatial_merge_size
        n = int(fed["image_grid_thw"].prod()) // merge**2
        ids = self._tokenizer(text, add_special_tokens=False).input_ids
        many = [t for i in ids for t in ([i] * n if i == self._image else [i])]
        tokens = self._torch.tensor([many])
        kinds = (tokens == self._image).to(self._torch.int32)
        return {"input_ids": tokens, "mm_token_type_ids": kinds, "attention_mask": self._torch.ones_like(tokens)}, fed

    def _positions(self, given: dict[str, Any], fed: dict[str, Any]) -> np.ndarray[Any, Any]:
        """(n_pos, n) planes of the whole prompt; one plane where the model knows no other."""
        ask = getattr(self._core, "get_rope_index", None)
        if ask is None:
            return np.arange(given["input_ids"].shape[1])[None]
        planes: np.ndarray[Any, Any] = ask(**_known(ask, {**given, **fed}))[0][:, 0].numpy()
        return planes

    def _answer(self, given: dict[str, Any], fed: dict[str, Any]) -> Answer:
        asked = {"max_new_tokens": N_ANSWER, "do_sample": False, "temperature": None, "top_k": None, "top_p": None}
        told = {"return_dict_in_generate": True, "output_logits": True}
        made = self._model.generate(**_known(self._model.forward, {**given, **fed}), **asked, **told)
        tokens = made.sequences[0, given["input_ids"].shape[1] :].tolist()
        return Answer(tuple(tokens), tuple(lead(row[0].float().numpy()) for row in made.logits))


def _rows(features: Any) -> np.ndarray[Any, np.dtype[np.float32]]:  # noqa: ANN401
    """The picture's rows, with the taps of deepstack models beside them as our graphs give them."""
    parts = [getattr(features, "pooler_output", features), *(getattr(features, "deepstack_features", None) or ())]
    pictures = [part[0] if isinstance(part, tuple | list) else part for part in parts]  # there is one
    return np.concatenate([rows.float().numpy() for rows in pictures], axis=-1)


def _known(function: Callable[..., Any], given: dict[str, Any]) -> dict[str, Any]:
    """Those of the arguments that a function names."""
    return {name: value for name, value in given.items() if name in inspect.signature(function).parameters}


def _packages() -> tuple[ModuleType, ModuleType]:
    try:
        import torch
        import transformers
    except ImportError as error:
        raise MissingExtra(f"comparing with a checkpoint needs {error.name}; pip install torch transformers") from error
    logging: Any = transformers.utils.logging
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    return torch, transformers


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
