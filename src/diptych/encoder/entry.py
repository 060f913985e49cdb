"""The file of one chunk's rows on disk: a header that says what it is, a checksum of all of it, and the rows.

    magic (8) | form (4) | key (32) | rows (4) | width (4) | type (4) | BLAKE2b of all that, and of the rows (32) | rows

Numbers are little-endian. What is expected of a file is known before it is read, so no field of it is trusted.
"""

from __future__ import annotations

import hashlib
import struct
from typing import BinaryIO

import numpy as np

from diptych.families.base import Rows

KEY = 32  # bytes
_HEADER = struct.Struct("<8sI32sII4s")
_MAGIC, _FORM, _TYPE = b"DIPTROWS", 1, b"<f4\0"
_CHECKSUM = 32  # bytes


class Damaged(Exception):
    """A file is not the one of these rows, or not whole."""


def write(file: BinaryIO, key: bytes, rows: Rows) -> None:
    """Write (n_tokens, n_embd) rows of a key of 32 bytes."""
    header, array = _header(key, rows.shape), np.ascontiguousarray(rows, "<f4")
    file.write(header)
    file.write(_checksum(header, array))
    file.write(_bytes(array))


def read(file: BinaryIO, key: bytes, shape: tuple[int, int]) -> Rows:
    """The rows that `write` wrote, read-only, equal to the bit. Raises Damaged for any other file."""
    header = _header(key, shape)
    if (found := file.read(len(header))) != header:
        raise Damaged("it is cut short" if len(found) < len(header) else "its header is of other rows")
    checksum, array = file.read(_CHECKSUM), np.empty(shape, "<f4")
    if file.readinto(_bytes(array)) < array.nbytes or file.read(1):  # type: ignore[attr-defined]
        raise Damaged("it is of another length")
    if _checksum(header, array) != checksum:
        raise Damaged("its checksum is wrong")
    rows = array.astype(np.float32, copy=False)
    rows.flags.writeable = False
    return rows


def size(rows: Rows) -> int:
    """The bytes of the file of rows."""
    return _HEADER.size + _CHECKSUM + rows.nbytes


def _header(key: bytes, shape: tuple[int, ...]) -> bytes:
    return _HEADER.pack(_MAGIC, _FORM, key, *shape, _TYPE)


def _checksum(header: bytes, array: Rows) -> bytes:
    out = hashlib.blake2b(header, digest_size=_CHECKSUM)
    out.update(_bytes(array))
    return out.digest()


def _bytes(array: Rows) -> memoryview:
    return array.reshape(-1).view(np.uint8).data
