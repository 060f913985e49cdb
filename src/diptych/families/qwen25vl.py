"""Qwen2.5-VL: most layers attend within windows of the picture; two frames a patch, 2×2 merger, M-RoPE positions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from diptych.errors import FileError
from diptych.families import qwen2vl
from diptych.families.base import Table, whole
from diptych.families.packed import MERGE, Packed, check_tower, processed
from diptych.graph import nn
from diptych.types import MediaKind, Piece

if TYPE_CHECKING:
    from diptych.graph.graph import Graph
    from diptych.weights import Weights

EPS = 1e-6  # a constant of the model's code; config.json's rms_norm_eps is the text half's
WINDOW = 112  # pixels a side, those of every published model; llama.cpp's converter does not write them
FULL = (7, 15, 23, 31)  # layers that see the whole picture where config.json does not say


class Qwen25VL(Packed):
    """Qwen2.5-VL's encoder: RMSNorm, gated MLP, attention within windows but for some layers, 2×2 merger.

    The graph puts the merged cells in the order of their windows, those of one size together, and its rows back into the
    picture's. A window is a segment of its own, so attention costs n × window and not n × n.
    """

    projectors: ClassVar[Mapping[MediaKind, tuple[str, ...]]] = {"image": ("qwen2.5vl_merger",)}
    architectures: ClassVar[tuple[str, ...]] = ("Qwen2_5_VLForConditionalGeneration",)
    placeholders: ClassVar[Mapping[MediaKind, tuple[str, ...]]] = qwen2vl.Qwen2VL.placeholders
    tensors: ClassVar[Table] = {
        "visual.patch_embed.proj.weight": ("v.patch_embd.weight", "v.patch_embd.weight.1"),
        "visual.blocks.{i}.norm1.weight": "v.blk.{i}.ln1.weight",
        "visual.blocks.{i}.attn.qkv.weight": ("v.blk.{i}.attn_q.weight", "v.blk.{i}.attn_k.weight", "v.blk.{i}.attn_v.weight"),
        "visual.blocks.{i}.attn.qkv.bias": ("v.blk.{i}.attn_q.bias", "v.blk.{i}.attn_k.bias", "v.blk.{i}.attn_v.bias"),
        "visual.blocks.{i}.attn.proj.weight": "v.blk.{i}.attn_out.weight",
        "visual.blocks.{i}.attn.proj.bias": "v.blk.{i}.attn_out.bias",
        "visual.blocks.{i}.norm2.weight": "v.blk.{i}.ln2.weight",
        "visual.blocks.{i}.mlp.gate_proj.weight": "v.blk.{i}.ffn_gate.weight",
        "visual.blocks.{i}.mlp.gate_proj.bias": "v.blk.{i}.ffn_gate.bias",
        "visual.blocks.{i}.mlp.up_proj.weight": "v.blk.{i}.ffn_up.weight",
        "visual.blocks.{i}.mlp.up_proj.bias": "v.blk.{i}.ffn_up.bias",
        "visual.blocks.{i}.mlp.down_proj.weight": "v.blk.{i}.ffn_down.weight",
        "visual.blocks.{i}.mlp.down_proj.bias": "v.blk.{i}.ffn_down.bias",
        "visual.merger.ln_q.weight": "v.post_ln.weight",
        "visual.merger.mlp.0.weight": "mm.0.weight",
        "visual.merger.mlp.0.bias": "mm.0.bias",
        "visual.merger.mlp.2.weight": "mm.2.weight",
        "visual.merger.mlp.2.bias": "mm.2.bias",
    }
    limits = qwen2vl.LIMITS

    def __init__(self, weights: Weights, kind: MediaKind = "image") -> None:
        """Raises FileError when the file does not say which layers see the whole picture, or its windows hold nothing."""
        super().__init__(weights, kind)
        size = whole(weights.metadata, "clip.vision.window_size", WINDOW)
        self.window = _cells(size, self.hp.patch_size * self.hp.n_merge)
        layers = weights.metadata.get("clip.vision.wa_layer_indexes")
        self._full = frozenset(np.ravel(layers).tolist()) if layers is not None else None
        self._every = whole(weights.metadata, "clip.vision.n_wa_pattern") if layers is None else 0

    @staticmethod
    def metadata(config: Mapping[str, Any], processor: Mapping[str, Any]) -> dict[str, Any]:
        """config.json and preprocessor_config.json → the `clip.*` metadata.

        Raises FileError when the checkpoint's tower is not one that Qwen2.5-VL's code would build.
        """
        vision = config["vision_config"]
        check_tower(vision, "Qwen2.5-VL", hidden_act="silu", temporal_patch_size=2, in_channels=3, in_chans=3)
        n_layer, patch, merge = (
            int(vision.get(n, v)) for n, v in (("depth", 32), ("patch_size", 14), ("spatial_merge_size", MERGE))
        )
        window = int(vision.get("window_size", WINDOW))
        _cells(window, patch * merge)
        return {
            "clip.has_vision_encoder": True,
            "clip.projector_type": "qwen2.5vl_merger",
            "clip.use_silu": True,
            "clip.vision.projection_dim": int(vision.get("out_hidden_size", 3584)),
            "clip.vision.image_size": int(vision.get("image_size", 560)),  # nominal: any size goes
            "clip.vision.patch_size": patch,
            "clip.vision.spatial_merge_size": merge,
            "clip.vision.embedding_length": int(vision.get("hidden_size", 3584)),
            "clip.vision.feed_forward_length": int(vision.get("intermediate_size", 3420)),
            "clip.vision.block_count": n_layer,
            "clip.vision.attention.head_count": int(vision.get("num_heads", 16)),
            "clip.vision.attention.layer_norm_epsilon": EPS,
            "clip.vision.window_size": window,
            **_full_layers(vision.get("fullatt_block_indexes", FULL), n_layer),
            **processed(processor, qwen2vl.LIMITS),
        }

    def full(self, layer: int) -> bool:
        """Whether a layer sees the whole picture: one of a list, or every n-th (0: all, as in llama.cpp)."""
        if self._full is not None:
            return layer in self._full
        return not self._every or (layer + 1) % self._every == 0

    def windows(self, grid: tuple[int, ...]) -> list[NDArray[np.int64]]:
        """The merged cells of each window, the largest windows first; those at the right and lower edge may be smaller."""
        h, w = (side // self.hp.n_merge for side in grid[1:])
        cells, n = np.arange(h * w).reshape(h, w), self.window
        found = [cells[y : y + n, x : x + n].ravel() for y in range(0, h, n) for x in range(0, w, n)]
        return sorted(found, key=len, reverse=True)

    def feed(self, pieces: Sequence[Piece]) -> dict[str, NDArray[Any]]:
        """The patches of all pieces, the order of their cells by window and back, and the tables in that order."""
        fed, cell = super().feed(pieces), self.hp.n_merge**2
        of_grid = {grid: self.windows(grid) for grid in {p.grid for p in pieces}}
        windows, n_cells = [of_grid[p.grid] for p in pieces], np.array([p.n_patches // cell for p in pieces])
        starts = np.cumsum(n_cells) - n_cells
        order = np.concatenate([cells + start for start, ws in zip(starts, windows, strict=True) for cells in ws])
        spans = [(len(list(same)), n * cell) for ws in windows for n, same in groupby(map(len, ws))]
        tables = {name: fed[name].reshape(len(order), -1)[order].reshape(fed[name].shape) for name in ("cos", "sin")}
        return {**fed, **tables, "windows": np.array(spans, np.int64), "order": order, "restore": np.argsort(order)}

    def graph(self, g: Graph, kind: str) -> None:
        """patches (n_patch, 3 · 2 · 14 · 14), cos and sin (n_patch, d / 2), spans and windows (n, 2), order and restore
        (n_token,) → (n_token, n_embd)."""
        inputs = self.inputs(g)
        windows = g.input("windows", ("n_window_span", 2), np.int64)
        order, restore = (g.input(name, ("n_token",), np.int64) for name in ("order", "restore"))
        x = g.Reshape(g.Gather(self.cells(g, self.embedded(g, inputs)), order, axis=0), [-1, self.hp.n_embd])
        for i in range(self.hp.n_layer):
            name, spans = f"v.blk.{i}", None if self.full(i) else windows
            x = nn.add(g, x, self.attention(g, nn.rms_norm(g, x, f"{name}.ln1", EPS), name, inputs, spans))
            x = nn.add(g, x, nn.gated_mlp(g, nn.rms_norm(g, x, f"{name}.ln2", EPS), f"{name}.ffn", nn.silu))
        rows = nn.mlp(g, self.cells(g, nn.rms_norm(g, x, "v.post_ln", EPS)), "mm.0", "mm.2", nn.gelu)
        self.output(g, g.Gather(rows, restore, axis=0), inputs)

    def explain(self) -> dict[str, str]:
        """How a picture becomes patches, and how its cells are put in the order of their windows."""
        n, usual = self.window, super().explain()
        return {
            **usual,
            "cos": f"{usual['cos']}; cells as in order",
            "sin": f"{usual['sin']}; cells as in order",
            "order": (
                f"which cell, counted through all pictures of the run, stands at each place: windows of {n} × {n} cells, "
                "in a picture the largest first, otherwise row by row; the cells of a window row by row"
            ),
            "restore": "the place of each cell in order",
            "windows": "as spans, for the layers that attend within windows, cells as in order",
        }


def _full_layers(indexes: Sequence[int], n_layer: int) -> dict[str, Any]:
    """The layers that see the whole picture, as every n-th where it is so (0: all).

    llama.cpp knows nothing else: it refuses a list, and with a 1 in the place of the 0 its process ends.
    """
    full = sorted({int(i) for i in indexes if 0 <= i < n_layer})
    n = full[0] + 1 if full else n_layer + 1
    if full != list(range(n - 1, n_layer, n)[: len(full) + 1]):
        return {"clip.vision.wa_layer_indexes": full}
    return {"clip.vision.n_wa_pattern": n if n > 1 else 0}


def _cells(window: int, cell: int) -> int:
    """How many cells of `cell` pixels a window of `window` pixels has a side."""
    if not 0 < cell <= window:
        raise FileError(f"windows are {window} pixels a side and cells {cell}; a window must hold at least one cell")
    return window // cell
