"""Models from the Hugging Face hub: what a name stands for, both halves brought into the hub's own cache, and a record.

A name that was fetched stays at its commit, and its next use asks no network. Everything the hub's library knows counts:
HF_ENDPOINT, HF_TOKEN, HF_HOME, HF_HUB_CACHE, HF_HUB_OFFLINE, and proxies. Files are brought here and not by the library,
which begins a broken off download anew; where they lie, and what says that they are whole, is as it does it.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import httpx2
import huggingface_hub
from huggingface_hub import constants, errors
from huggingface_hub.utils import (
    WeakFileLock,
    build_hf_headers,
    get_session,
    hf_raise_for_status,
    validate_repo_id,
)

from diptych.deploy.find import Deployment
from diptych.errors import DiptychError, FileError, InputError, OutputError
from diptych.hub.arrival import BrokenOff, arrive
from diptych.hub.pick import DEFAULT, normal
from diptych.hub.plan import Asked, Contents, cached, deployment, planned, recorded
from diptych.hub.record import Download, File, Removed, is_there, listed, lock, partial, remove, save

__all__ = ["Download", "Removed", "fetch", "listed", "remove"]

Progress = Callable[[int, int], None]  # (bytes there, bytes in all)
Tell = Callable[[str], None]  # one line for people

_PATIENCE = 30.0  # seconds without an answer or a byte
_HTTP_LIMIT = constants.MAX_HTTP_DOWNLOAD_SIZE  # bytes; the hub gives a larger file by its own protocol alone
_COMMIT = re.compile(r"[0-9a-f]{40}")
_BLOB = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_MAX_CONFIG = 1 << 20  # bytes


def fetch(
    name: str,
    *,
    offline: bool = False,
    revision: str | None = None,
    progress: Progress | None = None,
    tell: Tell | None = None,
) -> Deployment:
    """The deployment that `user/repo[:quant]` names, downloaded where it is not there yet.

    `revision` is a branch, tag or commit; without it a name that was fetched before stays as it is. A download that is
    broken off goes on at the next call. Raises InputError for what is no name, FileError when hub or cache do not have it
    or cannot be reached, OutputError when it cannot be written.
    """
    asked = _parse(name, revision)
    offline = offline or _is_set("DIPTYCH_OFFLINE") or constants.is_offline_mode()
    before = recorded(asked, offline)
    if before and before.whole:
        return deployment(before)
    if before and offline:
        raise FileError(f"{before.name} is not here whole, and this is offline; run it once without --offline")
    if offline:
        return cached(asked)
    with _explained(asked):
        if before:
            asked = replace(asked, revision=before.revision)
        return deployment(_brought(asked, progress or (lambda done, total: None), tell or (lambda line: None)))


def _brought(asked: Asked, progress: Progress, tell: Tell) -> Download:
    """Plan, record and bring a model; what did not bring a single byte leaves no trace."""
    download = planned(asked, _contents(asked))
    _announce(download, asked, tell)
    save(download)
    try:
        _bring(download, progress)
    finally:
        if not download.here:
            remove(download)
    _name_commit(asked, download)
    download = replace(download, complete=True)
    save(download)
    return download


def _parse(name: str, revision: str | None) -> Asked:
    repo, colon, tag = name.partition(":")
    try:
        validate_repo_id(repo)
        if repo.count("/") != 1 or (colon and not tag) or not tag.isprintable() or not _is_inside(tag or "x"):
            raise ValueError
    except ValueError:  # also what the library says
        raise InputError(f"{name!r} is no model of the hub; write USER/REPO or USER/REPO:QUANT, such as a/b:{DEFAULT}") from None
    if revision is not None and not (revision.isprintable() and _is_inside(revision)):
        raise InputError(f"{revision!r} is no revision; name a branch, a tag or a commit")
    return Asked(repo, normal(tag), revision, Path(constants.HF_HUB_CACHE))


def _is_set(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in ("1", "true", "yes", "on")


def _is_inside(name: str) -> bool:
    """Whether a path of a repository stays in it, on every system."""
    parts = name.split("/")
    return not ("\\" in name or ":" in name or any(p in ("", ".", "..") for p in parts))


def _contents(asked: Asked) -> Contents:
    """Ask the hub for the files of a repository; those whose names lead out of it are left out."""
    info = huggingface_hub.HfApi(library_name="diptych").model_info(
        asked.repo, revision=asked.revision, files_metadata=True, timeout=_PATIENCE
    )
    if not _COMMIT.fullmatch(info.sha or ""):
        raise ValueError(f"the commit {info.sha!r:.60}")
    files: dict[str, tuple[int, str]] = {}
    for file in info.siblings or ():
        blob = file.lfs.sha256 if file.lfs else file.blob_id
        if _is_inside(file.rfilename) and isinstance(file.size, int) and blob and _BLOB.fullmatch(blob):
            files[file.rfilename] = (file.size, blob)
    config = ""
    if "config.json" in files and files["config.json"][0] <= _MAX_CONFIG:
        with _answer(asked.repo, info.sha, "config.json") as answer:
            config = answer.read().decode(errors="replace")
    return Contents(info.sha, files, config)


def _announce(download: Download, asked: Asked, tell: Tell) -> None:
    """Tell what was picked where that is not what one would think, and what is about to be downloaded."""
    if not asked.tag and download.quant not in ("", DEFAULT) and download.text:
        tell(f"{asked.repo} has no {DEFAULT}; taking {download.quant}")
    if download.text and not download.mmproj:
        tell(f"{asked.repo} has no mmproj; it will answer text alone")
    if missing := sum(not is_there(download.path(f.path), f.size) for f in download.files):
        files = "1 file" if missing == 1 else f"{missing} files"
        here = f" of {_size(download.size)}, the rest is here" if download.here else ""
        tell(f"downloading {download.name} at {download.revision[:12]}: {files}, {_size(download.size - download.here)}{here}")


def _bring(download: Download, progress: Progress) -> None:
    """Download what is missing and put it where the hub's library would."""
    blobs = Path(download.snapshot).parent.parent / "blobs"
    blobs.mkdir(parents=True, exist_ok=True)
    _check_space(download, blobs)
    done = 0
    for file in download.files:
        path = download.path(file.path)
        if not is_there(path, file.size):
            _bring_file(download, file, blobs, _from(done, download.size, progress))
            _link(blobs / file.blob, path)
        done += file.size
        progress(done, download.size)


