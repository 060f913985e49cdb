"""What transformers makes of a tiny checkpoint whose tower takes rows of patches, and checks of a family against it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from check import TRANSFORMERS, Expected, Pixels, Reference, far, media
from numpy.typing import NDArray

from diptych.encoder.half import FamilyHalf
from diptych.errors import MediaError
from diptych.families.packed import Packed, Size
from diptych.options import Options
from diptych.positions import text
from diptych.types import MediaSettings
from pictures import noise


def model(folder: Path, class_name: str = "AutoModelForImageTextToText") -> Any:
    """The checkpoint in transformers, in f32, without the head."""
    import torch
    import transformers

    torch.set_num_threads(1)
    return getattr(transformers, class_name).from_pretrained(folder, dtype=torch.float32).model.eval()


def processor(folder: Path) -> Any:
    """Qwen2-VL's picture processor, which many families share, with the checkpoint's settings."""
    return processor_class().from_pretrained(folder)


def processor_class() -> Any:
    """The class of `processor`."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    return Qwen2VLImageProcessorPil


def pooled(found: Any) -> Any:
    """The rows of a tower's output."""
    return found.pooler_output


def reference(
    tower: Callable[..., Any],
    processor: Any,
    *,
    rows: Callable[[Any], Any] = pooled,
    patches: Callable[..., NDArray[Any]] = lambda values, grid: values,
) -> Reference:
    """What `tower` makes of a picture: `rows` takes them from its output, `patches` puts its input in the graph's order."""
    import torch

    def run(picture: Pixels) -> Expected:
        made = processor(images=[picture], return_tensors="pt", input_data_format="channels_last")
        values, grid = made["pixel_values"], made["image_grid_thw"]
        with torch.no_grad():
            found = rows(tower(values, grid))
        return Expected([{"patches": patches(values.numpy(), grid[0].tolist())}], found.numpy())

    return run


def transformers(folder: Path) -> Reference:
    """What Qwen2-VL and its kin make of a picture."""
    return reference(model(folder).visual, processor(folder))


def check_frames(family: Packed, tower: Callable[..., Any], size: Size) -> None:
    """The two frames of a patch meet their own kernels: patches of two frames that differ give the tower's rows."""
    import torch

    half = FamilyHalf(family, Options())
    (chunk,) = half.preprocess(media(noise(*size)), MediaSettings())
    (piece,) = chunk.pieces
    frames = np.random.default_rng(0).standard_normal(piece.inputs["patches"].shape, np.float32)
    with torch.no_grad():
        wanted = pooled(tower(torch.from_numpy(frames), torch.tensor([piece.grid]))).numpy()
    assert far(half.encode([replace(piece, inputs={"patches": frames})])[0], wanted) < TRANSFORMERS


def check_rope_index(family: Packed, model: Any, sizes: Sequence[Size] = ((112, 56), (61, 300), (84, 84))) -> None:
    """Positions of text and three pictures in turn are those of the model's `get_rope_index`."""
    import torch

    chunks = [family.preprocess(media(noise(w, h)), MediaSettings())[0] for w, h in sizes]
    planes, types, at = [], [], 0
    for n, chunk in zip((4, 1, 2), chunks, strict=True):  # text, picture, text, picture, text, picture, text
        words, at = text(n, at, 4)
        placed, at = family.positions(chunk, at)
        planes += [words, placed]
        types += [0] * n + [1] * chunk.n_tokens
    planes.append(text(5, at, 4)[0])
    types += [0] * 5
    grids, ids = torch.tensor([c.pieces[0].grid for c in chunks]), torch.zeros(1, len(types), dtype=torch.long)
    wanted, _ = model.get_rope_index(ids, torch.tensor([types]), image_grid_thw=grids)
    np.testing.assert_array_equal(np.concatenate(planes, axis=1)[:3], wanted[:, 0])


def check_sizes(used: Callable[[int, int], Size], resize: Callable[[int, int], Size], more: Sequence[Size] = ()) -> None:
    """Pictures of thousands of sizes, and `more`, become as large as `resize` has them, and what it refuses is refused."""
    sides = np.exp(np.random.default_rng(0).uniform(0, np.log(5000), (3000, 2))).round().astype(int).tolist()
    ties = [(14, 42), (42, 14), (70, 70), (98, 126)]  # they round to even
    edges = [(1000, 5), (5, 1000), (1, 200), (200, 1), (1, 201), (201, 1)]  # of the aspect's limit
    for width, height in [*sides, *ties, *edges, *more]:
        if max(width, height) > 200 * min(width, height):
            with pytest.raises(MediaError, match=f"{width}×{height}.*200"):
                used(width, height)
            with pytest.raises(ValueError, match="ratio"):
                resize(width, height)
        else:
            assert used(width, height) == resize(width, height), (width, height)


def check_limits(family: type[Packed], config: dict[str, Any], settings: dict[str, Any], processor: Any) -> None:
    """The limits of pixels, and the levels, are read from a processor's settings as its class in transformers reads them."""
    wanted, made = processor(**settings), family.metadata(config, settings)
    assert made["clip.vision.image_min_pixels"] == wanted.size["shortest_edge"]
    assert made["clip.vision.image_max_pixels"] == wanted.size["longest_edge"]
    assert made["clip.vision.image_mean"] == list(wanted.image_mean)
    assert made["clip.vision.image_std"] == list(wanted.image_std)
