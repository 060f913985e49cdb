"""A hub of our own on loopback: the routes that the Hub API has for models, real HTTP, and every way to fail.

`python tests/hub/stand_in.py FOLDER` serves FOLDER/USER/REPO/… until it is stopped, to try commands by hand.
"""

from __future__ import annotations

import hashlib
import json
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from huggingface_hub import constants

from diptych.hub import arrival

Content = bytes | Path
BLOCK = 1 << 16


def read(content: Content) -> bytes:
    return content if isinstance(content, bytes) else content.read_bytes()


@dataclass
class Repo:
    """A repository: its commits, oldest first, as (hash, path → content); `main` is the last."""

    commits: list[tuple[str, Mapping[str, Content]]] = field(default_factory=list)
    gated: bool = False
    token: str | None = None  # private: the token it takes
    tags: dict[str, str] = field(default_factory=dict)

    def commit(self, files: Mapping[str, Content]) -> str:
        """Add a commit; its hash."""
        key = hashlib.sha1(f"{len(self.commits)}{sorted(files)}".encode())
        for name in sorted(files):
            key.update(read(files[name]))
        self.commits.append((key.hexdigest(), dict(files)))
        return key.hexdigest()

    def at(self, revision: str) -> tuple[str, Mapping[str, Content]] | None:
        if revision == "main":
            return self.commits[-1]
        wanted = self.tags.get(revision, revision)
        return next((c for c in self.commits if c[0] == wanted), None)


@dataclass
class Faults:
    """What goes wrong, for the bodies of large files unless said otherwise."""

    cut_after: int | None = None  # bytes of one answer, before the line breaks
    cuts: int = 1 << 30  # how often it breaks
    slow: float = 0.0  # seconds between blocks
    no_range: bool = False  # answers with the whole file whatever was asked for
    damage: bool = False  # the right number of wrong bytes
    status: int | None = None  # of every answer, of the API too
    body_status: int | None = None  # of large files alone
    statuses: int = 1 << 30  # how often
    garbage: bytes | None = None  # what the API answers with