def _from(done: int, total: int, progress: Progress) -> Callable[[int], None]:
    """Progress of one file as progress of all."""
    return lambda there: progress(done + there, total)


def _bring_file(download: Download, file: File, blobs: Path, moved: Callable[[int], None]) -> None:
    """Let one blob arrive; whoever else wants it meanwhile waits."""
    if file.size > _HTTP_LIMIT:
        huggingface_hub.hf_hub_download(download.repo, file.path, revision=download.revision)
        return
    locked = lock(blobs, file.blob)
    locked.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(locked):
        if is_there(blobs / file.blob, file.size):
            return

        @contextmanager
        def open_at(start: int) -> Iterator[tuple[int, Iterable[bytes]]]:
            try:
                with _answer(download.repo, download.revision, file.path, start) as answer:
                    yield (start if answer.status_code == httpx2.codes.PARTIAL_CONTENT else 0), answer.iter_raw()
            except httpx2.TransportError as error:
                raise BrokenOff from error
            except errors.HfHubHTTPError as error:
                if error.response.status_code not in (408, 429) and error.response.status_code < 500:
                    raise
                raise BrokenOff from error

        arrive(partial(blobs, file.blob), blobs / file.blob, file.size, file.blob, open_at, moved)


@contextmanager
def _answer(repo: str, revision: str, path: str, start: int = 0) -> Iterator[httpx2.Response]:
    """The hub's answer for a file from byte `start` on. The token stays behind when it leads to another host."""
    url = huggingface_hub.hf_hub_url(repo, path, revision=revision)
    headers = {
        **build_hf_headers(library_name="diptych"),
        "Accept-Encoding": "identity",
        **({"Range": f"bytes={start}-"} if start else {}),
    }
    with get_session().stream("GET", url, headers=headers, timeout=_PATIENCE) as answer:
        hf_raise_for_status(answer)
        yield answer


