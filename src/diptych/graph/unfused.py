"""Query, key and value of files that keep them as one tensor, as the three that layers read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from diptych.weights.tensor import Tensor, stored

_FUSED, _PARTS = ".attn_qkv.", ("q", "k", "v")


def unfused(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, each `attn_qkv` as `attn_q`, `attn_k` and `attn_v`: its first, second and third third of rows.

    A third stands in the file as the whole does. What is no three thirds stays.
    """
    out: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if _FUSED in name and tensor.shape and tensor.shape[0] % len(_PARTS) == 0:
            out.update((part.name, part) for part in _thirds(tensor))
        else:
            out[name] = tensor
    return out


def _thirds(tensor: Tensor) -> Iterator[Tensor]:
    n = tensor.shape[0] // len(_PARTS)
    shape = n, *tensor.shape[1:]
    for i, letter in enumerate(_PARTS):
        name = tensor.name.replace(_FUSED, f".attn_{letter}.")
        if tensor.place:
            path, offset, n_bytes = tensor.place
            yield stored(name, shape, tensor.type, path, offset + i * (n_bytes // len(_PARTS)))
        else:
            yield Tensor(name, shape, tensor.type, lambda rows=slice(i * n, (i + 1) * n): tensor.read()[rows])  # type: ignore[misc]
