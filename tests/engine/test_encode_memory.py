"""A picture that the media half has no memory for is refused, and those beside it are answered as always."""

from __future__ import annotations

import asyncio
from pathlib import Path

from asking import Load, collect, joined, png, request

from diptych.encoder.memory import MIB, predict
from diptych.encoder.precision import Choice
from diptych.errors import MediaTooLarge
from diptych.families import open_family
from diptych.types import Output


def test_a_picture_that_is_too_large_for_the_memory_leaves_its_neighbours_unharmed(load: Load, deployment: Path) -> None:
    small, large = request("Read", png(1, 112, 112)), request("Read", png(2, 448, 448))
    wanted = joined(asyncio.run(collect(load(n_parallel=2), small)))
    family = open_family(next(deployment.glob("mmproj*.gguf")))
    total = predict(family, Choice("f32", "onnxruntime", "f32", ""), [(1, 8, 8)]).total
    engine = load(n_parallel=2, encode_memory=-(-total // MIB))

    async def beside() -> list[list[Output] | BaseException]:
        return await asyncio.gather(*(collect(engine, one) for one in (small, large, small)), return_exceptions=True)

    first, refused, last = asyncio.run(beside())
    assert isinstance(refused, MediaTooLarge), refused
    assert "--encode-memory allows" in str(refused)
    for found in (first, last, asyncio.run(collect(engine, small))):
        assert isinstance(found, list)
        assert joined(found) == wanted
