"""How much memory a media half takes, told before it runs.

    weights   every number once, in its type in memory; OpenVINO at f32 keeps two copies. And what the runtime has beside them.
    run       a row for each patch: so many arrays of the encoder's width and of its MLP's as stand side by side at the widest
              point. No term grows with the square of a picture: attention is fused everywhere. What stands between the steps
              of Diptych's kernels does not grow at all, since they take rows in bands.

The numbers of arrays were measured by `tests/encoder/test_memory.py`'s way: the growth of a process, with towers of 2 to 12
layers, 640 and 1,280 wide, MLPs of 1 to 8 times the width, 1,296 and 5,476 patches, and for the kernels by
`benchmarks/photo.py` as well, 64,896. The number of heads changes nothing.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from diptych.encoder.precision import Choice, Precision, Runtime
from diptych.errors import EngineError, MediaTooLarge
from diptych.families.base import Family
from diptych.families.lattice import N_TAPS, POSITIONS
from diptych.families.packed import Packed
from diptych.types import Piece

MIB = 2**20
_FLOAT = 4  # bytes
_BYTES: Mapping[Precision, int] = {"f32": 4, "bf16": 2, "f16": 2, "int8": 1}  # of a number in a linear layer's matrix
_CHANNELS = 3
_MOST_PATCHES = 2**31
_BAND = 768  # rows that go through an MLP together in `kernels/linear.cpp`
_BETWEEN = 6  # bytes of a number there: float32, and int8 of it and of what it comes from
_PACKED = 32 * MIB  # keys and values that `kernels/attention.cpp` has packed at once, unless those of one head are more
_LARGE = 32 * MIB  # an array that the GNU C library always maps, mallopt(3)
_BFLOAT16 = 2  # bytes
_KEY_AND_VALUE = 2 * _BFLOAT16  # bytes of one of each
_HEAD_NORMS = 1.3  # arrays more where queries and keys are normalised, which is done in float32 before they become bfloat16


@dataclass(frozen=True)
class _Arrays:
    """What stands side by side at the widest point, as float32 arrays (n_patch, width).

    Attention takes `attention` of the encoder's width. The MLP takes `beside` of that width and `plain` of its own inner
    width, or `gated` of them where it has a gate. In OpenVINO both are added, since it takes memory for each kind of
    array anew; ONNX Runtime gives one the other's. Diptych's kernels have no array for an MLP.
    """

    attention: float
    beside: float
    plain: float
    gated: float
    base: int  # bytes: libraries and the graph itself


_ARRAYS: Mapping[tuple[Runtime, Precision], _Arrays] = {
    ("onnxruntime", "f32"): _Arrays(11.5, 0, 2.85, 5.2, 30 * MIB),
    ("onnxruntime", "int8"): _Arrays(12, 0, 3, 5.2, 20 * MIB),
    ("kernels", "int8"): _Arrays(2.7, 0, 0, 0, 14 * MIB),
    ("openvino", "f32"): _Arrays(0, 12, 2.4, 4.7, 50 * MIB),
    ("openvino", "bf16"): _Arrays(0, 6.5, 2.2, 4.1, 55 * MIB),
    ("openvino", "int8"): _Arrays(0, 6.3, 1.15, 3.4, 60 * MIB),
}


@dataclass(frozen=True)
class Memory:
    """Bytes that a media half takes: its weights, once loaded, and a run beside them."""

    weights: int
    run: int

    @property
    def total(self) -> int:
        return self.weights + self.run


def predict(family: Family, choice: Choice, grids: Iterable[tuple[int, ...]]) -> Memory:
    """What a family's media half takes when pieces of these (t, h, w) grids of patches go in one run.

    Within a fifth of what is measured, as `tests/encoder/test_memory.py` has it.
    """
    grids = list(grids)
    return _predicted(family, choice, sum(math.prod(grid) for grid in grids), len(grids))


def large(family: Family, choice: Choice, pieces: Iterable[Piece]) -> bool:
    """Whether a run of the kernels is better without ONNX Runtime's arena, which takes up to half more than is in use, and keeps
    that while rows are joined: where queries alone are so much that the system gives memory for each array by itself.

    Their weights are mapped, so that a session more takes next to nothing.
    """
    return choice.runtime == "kernels" and sum(piece.n_patches for piece in pieces) > _large(family)


class Budget:
    """What a media half may take, in MiB; without a number, all there is."""

    def __init__(self, family: Family, choice: Choice, mib: int | None) -> None:
        """Raises EngineError when the weights alone need more."""
        self._family, self._choice, self._mib = family, choice, mib
        least = predict(family, choice, [(1, family.hp.n_merge, family.hp.n_merge)])
        if mib is not None and least.total > mib * MIB:
            raise EngineError(
                f"the media half needs {_told(least.total)} for the smallest picture, {_told(least.weights)} of it weights in "
                f"{choice.precision}, and --encode-memory allows {mib} MiB; allow more, or choose a smaller --precision"
            )
        self.max_patches = None if mib is None else _fitting(family, choice, mib * MIB, n_pieces=2)

    def check(self, pieces: Iterable[Piece]) -> None:
        """Raise MediaTooLarge for a piece that is too large even alone."""
        for piece in pieces:
            need = predict(self._family, self._choice, [piece.grid]).total
            if self._mib is not None and need > self._mib * MIB:
                pixels = self._family.hp.patch_size**2
                most = _fitting(self._family, self._choice, self._mib * MIB, n_pieces=1) * pixels
                raise MediaTooLarge(
                    f"a picture of {piece.n_patches * pixels} pixels needs {_told(need)} in the media half, and --encode-memory "
                    f"allows {self._mib} MiB, enough for {most} pixels; set --max-pixels to that or "
                    f"--encode-memory to {math.ceil(need / MIB)}, or send a smaller picture"
                )


def _weights(family: Family, choice: Choice) -> int:
    """Matrices of linear layers in the type of the products, all else in float32."""
    total = _arrays(choice).base
    for tensor in family.weights.tensors.values():
        linear = len(tensor.shape) == 2 and not (choice.precision == "int8" and tensor.name.startswith(family.wide))
        total += math.prod(tensor.shape) * (_BYTES[choice.precision] if linear else _FLOAT)
    twice = choice.runtime == "openvino" and choice.precision == "f32"
    return 2 * total - _arrays(choice).base if twice else total


def _predicted(family: Family, choice: Choice, n_patches: int, n_pieces: int) -> Memory:
    packed = min(n_patches * _packed(family, choice), _PACKED)
    arena = choice.runtime != "kernels" or n_patches <= _large(family)
    patch = _patch(family, choice, n_pieces, arena=arena)
    return Memory(_weights(family, choice), n_patches * patch + packed + _bands(family, choice))


def _fitting(family: Family, choice: Choice, n_bytes: int, n_pieces: int) -> int:
    """The most patches of so many pieces for which `predict` tells no more, nor does for fewer."""
    edge = _large(family)  # behind which less is needed

    def least(n_patches: int) -> int:
        totals = {n: _predicted(family, choice, n, n_pieces).total for n in (n_patches, min(n_patches, edge))}
        return max(totals.values())

    return bisect_right(range(_MOST_PATCHES), n_bytes, key=least) - 1


def _large(family: Family) -> int:
    """Patches of which the queries fill `_LARGE`."""
    return _LARGE // (family.hp.n_embd * _BFLOAT16)


def _patch(family: Family, choice: Choice, n_pieces: int, *, arena: bool) -> int:
    """Bytes that a patch takes in a run; of several pieces what is fed is copied, to stand together."""
    hp, arrays = family.hp, _arrays(choice)
    tensors = family.weights.tensors
    attention = arrays.attention * hp.n_embd
    if _attends(choice) and "v.blk.0.attn_q_norm.weight" in tensors:
        attention += _HEAD_NORMS * hp.n_embd
    mlp = arrays.beside * hp.n_embd + (arrays.gated if "v.blk.0.ffn_gate.weight" in tensors else arrays.plain) * hp.n_ff
    if choice.runtime == "openvino" and POSITIONS in tensors:
        mlp += N_TAPS * hp.n_embd
    fed = _CHANNELS * hp.patch_size**2 * (family.n_frames if isinstance(family, Packed) else 1) if n_pieces > 1 else 0
    layers, rows, joined = max(attention, mlp), hp.n_embd_out / hp.n_merge**2, family.n_embd / hp.n_merge**2
    if choice.runtime != "kernels":
        return math.ceil(_FLOAT * (layers + fed + 2 * joined))
    tapped = (joined - rows) / 2  # in float16, while they wait to be joined
    if arena:  # which keeps what the layers took
        return math.ceil(_FLOAT * (layers + fed + rows + tapped + (joined if tapped else 0)))
    return math.ceil(_FLOAT * (fed + max(layers + tapped, joined + rows / 2)))


def _packed(family: Family, choice: Choice) -> int:
    """Bytes that a patch takes in packed keys and values."""
    return _KEY_AND_VALUE * family.hp.n_embd if _attends(choice) else 0


def _attends(choice: Choice) -> bool:
    """Whether attention is that of Diptych's kernels, and not ONNX Runtime's beside their linear layers."""
    return (choice.runtime, choice.rest) == ("kernels", "bf16")


def _bands(family: Family, choice: Choice) -> int:
    """Bytes of what stands between the layers of an MLP, or of the merger, in Diptych's kernels."""
    hp = family.hp
    return _BAND * _BETWEEN * max(hp.n_ff, hp.n_merge**2 * hp.n_embd) if choice.runtime == "kernels" else 0


def _arrays(choice: Choice) -> _Arrays:
    """Those of float16 are bfloat16's, which is as wide, and those of int8 beside float32 are float32's."""
    if choice.runtime == "openvino" and choice.rest == "f32":
        return _ARRAYS["openvino", "f32"]
    found = _ARRAYS[choice.runtime, "bf16" if choice.precision == "f16" else choice.precision]
    if choice.runtime == "kernels" and choice.rest == "f32":
        return replace(found, attention=_ARRAYS["onnxruntime", "int8"].attention)
    return found


def _told(n_bytes: int) -> str:
    return f"{math.ceil(n_bytes / MIB)} MiB"
