"""A picture as the model sees it, for people: its sizes, the lattice of its tokens, and the pixels themselves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from diptych.backend import check_kinds
from diptych.errors import InputError
from diptych.families.base import Family, MediaHalf, Rows
from diptych.media.access import Access
from diptych.media.draw import png, seen
from diptych.media.load import decoded, read
from diptych.types import Grid, MediaChunk, MediaKind, MediaSettings, Source


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


def preview(
    half: MediaHalf | None, source: Source, access: Access, settings: MediaSettings, known: Callable[[bytes], Rows | None]
) -> Preview:
    """Fetch, decode and preprocess a picture, and tell what became of it; `known` gives rows that are cached.

    The pixels are those that the encoder is fed, so they can be had of our families alone, and only where a picture is one
    piece. Raises InputError where no half takes pictures, MediaError and its kinds for one that cannot be used.
    """
    if half is None:
        raise InputError("there is no media half to see the picture; give one with --mmproj")
    check_kinds((source.kind,), half)
    chunks = half.preprocess(decoded(source, read(source, access), access), settings)
    first, family = chunks[0], half.family
    return Preview(
        kind=first.kind,
        size=first.size,
        used=first.used if any(first.used) else None,
        grids=tuple((chunk.grid, chunk.n_tokens) for chunk in chunks),
        patch=family.hp.patch_size if family else None,
        merge=family.hp.n_merge if family else None,
        cached=all(known(chunk.key) is not None for chunk in chunks),
        image=_pixels(family, chunks) if family else None,
    )


def _pixels(family: Family, chunks: Sequence[MediaChunk]) -> bytes | None:
    pieces = [piece for chunk in chunks for piece in chunk.pieces]
    if len(pieces) != 1 or len(chunks) != 1:
        return None
    hp, fed = family.hp, next(iter(pieces[0].inputs.values()))
    return png(seen(fed, chunks[0].used, hp.patch_size, hp.n_merge, hp.mean, hp.std))
