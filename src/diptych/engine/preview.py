"""A picture as the model sees it, for people: its sizes, the lattice of its tokens, and the pixels themselves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from diptych.errors import MediaError
from diptych.families.base import Family, MediaHalf
from diptych.media.draw import png, seen
from diptych.types import Grid, MediaChunk, MediaKind


@dataclass(frozen=True)
class Preview:
    """What a picture becomes. `size` is (width, height) as given and `used` as the model sees it, None where the media half
    does not tell; `grids` are the lattices of its chunks with their tokens; a patch has `patch` pixels a side, a token
    `merge` patches. `cached` is true when it need not be encoded; `image` is a PNG file of the pixels, where these can be had.
    """

    kind: MediaKind
    size: tuple[int, int]
    used: tuple[int, int] | None
    grids: tuple[tuple[Grid, int], ...]
    patch: int | None
    merge: int | None
    cached: bool
    image: bytes | None = field(repr=False)

    @property
    def n_tokens(self) -> int:
        return sum(n for _, n in self.grids)


def preview(half: MediaHalf, chunks: Sequence[MediaChunk], is_cached: Callable[[bytes], bool]) -> Preview:
    """What the chunks of one picture say about it; `is_cached` tells whether the rows of a chunk key are there.

    The pixels are those that the encoder is fed, so they can be had of our families alone, and only where a picture is one
    piece. Raises MediaError when nothing of the picture is seen.
    """
    if not chunks:
        raise MediaError("the media half makes no chunk of the picture, so there is nothing to show; give another")
    first, family = chunks[0], half.family
    return Preview(
        kind=first.kind,
        size=first.size,
        used=first.used if any(first.used) else None,
        grids=tuple((chunk.grid, chunk.n_tokens) for chunk in chunks),
        patch=family.hp.patch_size if family else None,
        merge=family.hp.n_merge if family else None,
        cached=all(chunk.rows is not None or is_cached(chunk.key) for chunk in chunks),
        image=_pixels(family, chunks) if family else None,
    )


def _pixels(family: Family, chunks: Sequence[MediaChunk]) -> bytes | None:
    pieces = [piece for chunk in chunks for piece in chunk.pieces]
    if len(pieces) != 1 or len(chunks) != 1:
        return None
    hp, fed = family.hp, next(iter(pieces[0].inputs.values()))
    return png(seen(fed, chunks[0].used, hp.patch_size, hp.n_merge, hp.mean, hp.std))
