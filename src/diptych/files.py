"""Output files that appear whole or not at all, and the folder of those that Diptych keeps for itself."""

from __future__ import annotations

import errno
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from diptych.errors import DiptychError, OutputError


def home() -> Path:
    """Diptych's own folder: DIPTYCH_HOME, or `diptych` in the user's cache folder."""
    if given := os.environ.get("DIPTYCH_HOME"):
        return Path(given).expanduser()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "diptych"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "diptych"


@contextmanager
def whole_file(path: Path, *, force: bool = False, inputs: Iterable[Path] = ()) -> Iterator[Path]:
    """Give a temporary path beside `path` to write to; it takes the place of `path` when the block ends well.

    Raises OutputError before anything is written when `path` exists (without `force`), is one of `inputs`, or its
    folder is missing; and, with nothing left behind, when the disk fills or refuses the write.
    """
    check_output(path, force=force, inputs=inputs)
    with _explained(path):
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        os.close(handle)
        part = Path(name)
        try:
            yield part
            part.chmod(0o666 & ~_umask())
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path, *, force: bool = False, inputs: Iterable[Path] = ()) -> Iterator[Path]:
    """Give a temporary folder beside `path`; when the block ends well its files move into `path`, made if absent.

    A file that stands in `path` already is replaced only with `force`; files of other names there are left alone.
    Raises OutputError as `whole_file` does.
    """
    if path.exists() and not path.is_dir():
        raise OutputError(f"{path} is a file, and a folder is to be written there; name another folder")
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent))
        try:
            yield part
            made = sorted(part.iterdir())
            for file in made:
                check_output(path / file.name, force=force, inputs=inputs, parent=False)
            path.mkdir(exist_ok=True)
            for file in made:
                file.replace(path / file.name)
        except OutputError as error:  # of a file inside: name it where it was to stand
            raise OutputError(str(error).replace(str(part), str(path))) from error
        finally:
            shutil.rmtree(part, ignore_errors=True)


def check_output(path: Path, *, force: bool = False, inputs: Iterable[Path] = (), parent: bool = True) -> None:
    """Raise OutputError when `path` may not be written: a folder, an input, or a file that exists without `force`."""
    if path.is_dir():
        raise OutputError(f"{path} is a folder, and a file is to be written there; name a file")
    if parent and not path.parent.is_dir():
        raise OutputError(f"cannot write {path}: there is no folder {path.parent}; make it first")
    if not path.exists():
        return
    if any(source.exists() and path.samefile(source) for source in inputs):
        raise OutputError(f"{path} is also an input, and would be overwritten; name another output")
    if not force:
        raise OutputError(f"{path} exists; name another output or allow overwriting with --force")


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except DiptychError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise OutputError(
                f"cannot write {path}: {error.strerror}; nothing was kept, free some space and run it again"
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise OutputError(f"cannot write {path}: {error.strerror}; name a place you may write to") from error
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
