"""The SHA-256 of files, remembered as long as the size, times and place of a file stay what they were."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

from diptych import files
from diptych.deploy.hashes import hashed
from diptych.errors import DiptychError, FileError

_MOST = 256  # files remembered


def sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal; read only where it is not known. Raises FileError when it cannot be read."""
    path = path.resolve()
    try:
        found = path.stat()
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror}") from error
    known, state = _known(), [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]
    entry = known.get(str(path))
    if isinstance(entry, list) and entry[:-1] == state and isinstance(entry[-1], str):
        return entry[-1]
    digest = hashed(path)
    known.pop(str(path), None)
    _remember({**known, str(path): [*state, digest]})
    return digest


def _place() -> Path:
    return files.home() / "hashes.json"


def _known() -> dict[str, object]:
    """Every file remembered; none where the memory is damaged, which only costs time."""
    try:
        found = json.loads(_place().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _remember(known: dict[str, object]) -> None:
    with suppress(OSError, DiptychError):  # a folder that cannot be written to costs time at the next start, no more
        _place().parent.mkdir(parents=True, exist_ok=True)
        with files.whole_file(_place(), force=True) as part:
            part.write_text(json.dumps(dict(list(known.items())[-_MOST:])), encoding="utf-8")
