"""The text half of a checkpoint as GGUF: what its architecture's table entry says, read when it is written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from diptych.convert import layout
from diptych.convert.architecture import Architecture, architecture
from diptych.convert.blocks import Block, Made
from diptych.convert.checkpoint import Checkpoint, setting
from diptych.convert.general import general
from diptych.convert.rope import rope
from diptych.convert.settings import Settings, n_expert
from diptych.convert.tensor import check_present, check_used, media_tensors, outtype_of, renamed, stored_type
from diptych.convert.vocab import vocabulary
from diptych.errors import FileError, UnknownModel
from diptych.weights import Tensor, Weights

_HEAD = "lm_head.weight"
_ROOTS = ("embed_tokens.", "layers.", "norm.", "lm_head.", "mtp.")  # where a text half's tensors stand


@dataclass(frozen=True)
class _Step:
    """Tensors of the checkpoint, several where experts are to be stacked, and the GGUF's that are made of them."""

    sources: tuple[str, ...]
    target: str | Made
    stack: bool


def text(checkpoint: Checkpoint, outtype: str = "f16") -> Weights:
    """The text half, its tensors converted when they are read.

    Raises UnknownModel listing the known architectures, and FileError when a tensor is missing, left over, or not as
    config.json says.
    """
    entry, (type, file_type) = architecture(checkpoint), outtype_of(outtype)
    config = entry.settings(checkpoint)
    blocks = [Block("", -1, entry.top), *entry.layers(checkpoint, config)]
    steps = [step for block in blocks for step in _steps(checkpoint, config, block)]
    sources = [name for step in steps for name in step.sources]
    check_present(checkpoint, sources)
    check_used(checkpoint, _of_text(checkpoint), frozenset(sources))
    tensors = {t.name: t for step in steps for t in _tensors(checkpoint, config, step)}
    tensors = {n: layout.converted(t, stored_type(n, t.shape, type)) for n, t in tensors.items()}
    metadata = {
        **general(checkpoint, entry.name, "model", tensors, file_type),
        **_metadata(entry, config, max(b.number for b in blocks) + 1),
        **vocabulary(checkpoint, tensors["token_embd.weight"].shape[0], entry.pre, entry.special),
    }
    return Weights(metadata, tensors)


def _steps(checkpoint: Checkpoint, config: Settings, block: Block) -> Iterator[_Step]:
    """A block's table with full names, without what the checkpoint may do without and does."""
    front = f"blk.{block.number}." if block.number >= 0 else ""
    for name, target in block.table.items():
        source, stack = block.prefix + name.removesuffix("?"), "{e}" in name
        if name.endswith("?") and source not in checkpoint.tensors:
            continue
        if source == _HEAD and _HEAD not in checkpoint.tensors and _tied(checkpoint, config):
            continue  # the output is the embedding table
        sources = [source.replace("{e}", str(e)) for e in range(_n_expert(checkpoint, config))] if stack else [source]
        full = front + target if isinstance(target, str) else Made(tuple(front + n for n in target.names), target.make)
        yield _Step(tuple(sources), full, stack)


def _tied(checkpoint: Checkpoint, config: Settings) -> bool:
    """Some versions wrote it at the top, some into the text half's settings."""
    return bool(config.get("tie_word_embeddings", True) or checkpoint.config.get("tie_word_embeddings"))


def _n_expert(checkpoint: Checkpoint, config: Settings) -> int:
    n = n_expert(config)
    if not 0 < n <= len(checkpoint.tensors):
        raise FileError(f"config.json says {n} experts, and {checkpoint.folder} has {len(checkpoint.tensors)} tensors in all")
    return n


def _of_text(checkpoint: Checkpoint) -> list[str]:
    """The names that are not the media half's; where no family is known, those in the places of a text half."""
    try:
        media = frozenset(media_tensors(checkpoint))
    except UnknownModel:
        return sorted(n for n in checkpoint.tensors if n.startswith(_ROOTS))
    return sorted(n for n in checkpoint.tensors if n not in media)


def _tensors(checkpoint: Checkpoint, config: Settings, step: _Step) -> list[Tensor]:
    """The GGUF tensors of a step, types as stored or as computed."""
    found = [checkpoint.tensors[name] for name in step.sources]
    if isinstance(step.target, str) and not step.stack:
        return list(renamed(checkpoint, {step.sources[0]: (step.target,)}).values())
    if empty := next((t for t in found if not t.shape or 0 in t.shape), None):
        raise FileError(f"tensor {empty.name} has the shape {empty.shape}, which no weight has; download it again")
    whole = layout.stacked(found) if step.stack else found[0]
    if isinstance(step.target, str):
        return [layout.named(whole, step.target)]
    made = step.target.make(whole, config)
    return [layout.named(t, name) for t, name in zip(made, step.target.names, strict=True)]


def _metadata(entry: Architecture, config: Settings, n_block: int) -> dict[str, Any]:
    """What llama.cpp has to know of the layers."""
    name = entry.name
    if (activation := config.get("hidden_act")) != "silu":
        raise FileError(f"config.json has the activation {activation!r}, and llama.cpp's {name} knows silu alone")
    rotary = rope(name, config)
    if entry.mrope and f"{name}.rope.dimension_sections" not in rotary:
        raise FileError(f"config.json has no mrope_section, and {name} needs one; use the config.json the model came with")
    found = {"block_count": n_block, **dict(_sizes(entry, config)), **entry.more(config, n_block)}
    return {**{f"{name}.{key}": value for key, value in found.items()}, **rotary}


def _sizes(entry: Architecture, config: Settings) -> Iterator[tuple[str, int | float]]:
    for key, (kind, names) in entry.sizes.items():
        found = next((n for n in names if n in config), None)
        if found or not key.endswith("?"):
            yield key.removesuffix("?"), setting(config, found or names[0], kind)
