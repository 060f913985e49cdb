"""A file that arrives over the network: it goes on where it was broken off, and is checked before it counts."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path

from diptych.errors import FileError

# The bytes from an offset on, and the offset they really begin at: a server may know no ranges and begin at 0.
OpenAt = Callable[[int], AbstractContextManager[tuple[int, Iterable[bytes]]]]

ATTEMPTS = 5  # in a row without a single byte
PAUSE = 1.0  # seconds before the next attempt, times its number


class BrokenOff(Exception):
    """The line broke, or the server is busy: worth another attempt. The cause says which."""


def arrive(part: Path, target: Path, size: int, digest: str, open_at: OpenAt, moved: Callable[[int], None]) -> None:
    """Let a file of `size` bytes grow in `part`, check it, and only then call it `target`.

    `digest` is the SHA-256 in hexadecimal, or the 40 digits of git's SHA-1 of a blob. `moved` hears how many bytes are
    there. Raises FileError when what arrived is not what was announced, which is thrown away; BrokenOff when
    ATTEMPTS in a row brought nothing, and OSError when it cannot be written, and then `part` stays to go on from.
    """
    _grow(part, size, open_at, moved)
    if part.stat().st_size != size or digest_of(part, git=len(digest) == 40) != digest:
        part.unlink()
        raise FileError(f"{target} did not arrive as the hub announced it, and was thrown away; run it again")
    part.replace(target)


def digest_of(path: Path, *, git: bool) -> str:
    """The SHA-256 of a file, or the SHA-1 that git knows its content by."""
    with path.open("rb") as file:
        if not git:
            return hashlib.file_digest(file, "sha256").hexdigest()
        head = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
        return hashlib.file_digest(file, lambda: head).hexdigest()


def _grow(part: Path, size: int, open_at: OpenAt, moved: Callable[[int], None]) -> None:
    """Append to a file until it has its size."""
    failed, before = 0, -1
    while (have := part.stat().st_size if part.exists() else 0) < size:
        failed = 0 if have > before else failed
        before = have
        try:
            _append(part, have, size, open_at, moved)
        except BrokenOff:
            failed += 1
            if failed == ATTEMPTS:
                raise
            time.sleep(PAUSE * failed)


def _append(part: Path, have: int, size: int, open_at: OpenAt, moved: Callable[[int], None]) -> None:
    """Write what one answer brings. Raises BrokenOff when it ends early."""
    with open_at(have) as (start, blocks), part.open("ab") as file:
        file.truncate(start)
        for block in blocks:
            file.write(block)
            moved(file.tell())
            if file.tell() > size:
                return  # not the file that was announced, however it goes on
        file.flush()
        os.fsync(file.fileno())
        if file.tell() < size:
            raise BrokenOff(f"it ended after {file.tell():,} of {size:,} bytes")
