"""From a checkpoint's tensors to a GGUF's: new names, cuts, and types converted when a tensor is read."""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import gguf.quants
import numpy as np
from gguf import GGMLQuantizationType, LlamaFileType
from numpy.typing import NDArray

from diptych import families
from diptych.convert.checkpoint import Checkpoint, read_by_family
from diptych.errors import FileError, InputError
from diptych.families.base import Table
from diptych.weights import DTYPES, Tensor, stored

F32, F16, BF16, Q8_0 = (GGMLQuantizationType[name] for name in ("F32", "F16", "BF16", "Q8_0"))
OUTTYPES = {
    "f32": (F32, LlamaFileType.ALL_F32),
    "f16": (F16, LlamaFileType.MOSTLY_F16),
    "bf16": (BF16, LlamaFileType.MOSTLY_BF16),
    "q8_0": (Q8_0, LlamaFileType.MOSTLY_Q8_0),
}

_ALWAYS_F32 = ("_norm.weight", "ffn_gate_inp.weight", "ffn_gate_inp_shexp.weight", "ssm_conv1d.weight")
_SLICE = 1 << 22  # values converted at once: 16 MiB as float32


def outtype_of(name: str) -> tuple[GGMLQuantizationType, LlamaFileType]:
    """The types of tensors and file that an outtype stands for. Raises InputError listing the known ones."""
    if name not in OUTTYPES:
        raise InputError(f"the outtype is {name!r}, and one of {', '.join(OUTTYPES)} is expected")
    return OUTTYPES[name]


def expanded(checkpoint: Checkpoint, table: Table, n_layer: int) -> dict[str, tuple[str, ...]]:
    """Checkpoint name → GGUF names (none when it is left out), with the layers counted out."""
    if n_layer > len(checkpoint.tensors):  # said before a table of that length is made
        raise FileError(
            f"config.json says {n_layer} layers, and {checkpoint.folder} has {len(checkpoint.tensors)} tensors in all"
        )
    table = {name: target for name, target in table.items() if not name.endswith(".")}
    plain = [(name, target, None) for name, target in table.items() if "{i}" not in name]
    layers = [(name, target, i) for i in range(n_layer) for name, target in table.items() if "{i}" in name]
    out: dict[str, tuple[str, ...]] = {}
    for name, target, i in [*plain, *layers]:
        names = () if target is None else (target,) if isinstance(target, str) else target
        out[name.replace("{i}", str(i))] = tuple(n.replace("{i}", str(i)) for n in names)
    return out


def media_tensors(checkpoint: Checkpoint) -> list[str]:
    """The names of the media half, those left out among them: all whose first part is one of the family's table."""
    roots = {name.split(".")[0] for name in media_table(checkpoint)}
    return [name for name in checkpoint.tensors if name.split(".")[0] in roots]


def media_table(checkpoint: Checkpoint) -> Table:
    """The family's table of tensors for this checkpoint."""
    family = families.for_architecture(checkpoint.architecture)
    with read_by_family(checkpoint):
        return family.table(checkpoint.config)


def renamed(checkpoint: Checkpoint, names: Mapping[str, tuple[str, ...]]) -> dict[str, Tensor]:
    """The tensors of one half under their GGUF names, cut where there are several, types as stored.

    Raises FileError naming those the checkpoint lacks.
    """
    check_present(checkpoint, [name for name, targets in names.items() if targets])
    return {part.name: part for name, targets in names.items() for part in _cut(checkpoint.tensors.get(name), targets)}


def check_present(checkpoint: Checkpoint, names: Iterable[str]) -> None:
    """Raise FileError naming the tensors that the checkpoint lacks."""
    if missing := [name for name in names if name not in checkpoint.tensors]:
        raise FileError(
            f"{checkpoint.folder} has no tensor {_some(missing)}, which {checkpoint.architecture} needs; download it again"
        )


def check_used(checkpoint: Checkpoint, of_half: Iterable[str], names: Container[str]) -> None:
    """Raise FileError naming the tensors of a half that have no GGUF name."""
    if over := [name for name in of_half if name not in names]:
        raise FileError(
            f"{checkpoint.folder} has the tensor {_some(over)}, which {checkpoint.architecture} has no use for; "
            "is config.json of the same model?"
        )


