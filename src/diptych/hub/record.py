"""What Diptych downloaded: one small JSON file for each model at each revision, in its own folder.

A record is written before the first byte arrives, so that a download that was broken off can be listed and removed, and
again when all is there. The files themselves lie in the cache that all tools for the hub share; `remove` deletes those
alone that a record claims as brought by Diptych and that nothing else names.
"""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from diptych.errors import FileError
from diptych.files import home, whole_file


@dataclass(frozen=True)
class File:
    """A file of a model: its path in the repository, bytes, the name of its blob, and whether Diptych brought it."""

    path: str
    size: int
    blob: str
    ours: bool


@dataclass(frozen=True)
class Download:
    """A model from the hub, as `-hf` names it, at one revision (a commit).

    `tags` and `revisions` are the words it was asked for by. `snapshot` is the folder with its files, `text` and
    `mmproj` the paths of the halves in it; a repository that is a deployment itself has no `text`. `when` is ISO 8601.
    """

    name: str
    repo: str
    quant: str
    revision: str
    snapshot: str
    text: str | None
    mmproj: str | None
    files: tuple[File, ...]
    tags: tuple[str, ...]
    revisions: tuple[str, ...]
    when: str
    complete: bool

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    @property
    def here(self) -> int:
        """Bytes that have arrived; those of a file still on its way count too."""
        return sum(_arrived(self, file) for file in self.files)

    @property
    def whole(self) -> bool:
        """Whether everything is there, in the sizes the hub told."""
        return self.complete and all(is_there(self.path(f.path), f.size) for f in self.files)

    def path(self, name: str) -> Path:
        """Where a file of the repository lies."""
        return Path(self.snapshot, name)


@dataclass(frozen=True)
class Removed:
    """What `remove` did: files and bytes that went, and the paths of files that stay because something else has them."""

    files: int
    size: int
    kept: tuple[str, ...]


def listed() -> list[Download]:
    """Everything recorded, by name, the newest revision first. Raises FileError for a record that is damaged."""
    found = [_read(path) for path in _folder().glob("*.json")]
    return sorted(sorted(found, key=lambda d: d.when, reverse=True), key=lambda d: d.name)


def save(download: Download) -> None:
    """Write a record, whole or not at all, in place of an older one of the same files."""
    path = _place(download)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path, force=True) as part:
        part.write_text(json.dumps(asdict(download), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def partial(blobs: Path, blob: str) -> Path:
    """The file in which a blob arrives. The hub's own tools know by the ending that it is not whole."""
    return blobs / f"{blob}.diptych.incomplete"


def lock(blobs: Path, blob: str) -> Path:
    """The file that is locked while a blob arrives; the hub's own tools lock it too."""
    return blobs.parent.parent / ".locks" / blobs.parent.name / f"{blob}.lock"


def is_there(path: Path, size: int) -> bool:
    """Whether a file is there whole."""
    return path.is_file() and path.stat().st_size == size


def remove(download: Download) -> Removed:
    """Delete the record and the files that Diptych brought; a file stays that another record or another tool has."""
    claimed = {other.path(f.path) for other in listed() if _place(other) != _place(download) for f in other.files}
    gone, freed, kept = 0, 0, list[str]()
    for file in download.files:
        path = download.path(file.path)
        if path in claimed or not file.ours:
            kept.append(str(path))
            continue
        for rest in partial(_blobs(download), file.blob), lock(_blobs(download), file.blob):
            rest.unlink(missing_ok=True)
        if os.path.lexists(path):
            gone += 1
            freed += _delete(download, path)
    _tidy(download)
    _place(download).unlink(missing_ok=True)
    return Removed(gone, freed, tuple(path for path in kept if os.path.lexists(path)))


def _arrived(download: Download, file: File) -> int:
    for path in download.path(file.path), partial(_blobs(download), file.blob):
        with suppress(OSError):
            return path.stat().st_size
    return 0


def _folder() -> Path:
    return home() / "hub"


def _place(download: Download) -> Path:
    """The record's own file. Its name begins with the model's; the rest tells models of equal beginning apart."""
    key = "\n".join((download.snapshot, download.text or ""))
    readable = "".join(c if c.isalnum() or c in "._-" else "-" for c in download.name)[:100]
    return _folder() / f"{readable}.{hashlib.sha256(key.encode()).hexdigest()[:12]}.json"


def _read(path: Path) -> Download:
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
        given["files"] = tuple(File(**file) for file in given["files"])
        given["tags"], given["revisions"] = tuple(given["tags"]), tuple(given["revisions"])
        return Download(**given)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise FileError(f"{path}, Diptych's record of a download, is damaged ({error}); remove it and download again") from error


def _blobs(download: Download) -> Path:
    return Path(download.snapshot).parent.parent / "blobs"


def _delete(download: Download, path: Path) -> int:
    """Delete a file of a snapshot, and its blob where no other snapshot has it. The bytes that came free."""
    blob, size = _target(path), path.stat().st_size if path.exists() else 0
    path.unlink()
    if blob is None:
        return size
    if not os.path.lexists(blob) or any(_target(p) == blob for p in Path(download.snapshot).parent.rglob("*")):
        return 0
    blob.unlink()
    return size


def _target(path: Path) -> Path | None:
    """The blob that a file of a snapshot points to; None where the system has no links and the file is the blob."""
    return Path(os.path.normpath(path.parent / os.readlink(path))) if path.is_symlink() else None


def _tidy(download: Download) -> None:
    """Remove the folders that have become empty, and the branch names of a snapshot that is gone."""
    snapshot, repo = Path(download.snapshot), Path(download.snapshot).parent.parent
    _drop_empty(snapshot)
    if not snapshot.exists():
        for ref in (p for p in (repo / "refs").rglob("*") if p.is_file()):
            if ref.read_text(encoding="utf-8").strip() == download.revision:
                ref.unlink()
    for folder in (repo / "refs", repo / "blobs", repo / "snapshots", lock(repo / "blobs", "").parent):
        _drop_empty(folder)
    with suppress(OSError):
        repo.rmdir()


def _drop_empty(folder: Path) -> None:
    """Remove a folder, and those in it, as far as there is nothing in them."""
    for path in sorted((folder, *(p for p in folder.rglob("*") if p.is_dir() and not p.is_symlink())), reverse=True):
        with suppress(OSError):
            path.rmdir()
