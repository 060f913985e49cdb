"""Memory that is kept where nobody needs it: of files that a library has mapped, and of what was freed."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_EVERY = 0.05  # seconds
_GONE = " (deleted)"  # what Linux puts behind the name of a file that is mapped and removed
_DONTNEED = 4  # MADV_DONTNEED: forget the pages; of a mapped file they are read again when somebody looks


@contextmanager
def released(path: Path) -> Iterator[None]:
    """Inside the block, and at its end, the pages of a file take next to no memory, though a library reads it from end to end."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(_EVERY):
            release(path)

    thread = threading.Thread(target=watch, name="diptych-release", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        release(path)


def trim() -> None:
    """Give what was freed back to the system, where the C library keeps it for later and can be told (GNU's)."""
    with suppress(AttributeError, OSError, TypeError):  # the last on Windows, where no library is the process's own
        ctypes.CDLL(None).malloc_trim(0)


def release(path: Path) -> int:
    """Give back the memory of a file's pages, where it is mapped into this process; the bytes mapped.

    Nothing is lost: a page that is looked at comes from the file again. Elsewhere than on Linux nothing happens.
    """
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return 0
    total = 0
    for line in lines:
        span, access, _offset, _device, _inode, *names = line.split(maxsplit=5)
        written = "w" in access  # a page written to is not the file's any more
        if written or os.fspath(path) not in [name.removesuffix(_GONE) for name in names]:
            continue
        start, end = (int(text, 16) for text in span.split("-"))
        if ctypes.CDLL(None, use_errno=True).madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _DONTNEED) == 0:
            total += end - start
    return total