def _check_space(download: Download, folder: Path) -> None:
    missing, free = download.size - download.here, shutil.disk_usage(folder).free
    if missing > free:
        raise OutputError(
            f"{download.name} needs {_size(missing)} more in {folder}, and {_size(free)} are free; free some space, or "
            "set HF_HOME to a larger disk"
        )


def _link(blob: Path, path: Path) -> None:
    """Give a blob its name in the snapshot: a relative link, or the file itself where the system has no links."""
    if not blob.exists():
        return  # the library brought the file, and its link
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    try:
        path.symlink_to(os.path.relpath(blob, path.parent))
    except OSError:
        blob.replace(path)


def _name_commit(asked: Asked, download: Download) -> None:
    """Tell other tools by the name of the branch, unless they have one of their own, that this commit is here."""
    for name in download.revisions:
        ref = asked.folder / "refs" / name
        if not _COMMIT.fullmatch(name) and not ref.exists():
            ref.parent.mkdir(parents=True, exist_ok=True)
            ref.write_text(download.revision, encoding="utf-8")


def _size(n: int) -> str:
    return f"{n / 1e9:.2f} GB" if n >= 1e9 else f"{n / 1e6:.1f} MB"


@contextmanager
def _explained(asked: Asked) -> Iterator[None]:
    """Turn what goes wrong between here and the hub into one line of ours."""
    try:
        yield
    except DiptychError:
        raise
    except BrokenOff as error:
        raise _reason(asked, error.__cause__ or error) from error
    except (httpx2.HTTPError, OSError, ValueError, KeyError, TypeError) as error:
        raise _reason(asked, error) from error


def _reason(asked: Asked, error: BaseException) -> DiptychError:
    """What a user should know of an error of the network, the hub or the disk."""
    hub, said = constants.ENDPOINT, " ".join(str(error).split()).rstrip(".") or type(error).__name__
    if isinstance(error, errors.HfHubHTTPError):
        return FileError(_refusal(asked, error, hub))
    if isinstance(error, httpx2.HTTPError | BrokenOff):
        return FileError(f"cannot get {asked.name} from {hub}: {said}; check the network and run it again, and it goes on")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return OutputError(
            f"cannot write {asked.name} to {asked.folder}: {error.strerror}; what arrived is kept, free some space"
        )
    if isinstance(error, OSError):
        place = error.filename or asked.folder
        return OutputError(f"cannot write {place}: {error.strerror or said}; set HF_HOME and DIPTYCH_HOME to where you may")
    return FileError(f"{hub} gave an answer that is no hub's ({said:.80}); check HF_ENDPOINT")


def _refusal(asked: Asked, error: errors.HfHubHTTPError, hub: str) -> str:
    match error:
        case errors.GatedRepoError():
            return f"{asked.repo} is gated: agree to its terms at {hub}/{asked.repo}, and set HF_TOKEN to your token"
        case errors.RevisionNotFoundError():
            return f"{asked.repo} has no revision {asked.revision}; name a branch, a tag or a commit of it"
    code = error.response.status_code
    if isinstance(error, errors.RepositoryNotFoundError) or code in (401, 403):
        return f"{hub} has no {asked.repo} for you ({code}); check the name, or set HF_TOKEN to a token that may read it"
    return f"{hub} answered {code} for {asked.repo}; try again later"