class Hub(ThreadingHTTPServer):
    """The server. `asked` are (method, path, Range) of all requests; `cdn_tokens` what came along to the other host."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.repos: dict[str, Repo] = {}
        self.faults = Faults()
        self.asked: list[tuple[str, str, str | None]] = []
        self.tokens: list[str | None] = []
        self.cdn_tokens: list[str | None] = []
        self.sent = 0  # bytes of large files
        self.blobs: dict[str, Content] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def repo(self, name: str, files: Mapping[str, Content]) -> Repo:
        """Make a repository with one commit."""
        self.repos[name] = Repo()
        self.repos[name].commit(files)
        return self.repos[name]

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is what some tests do."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub, path = self.server, unquote(urlsplit(self.path).path)
        if path == "/api/agent-harnesses":  # the library asks by itself, and takes no for an answer
            return self.plain(404, b"")
        hub.asked.append((self.command, path, self.headers.get("Range")))
        token = self.headers.get("Authorization")
        (hub.cdn_tokens if path.startswith("/cdn/") else hub.tokens).append(token)
        if hub.faults.status:
            return self.plain(hub.faults.status, b"it is not well")
        if path.startswith("/cdn/"):
            return self.body(path.removeprefix("/cdn/"))
        parts = path.strip("/").split("/")
        api = parts[:2] == ["api", "models"]
        user, name, *rest = [*(parts[2:] if api else parts), *[""] * (4 - len(parts))]
        repo = hub.repos.get(f"{user}/{name}")
        if repo is None or (repo.token and token != f"Bearer {repo.token}"):
            return self.refuse(404 if token else 401, "RepoNotFound" if token else None, "Repository not found")
        revision = "/".join(rest[1:]) if api else (rest[1] if len(rest) > 1 else "")
        commit = repo.at(revision or "main")
        if commit is None:
            return self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        if api:
            return self.info(f"{user}/{name}", commit[0], commit[1], repo)
        return self.resolve(commit[0], commit[1], "/".join(rest[2:]), repo, token)

    def info(self, name: str, sha: str, files: Mapping[str, Content], repo: Repo) -> None:
        if self.server.faults.garbage is not None:
            return self.plain(200, self.server.faults.garbage, {"Content-Type": "application/json"})
        blobs = "blobs" in parse_qs(urlsplit(self.path).query)
        siblings = [{"rfilename": path, **(facts(content) if blobs else {})} for path, content in sorted(files.items())]
        answer = {"id": name, "modelId": name, "sha": sha, "private": bool(repo.token), "gated": repo.gated, "tags": [],
                  "downloads": 0, "likes": 0, "siblings": siblings}  # fmt: skip
        self.plain(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def resolve(self, sha: str, files: Mapping[str, Content], path: str, repo: Repo, token: str | None) -> None:
        """Small files are answered here, large ones (LFS) by another host that needs no token."""
        if repo.gated and token is None:
            return self.refuse(401, "GatedRepo", "Access to this repository is restricted.")
        if path not in files:
            return self.refuse(404, "EntryNotFound", "Entry not found")
        known, content = facts(files[path]), read(files[path])
        if "lfs" not in known:
            return self.plain(200, content, {"X-Repo-Commit": sha, "ETag": f'"{known["blobId"]}"'})
        digest = known["lfs"]["sha256"]
        self.server.blobs[digest] = files[path]
        linked = {"X-Repo-Commit": sha, "X-Linked-Size": str(len(content)), "X-Linked-Etag": f'"{digest}"'}
        return self.plain(302, b"", {**linked, "Location": f"http://localhost:{self.server.server_port}/cdn/{digest}"})

    def body(self, digest: str) -> None:
        """A large file, or its end, with the faults that are set."""
        hub, faults = self.server, self.server.faults
        if faults.body_status and faults.statuses > 0:
            faults.statuses -= 1
            return self.plain(faults.body_status, b"it is not well")
        content = read(hub.blobs[digest])
        whole = len(content)
        start = 0 if faults.no_range else int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").rstrip("-"))
        if faults.damage:
            content = bytes(whole)
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{whole - 1}/{whole}")
        self.send_header("ETag", f'"{digest}"')
        self.send_header("Content-Length", str(whole - start))
        self.end_headers()
        if self.command == "GET":
            self.pour(content[start:])

    def pour(self, content: bytes) -> None:
        hub, faults = self.server, self.server.faults
        end = len(content)
        if faults.cut_after is not None and faults.cuts > 0 and faults.cut_after < end:
            faults.cuts -= 1
            end = faults.cut_after
            self.close_connection = True
        for at in range(0, end, BLOCK):
            self.wfile.write(content[at : min(at + BLOCK, end)])
            hub.sent += min(BLOCK, end - at)
            time.sleep(faults.slow)

    def refuse(self, status: int, code: str | None, message: str) -> None:
        headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {})}
        self.plain(status, json.dumps({"error": message}).encode(), {**headers, "Content-Type": "application/json"})

    def plain(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


def facts(content: Content) -> dict[str, object]:
    """Size, git's name of the blob, and the SHA-256 of what the hub keeps in LFS (here: anything over 1,000 bytes)."""
    data = read(content)
    known: dict[str, object] = {"size": len(data), "blobId": hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()}
    if len(data) > 1000:
        known["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
    return known


@contextmanager
def serving(port: int = 0) -> Iterator[Hub]:
    """A hub that answers as long as the block runs."""
    hub = Hub(port)
    thread = threading.Thread(target=hub.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        thread.join()
        hub.server_close()


def settle(monkeypatch: pytest.MonkeyPatch, hub: Hub, place: Path) -> None:
    """Let the hub's library and ours, here and in processes started from here, use this hub and folders in `place`."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE", "HF_HUB_CACHE", "DIPTYCH_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HF_ENDPOINT": hub.url, "HF_HOME": place / "hf", "DIPTYCH_HOME": place / "diptych"}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)  # the library reads the variables when it is imported
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(place / "hf" / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(place / "hf" / "token"))
    monkeypatch.setattr(constants, "AGENT_HARNESSES_PATH", str(place / "hf" / "harnesses"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(arrival, "PAUSE", 0.0)


def main() -> None:
    folder = Path(sys.argv[1])
    with serving(int(sys.argv[2]) if len(sys.argv) > 2 else 0) as hub:
        for repo in sorted(folder.glob("*/*/")):
            name = f"{repo.parent.name}/{repo.name}"
            hub.repo(name, {p.relative_to(repo).as_posix(): p for p in sorted(repo.rglob("*")) if p.is_file()})
        print(f"HF_ENDPOINT={hub.url}", flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
