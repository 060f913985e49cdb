"""What to do about a name of the hub: use what is recorded or cached, or bring these files. Asks no network."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from diptych.deploy.find import Deployment, find
from diptych.errors import FileError
from diptych.hub.pick import pick, quant_of
from diptych.hub.record import Download, File, listed

MAIN = "main"  # the branch that a repository's users get
# What a config.json of a deployment has and a checkpoint's has not. It may have comments, so that it is not read as JSON.
_BINDS = re.compile(r'"(?:text|vision|audio)_model"\s*:\s*\{.*?"\w+_path"\s*:', re.DOTALL)
_TEXT = re.compile(r'"text_model"\s*:\s*\{[^}]*?"model_path"\s*:\s*"([^"]+)"')
_NOT_OURS = (".safetensors", ".bin", ".pt", ".pth")  # weights in a deployment that only other tools read


@dataclass(frozen=True)
class Asked:
    """What a user wrote: a repository, a tag ("" for the default) and a revision; and the hub's cache."""

    repo: str
    tag: str
    revision: str | None
    cache: Path

    @property
    def name(self) -> str:
        return f"{self.repo}:{self.tag}" if self.tag else self.repo

    @property
    def folder(self) -> Path:
        """The repository's folder in the hub's cache."""
        return self.cache / f"models--{self.repo.replace('/', '--')}"


@dataclass(frozen=True)
class Contents:
    """A repository at a commit: the size and the name of the blob of each file, and the text of its config.json."""

    commit: str
    files: Mapping[str, tuple[int, str]]
    config: str


def recorded(asked: Asked, offline: bool) -> Download | None:
    """The newest download that was asked for in this way, one that is whole first; by a branch's name only when offline."""

    def fits(d: Download) -> bool:
        if asked.name != d.name and (asked.repo != d.repo or asked.tag not in d.tags):
            return False
        if not Path(d.snapshot).is_relative_to(asked.folder):
            return False
        named = offline and (asked.revision in d.revisions or d.revision.startswith(asked.revision or ""))
        return asked.revision in (None, d.revision) or named

    return max(filter(fits, listed()), key=lambda d: (d.whole, d.when), default=None)


def deployment(download: Download) -> Deployment:
    """The halves of a download that is whole."""
    if download.text is None:
        return find(Path(download.snapshot))
    return Deployment(download.path(download.text), download.path(download.mmproj) if download.mmproj else None)


def cached(asked: Asked) -> Deployment:
    """What other tools brought into the cache, by the same rule. Raises FileError when that is not enough."""
    ref = asked.folder / "refs" / (asked.revision or MAIN)
    commit = ref.read_text(encoding="utf-8").strip() if ref.is_file() else asked.revision or "none"
    snapshot = asked.folder / "snapshots" / commit
    names = [p.relative_to(snapshot).as_posix() for p in snapshot.rglob("*") if p.is_file()]
    if not any(name.endswith(".gguf") for name in names):
        raise FileError(f"{asked.name} is not in {asked.cache}, and this is offline; run it once without --offline")
    config = (snapshot / "config.json").read_text(errors="replace") if "config.json" in names else ""
    if _BINDS.search(config):
        return find(snapshot)
    try:
        choice = pick(asked.repo, names, asked.tag)
    except FileError as error:
        raise FileError(f"offline, in {asked.cache}: {error}") from error
    return Deployment(snapshot / choice.text[0], snapshot / choice.mmproj if choice.mmproj else None)


def planned(asked: Asked, contents: Contents) -> Download:
    """The record of what will be brought: the files of a deployment, or those that the rule picks."""
    quant, text, mmproj, names = _chosen(asked, contents)
    snapshot = asked.folder / "snapshots" / contents.commit
    others = [d for d in listed() if d.snapshot == str(snapshot)]
    brought = {f.path for d in others for f in d.files if f.ours}
    files = tuple(
        File(name, *contents.files[name], ours=name in brought or not os.path.lexists(snapshot / name)) for name in names
    )
    before = next((d for d in others if d.text == text), None)
    if before:
        name = before.name
    elif text and asked.tag.endswith(".gguf"):
        name = asked.name  # of several models with one quantisation
    else:
        name = f"{asked.repo}:{quant}" if quant else asked.repo
    tags = {asked.tag, *(before.tags if before else ())}
    revisions = {asked.revision or MAIN, *(before.revisions if before else ())}
    when = datetime.now(UTC).isoformat()
    return Download(
        name, asked.repo, quant, contents.commit, str(snapshot), text, mmproj, files, tuple(sorted(tags)),
        tuple(sorted(revisions)), when, complete=False,
    )  # fmt: skip


def _chosen(asked: Asked, contents: Contents) -> tuple[str, str | None, str | None, tuple[str, ...]]:
    """(quantisation, text half, media half, all files to bring); no halves for a repository that is a deployment."""
    if not _BINDS.search(contents.config):
        choice = pick(asked.repo, contents.files, asked.tag)
        return choice.quant, choice.text[0], choice.mmproj, choice.files
    text = _TEXT.search(contents.config)
    quant = quant_of(text[1]) if text else ""
    if text and quant and asked.tag not in ("", quant, text[1]):
        raise FileError(f"{asked.repo} is a deployment, and its text half is {text[1]}; leave :{asked.tag} away")
    return quant, None, None, tuple(n for n in contents.files if not n.startswith(".") and not n.endswith(_NOT_OURS))