def stored_type(name: str, shape: tuple[int, ...], outtype: GGMLQuantizationType) -> GGMLQuantizationType:
    """The type of a GGUF tensor under an outtype, by the rules of llama.cpp's converter."""
    if ".patch_embd.weight" in name or ".patch_merger.weight" in name:
        return F16 if outtype == F16 else F32  # libmtmd's convolutions take no other
    if len(shape) <= 1 or name.endswith(_ALWAYS_F32) or not name.endswith(".weight") or ".position_embd." in name:
        return F32
    return F16 if outtype == Q8_0 and shape[-1] % 32 else outtype  # a q8_0 block is 32 values of a row


def retyped(tensor: Tensor, type: GGMLQuantizationType) -> Tensor:
    """The tensor in another type, converted when it is read."""
    if tensor.type == type:
        return tensor
    return Tensor(tensor.name, tensor.shape, type, partial(_converted, tensor, type))


def _some(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} (and {len(names) - 1} more)"


def _cut(tensor: Tensor | None, names: tuple[str, ...]) -> list[Tensor]:
    if tensor is None or not names:
        return []
    n, shape, axis = len(names), tensor.shape, 2 if len(tensor.shape) == 5 else 0
    if not shape or 0 in shape or shape[axis] % n or (axis and shape[axis] != n):
        raise FileError(
            f"tensor {tensor.name} has the shape {shape}, which does not make {' and '.join(names)}; download it again"
        )
    if axis:
        return [Tensor(name, (*shape[:2], *shape[3:]), tensor.type, partial(_frame, tensor, t)) for t, name in enumerate(names)]
    assert tensor.place, "a checkpoint's tensors lie in files"
    path, offset, nbytes = tensor.place
    rows = (shape[0] // n, *shape[1:])
    return [stored(name, rows, tensor.type, path, offset + k * (nbytes // n)) for k, name in enumerate(names)]


def _frame(tensor: Tensor, t: int) -> NDArray[Any]:
    """One point in time of a Conv3d kernel (out, in, t, h, w)."""
    return np.ascontiguousarray(tensor.read()[:, :, t])


def _converted(tensor: Tensor, type: GGMLQuantizationType) -> NDArray[Any]:
    """Read and convert, some rows at a time: beside the array made nothing large is held."""
    width = tensor.shape[-1]
    n, done = math.prod(tensor.shape) // width, 0
    out: NDArray[Any] | None = None
    for rows in _rows(tensor, n, max(1, _SLICE // width)):
        part = _encoded(tensor.name, rows.astype(np.float32, copy=False), type)
        out = np.empty((n, part.shape[1]), part.dtype) if out is None else out
        out[done : done + len(part)] = part
        done += len(part)
    assert out is not None, "no tensor is empty"
    return out.reshape(*tensor.shape[:-1], out.shape[1])


def _rows(tensor: Tensor, n: int, step: int) -> Iterator[NDArray[Any]]:
    """The tensor's n rows, `step` at a time."""
    if tensor.place is None:
        whole = tensor.read().reshape(n, tensor.shape[-1])
        yield from (whole[i : i + step] for i in range(0, n, step))
        return
    path, offset, nbytes = tensor.place
    for i in range(0, n, step):
        shape = (min(step, n - i), tensor.shape[-1])
        yield stored(tensor.name, shape, tensor.type, path, offset + i * (nbytes // n)).read()


def _encoded(name: str, values: NDArray[np.float32], type: GGMLQuantizationType) -> NDArray[Any]:
    if type not in DTYPES:
        with np.errstate(all="ignore"):  # the scale of a block of denormals is none, and its values become 0
            blocks: NDArray[np.uint8] = gguf.quants.quantize(values, type)
        return blocks
    try:
        with np.errstate(over="raise", under="ignore"):
            return values.astype(DTYPES[type])
    except FloatingPointError as error:
        worst = np.abs(values).max()
        raise FileError(f"tensor {name} holds {worst:.3g}, too large for {type.name}; convert to bf16 or f32") from error
