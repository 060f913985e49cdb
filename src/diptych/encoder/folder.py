"""Rows of chunks in files of one folder, private to the user, in at most so many bytes; several processes may share it."""

from __future__ import annotations

import logging
import os
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from diptych.encoder import entry
from diptych.families.base import Rows

log = logging.getLogger(__name__)

_ROWS, _PART = ".rows", ".part"
_LEFT = 3600  # seconds after which a part belongs to a process that is gone
_NO_LINKS = getattr(os, "O_NOFOLLOW", 0)


class Folder:
    """Rows by keys of 32 bytes, those used last, whoever used them: a file's time is that of its last use.

    A file appears whole or not at all. One that is not what its name says is removed. `n_bytes` is what all files had when
    it was last looked at.
    """

    def __init__(self, path: Path, max_bytes: int) -> None:
        self.path = path
        self.max_bytes = max_bytes
        self.n_bytes = 0

    def get(self, key: bytes, shape: tuple[int, int]) -> Rows | None:
        """The rows of a key, if they are here, whole and of this shape."""
        path = self._file(key)
        try:
            _check_owner(self.path)
            with open(path, "rb", opener=_opened) as file:
                rows = entry.read(file, key, shape)
        except entry.Damaged as error:
            log.warning("%s is damaged, and is made again: %s", path, error)
            _remove(path)
            return None
        except OSError as error:
            if not isinstance(error, FileNotFoundError):
                log.info("cannot read %s: %s", path, error.strerror)
            return None
        with suppress(OSError):
            os.utime(path)
        return rows

    def put(self, key: bytes, rows: Rows) -> None:
        """Keep rows; such as are larger than all that may be kept are not. Raises OSError where the disk takes none."""
        if entry.size(rows) > self.max_bytes:
            return
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        _check_owner(self.path)
        handle, name = tempfile.mkstemp(suffix=_PART, dir=self.path)  # only the user may read it
        part = Path(name)
        try:
            with os.fdopen(handle, "wb") as file:
                entry.write(file, key, rows)
            self.tidy()
            part.replace(self._file(key))
        finally:
            _remove(part)

    def tidy(self) -> None:
        """Make the files fit: those not used for longest go, and what broken processes left."""
        found = self._files()
        total = sum(info.st_size for _, info in found)
        for path, info in sorted(found, key=lambda one: one[1].st_mtime_ns):
            left = path.suffix == _PART and time.time() - info.st_mtime > _LEFT
            if left or (total > self.max_bytes and path.suffix == _ROWS):
                _remove(path)
                total -= info.st_size
        self.n_bytes = total

    def _file(self, key: bytes) -> Path:
        return self.path / (key.hex() + _ROWS)

    def _files(self) -> list[tuple[Path, os.stat_result]]:
        """Our files, also those that are being written."""
        out: list[tuple[Path, os.stat_result]] = []
        with suppress(FileNotFoundError), os.scandir(self.path) as entries:
            for one in entries:
                with suppress(FileNotFoundError):  # another process was faster
                    if one.name.endswith((_ROWS, _PART)) and one.is_file(follow_symlinks=False):
                        out.append((Path(one.path), one.stat(follow_symlinks=False)))
        return out


def _check_owner(folder: Path) -> None:
    """Keep others out of a folder. Raises OSError where it is another's, who could put rows of other pictures into it."""
    info = folder.stat()
    if not hasattr(os, "geteuid"):
        return
    if info.st_uid != os.geteuid():
        raise PermissionError(None, "the folder belongs to another user; set DIPTYCH_HOME to one of your own")
    if info.st_mode & 0o077:
        folder.chmod(0o700)


def _opened(path: str, flags: int) -> int:
    return os.open(path, flags | _NO_LINKS)


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink(missing_ok=True)
