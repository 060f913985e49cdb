"""What an engine is made of, and what its slots do: for those who ask from outside."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from diptych.families.base import MediaHalf
from diptych.llama.context import Context
from diptych.llama.model import TextModel
from diptych.types import MediaKind


@dataclass(frozen=True)
class About:
    """Both halves of a model, loaded. `n_ctx_slot` is the most tokens of one sequence; `text` and `media` say in which
    backend and precision the halves run."""

    path: Path
    kinds: tuple[MediaKind, ...]
    media_backend: str
    text: dict[str, str]
    media: dict[str, str]
    chat_template: str
    bos: str
    eos: str
    n_ctx: int
    n_ctx_slot: int
    n_ctx_train: int
    n_embd: int
    n_vocab: int
    n_params: int
    size: int


@dataclass(frozen=True)
class SlotState:
    """A slot: whether it has a sequence, the prompt tokens of it, in all, decoded and reused, and of its answer."""

    busy: bool = False
    n_prompt: int = 0
    n_processed: int = 0
    n_cached: int = 0
    n_decoded: int = 0
    n_remain: int = -1


def about(text: TextModel, half: MediaHalf | None, context: Context, template: str) -> About:
    """What these halves are."""
    return About(
        path=text.path,
        kinds=tuple(half.placeholders) if half else (),
        media_backend=half.backend if half else "none",
        text={"backend": "llama.cpp", "precision": text.description},
        media={"backend": half.backend, **half.arithmetic} if half else {},
        chat_template=template,
        bos=text.bos,
        eos=text.eos,
        n_ctx=context.n_ctx,
        n_ctx_slot=context.n_ctx_slot,
        n_ctx_train=text.n_ctx_train,
        n_embd=text.n_embd,
        n_vocab=text.n_vocab,
        n_params=text.n_params,
        size=text.size,
    )
