"""What an mmproj file tells before libmtmd opens it: its projectors, its rows, and faults that libmtmd would crash over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from diptych.errors import FileError, UnknownModel
from diptych.families.base import projector_type
from diptych.types import MediaKind
from diptych.weights import DTYPES, Weights, open_gguf

# Projectors whose text halves have M-RoPE (the text architectures that llama.cpp's converter pairs them with).
_MROPE = (
    "qwen2vl_merger", "qwen2.5vl_merger", "qwen2.5o", "qwen3vl_merger", "qwen3a", "ling3vl", "glm4v", "paddleocr", "hunyuanvl",
)  # fmt: skip
# Projectors whose pictures have as many rows as their size asks for, and the patches a side that are merged into a row
# where the file does not say (clip.cpp, set_limit_image_tokens and what stands before its calls).
_LIMITED = {
    "idefics3": 1, "lfm2": 1, "pixtral": 1, "lightonocr": 1, "kimivl": 1, "kimik25": 1, "gemma4v": 3, "gemma4uv": 3,
    "qwen2vl_merger": 2, "qwen2.5vl_merger": 2, "qwen2.5o": 2, "qwen3vl_merger": 2, "ling3vl": 2, "minimax_m3": 2,
    "muse-glimmer": 2, "youtuvl": 2, "glm4v": 2, "glm5v": 2, "hunyuanvl": 2,
}  # fmt: skip
# Its pictures begin with as many rows of padding as their place in the prompt asks for, and each is prepared by itself here.
_PLACED = ("deepseek4v",)
_N_EMBD_LIMIT = 2**17  # of a row; the widest today have 20,480, deepstack included
_N_LAYER_LIMIT = 2**10
_NO_WEIGHTS = tuple(t for t, dtype in DTYPES.items() if dtype.kind == "i" or dtype.itemsize == 8)
_AGAIN = "it is damaged or not for llama.cpp; get or convert it again"
_TOWERS: tuple[tuple[MediaKind, str, str], ...] = (("image", "vision", "v"), ("audio", "audio", "a"))


@dataclass(frozen=True)
class Mmproj:
    """`projectors` by what they are for; `n_embd` the width of the rows as far as the metadata tell; `n_pos` of the text
    halves it is made for; `side` pixels a row stands for, and whether its pictures have rows by their size (`limited`)."""

    projectors: Mapping[MediaKind, str]
    n_embd: int
    n_pos: int
    side: int
    limited: bool

    @property
    def projector(self) -> str:
        """That of the pictures, or of the sound where there are none."""
        return next(iter(self.projectors.values()))


def read(path: Path) -> Mmproj:
    """Read what stands before the tensors of a file.

    Raises FileError when it is damaged or no mmproj, UnknownModel for a projector that cannot be run here.
    """
    weights = open_gguf(path)
    metadata = weights.metadata
    towers = [tower for tower in _TOWERS if metadata.get(f"clip.has_{tower[1]}_encoder")]
    if not towers:
        holds = metadata.get("general.architecture", "nothing known")
        raise FileError(f"{path} has no encoder of pictures or sound (it holds {holds!r}); name an mmproj file")
    projectors = {kind: projector_type(metadata, kind) or "" for kind, _, _ in towers}
    if unfit := [p for p in projectors.values() if p in _PLACED]:
        raise UnknownModel(
            f"{path} has the projector {unfit[0]!r}, whose rows depend on where in the prompt a picture stands, and libmtmd is "
            "not told here; run it with llama.cpp itself"
        )
    for _, side, prefix in towers:
        _check(path, weights, side, prefix)
    first = next(iter(projectors.values()))
    n_deepstack = sum(name.startswith("v.deepstack.") and name.endswith(".fc1.weight") for name in weights.tensors)
    merged = metadata.get("clip.vision.spatial_merge_size") or metadata.get("clip.vision.projector.scale_factor")
    return Mmproj(
        projectors,
        n_embd=int(metadata[f"clip.{towers[0][1]}.projection_dim"]) * (1 + n_deepstack),
        n_pos=4 if any(p in _MROPE for p in projectors.values()) else 1,
        side=int(metadata.get("clip.vision.patch_size", 1)) * int(merged or _LIMITED.get(first, 1)),
        limited=first in _LIMITED,
    )


def _check(path: Path, weights: Weights, side: str, prefix: str) -> None:
    """Raise FileError for what libmtmd takes on trust, and goes down with the process over."""
    metadata, tensors = weights.metadata, weights.tensors
    blocks = {name.removesuffix("attn_out.weight") for name in tensors if name.startswith(f"{prefix}.blk.")} - set(tensors)
    least = {"projection_dim": 1, "block_count": 1 if blocks else 0}
    for name, most in ("projection_dim", _N_EMBD_LIMIT), ("block_count", _N_LAYER_LIMIT):
        value = metadata.get(f"clip.{side}.{name}")
        if not isinstance(value, int | np.integer) or not least[name] <= value <= most:
            expected = f"{least[name]} to {most:,} is expected"
            raise FileError(f"{path} has clip.{side}.{name} {value!r:.40}, and {expected}; {_AGAIN}")
    for tensor in tensors.values():
        if len(tensor.shape) > 1 and tensor.type in _NO_WEIGHTS:
            raise FileError(f"{path} has the tensor {tensor.name} as {tensor.type.name}, which weights cannot be; {_AGAIN}")
    for block in blocks:
        parts = {f"{block}attn_{part}.weight" for part in "qkv"} - set(tensors)
        if parts and f"{block}attn_qkv.weight" not in tensors:
            raise FileError(f"{path} has no tensor {min(parts)}; {_AGAIN}")
