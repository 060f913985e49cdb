"""Encoded media in JSON: what encoding answers, and what a chat takes back in the place of a picture.

What a client sends is checked before anything else sees it, and gets a key made from its rows: a key of the client's
own choosing could stand for somebody else's picture in the prefix cache.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import struct
from collections.abc import Mapping
from math import prod
from typing import Any, Literal, TypeGuard, cast

import numpy as np

from diptych.backend import check_kinds
from diptych.encoder.rows import fault
from diptych.errors import InputError, MediaError, UnusableMedia
from diptych.families.base import MediaHalf, Rows
from diptych.types import Grid, Json, MediaChunk, MediaKind, Source

Encoding = Literal["float", "base64", "base64_f16"]
_DTYPES: dict[str, np.dtype[Any]] = {"base64": np.dtype("<f4"), "base64_f16": np.dtype("<f2")}
MAX_CHUNKS = 4096  # of one media part: a long clip
_MAX_SIDE = 2**31 - 1


def chunk_json(chunk: MediaChunk, encoding: Encoding) -> dict[str, Json]:
    """A chunk that has its rows. Raises InputError where 16 bits cannot hold them."""
    assert chunk.rows is not None
    grid = chunk.grid
    return {
        "n_tokens": chunk.n_tokens,
        "grid": [grid.t, grid.h, grid.w],
        "key": chunk.key.hex(),
        "shape": list(chunk.rows.shape),
        "encoding_format": encoding,
        "embedding": encoded_array(chunk.rows, encoding),
    }


def encoded_array(array: Rows, encoding: Encoding) -> Json:
    """Numbers as lists, or as base64 of little-endian floats. Raises InputError where 16 bits cannot hold them."""
    if encoding == "float":
        return cast(Json, array.tolist())
    with np.errstate(over="ignore"):
        data = array.astype(_DTYPES[encoding])
    if not np.isfinite(data).all():
        raise InputError(f"an embedding is out of the range of 16 bits ({abs(array).max():.3g}); ask for base64 instead")
    return base64.b64encode(data.tobytes()).decode()


def source(value: Json, half: MediaHalf | None, most: int) -> Source:
    """A media part that was encoded before, of at most `most` tokens: the object of an encoding, or its chunks alone.

    Raises MediaError for what is not of that form, UnusableMedia for rows that are no embeddings of this media half,
    InputError where there is none that takes its kind.
    """
    given = value if isinstance(value, Mapping) else {"chunks": value}
    kind, half = _kind(given.get("kind", "image"), half)
    listed = given.get("chunks")
    if not isinstance(listed, list) or not listed:
        raise MediaError("media_embedding has no chunks; send the answer of /v1/media/encode as it is")
    if len(listed) > MAX_CHUNKS:
        raise UnusableMedia(f"media_embedding has {len(listed)} chunks, and {MAX_CHUNKS} is the most")
    size, used = (_pair(given.get(name), name) for name in ("size", "used"))
    chunks: list[MediaChunk] = []
    for i, one in enumerate(listed):
        chunk = _chunk(one, f"media_embedding.chunks[{i}]", kind, half, most)
        most -= chunk.n_tokens
        chunks.append(MediaChunk(kind, chunk.n_tokens, chunk.grid, chunk.key, (), size, used, rows=chunk.rows))
    return Source(kind, chunks=tuple(chunks))


def _kind(given: Json, half: MediaHalf | None) -> tuple[MediaKind, MediaHalf]:
    if given not in ("image", "audio", "video"):
        raise MediaError(f"media_embedding.kind is {given!r:.40}; it must be image, audio or video")
    if half is None:
        raise InputError("there is no media half, so that the model takes no embeddings of media; give one with --mmproj")
    kind = cast(MediaKind, given)
    check_kinds((kind,), half)
    if half.backend == "mtmd":
        raise UnusableMedia(
            "the media half runs in libmtmd, which has to prepare a picture to know where its rows stand; send the picture "
            "itself, or run the media half with --media-backend onnx"
        )
    return kind, half


def _chunk(given: Json, where: str, kind: MediaKind, half: MediaHalf, most: int) -> MediaChunk:
    if not isinstance(given, Mapping):
        raise MediaError(f"{where} is {type(given).__name__}; it must be an object with n_tokens, grid and embedding")
    n = given.get("n_tokens")
    if not _is_count(n) or n > most:
        raise UnusableMedia(f"{where}.n_tokens is {n!r:.40}; it must be 1 to {most}, what the context has room for")
    grid = given.get("grid")
    if not isinstance(grid, list) or len(grid) != 3 or not all(_is_count(side) for side in grid):
        raise MediaError(f"{where}.grid is {grid!r:.60}; it must be the three sides [t, h, w], each 1 or more")
    if given.get("shape", [n, half.n_embd]) != [n, half.n_embd]:
        raise UnusableMedia(f"{where}.shape is {given['shape']!r:.60}; for {n} tokens of this model it is {[n, half.n_embd]}")
    rows = _rows(given.get("embedding"), given.get("encoding_format"), (n, half.n_embd), f"{where}.embedding")
    if found := fault(rows, (n, half.n_embd)):
        raise UnusableMedia(f"{where}.embedding is {found}; send what this model's encoder gives")
    # some families have rows between the lines, none has fewer than places
    if prod(grid) <= n and _stands(chunk := MediaChunk(kind, n, Grid(*grid), _key(kind, grid, rows), (), rows=rows), half):
        return chunk
    raise UnusableMedia(f"{where}.grid {'×'.join(map(str, grid)):.60} does not fit n_tokens {n}; send both as they came")


def _stands(chunk: MediaChunk, half: MediaHalf) -> bool:
    """A lattice says where rows stand, and must do so for each of them."""
    planes, end = half.positions(chunk, 0)
    return planes.shape == (half.n_pos, chunk.n_tokens) and 0 < end <= chunk.n_tokens


def _rows(given: Json, encoding: Json, shape: tuple[int, int], where: str) -> Rows:
    """(n, n_embd) numbers in whichever form, whose size is known before they are made."""
    n, n_embd = shape
    if isinstance(given, str):
        return _decoded(given, encoding, shape, where)
    if not isinstance(given, list):
        raise MediaError(f"{where} is {type(given).__name__}; it must be base64, or lists of numbers")
    if len(given) != n or not all(isinstance(row, list) and len(row) == n_embd for row in given):
        raise UnusableMedia(f"{where} is not {n} lists of {n_embd} numbers, as n_tokens and this model ask for")
    if not all(type(number) in (int, float) for row in given for number in cast(list[Json], row)):
        raise MediaError(f"{where} holds something that is no number")
    try:
        with np.errstate(over="ignore"):
            return np.array(given, np.float64).astype(np.float32)
    except OverflowError as error:  # a whole number of hundreds of digits
        raise UnusableMedia(f"{where} holds a number that is too large") from error


def _decoded(text: str, encoding: Json, shape: tuple[int, int], where: str) -> Rows:
    dtype = _DTYPES.get(encoding) if isinstance(encoding, str) else _DTYPES["base64"] if encoding is None else None
    if dtype is None:
        raise MediaError(f"{where} is text in the encoding_format {encoding!r:.40}; it must be {' or '.join(_DTYPES)}")
    n_bytes = shape[0] * shape[1] * dtype.itemsize
    if len(text) != 4 * -(-n_bytes // 3):
        raise UnusableMedia(
            f"{where} has {len(text)} characters of base64, and {shape[0]} rows of {shape[1]} numbers of {dtype.itemsize} bytes "
            f"take {4 * -(-n_bytes // 3)}; send it whole, and for the model it was made by"
        )
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise MediaError(f"{where} is not valid base64: {str(error).lower()}; encode the bytes again") from error
    if len(data) != n_bytes:
        raise MediaError(f"{where} holds {len(data)} bytes, and {n_bytes} are expected; send it whole")
    return np.frombuffer(data, dtype).reshape(shape).astype(np.float32)


def _key(kind: MediaKind, grid: list[Json], rows: Rows) -> bytes:
    """SHA-256 of all that the text half sees of a chunk."""
    digest = hashlib.sha256(b"rows %s " % kind.encode() + struct.pack("<5q", *cast(list[int], grid), *rows.shape))
    digest.update(rows.astype("<f4", copy=False).tobytes())
    return digest.digest()


def _pair(given: Json, name: str) -> tuple[int, int]:
    """A size in pixels; that of nothing where it was not told."""
    if given is None:
        return 0, 0
    if not isinstance(given, list) or len(given) != 2 or not all(type(side) is int and 0 <= side <= _MAX_SIDE for side in given):
        raise MediaError(f"media_embedding.{name} is {given!r:.60}; it must be [width, height] in pixels")
    return cast(tuple[int, int], tuple(given))


def _is_count(value: Json) -> TypeGuard[int]:
    return type(value) is int and value > 0
