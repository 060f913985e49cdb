"""Where the tests run: a copy of them with other addresses, a stand-in for llama-server, and pictures on loopback."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
from PIL import Image

_HUB = "https://huggingface.co/ggml-org/tinygemma3-GGUF/resolve/main/test/"
_MISSING, _NO_PICTURE = "https://google.com/404", "https://ggml.ai"  # both must fail, and not for want of a network
# names of headers have no case in HTTP; the tests look for them in a plain dictionary
_EXACT_HEADERS, _HEADERS = "dict(response.headers)", "response.headers"
_PICTURES = {"11_truck.png": 11, "91_cat.png": 91}
_SCRIPTS = Path(__file__).parent.parent


class Place:
    """A folder laid out as llama.cpp's, with the tests and what they look for beside them."""

    def __init__(self, folder: Path, source: Path) -> None:
        self.models = folder / "models-of-our-own"
        self._tests = folder / "tools" / "server" / "tests"
        shutil.rmtree(folder / "tools", ignore_errors=True)
        shutil.rmtree(self.models, ignore_errors=True)
        self.models.mkdir(parents=True)
        original = source / "tools" / "server" / "tests"
        shutil.copytree(original, self._tests, ignore=shutil.ignore_patterns("conftest.py", "__pycache__", "tmp"))
        (self._tests / "tmp").mkdir()
        # a package that downloads, which is imported and not used by the tests that run here
        (self._tests / "wget.py").write_text("def download(url: str, out: str) -> None:\n    raise OSError(url)\n")
        self._link(folder / "models", source / "models")
        (folder / "tools" / "mtmd").mkdir()
        shutil.copy(source / "tools" / "mtmd" / "test-1.jpeg", folder / "tools" / "mtmd")

    def run(self, models: Path, record: Path, tests: list[str], port: int, *, fork: bool) -> None:
        """Run tests with servers at `port`; what became of each stands in `record`, a JSON object a line.

        With `fork` a server is a fork of pytest, without it a process of its own, which takes some seconds more.
        """
        with _pictures() as address:
            for path in self._tests.rglob("*.py"):
                text = path.read_text().replace(_EXACT_HEADERS, _HEADERS)
                if _HUB in text:
                    text = text.replace(_HUB, f"{address}/").replace(_MISSING, f"{address}/404").replace(_NO_PICTURE, address)
                path.write_text(text)
            variables = {
                "LLAMA_SERVER_BIN_PATH": str(written_stand_in(self.models, models)),
                "UPSTREAM_MODELS": str(models),
                "UPSTREAM_RECORD": str(record.resolve()),
                "PORT": str(port),
                "PYTHONPATH": str(_SCRIPTS),
                "PYTHONDONTWRITEBYTECODE": "1",
            }
            if fork:
                variables["UPSTREAM_FORK"] = "1"
            command = [
                sys.executable,
                "-m",
                "pytest",
                "-q",
                "-p",
                "upstream.plugin",
                "-m",
                "not slow",
                "--tb=short",
                "-p",
                "no:cacheprovider",
            ]
            subprocess.run(
                [*command, *(f"unit/{test}" for test in tests)], cwd=self._tests, env={**os.environ, **variables}, check=False
            )

    def _link(self, path: Path, target: Path) -> None:
        path.unlink(missing_ok=True)
        path.symlink_to(target.resolve())


def written_stand_in(folder: Path, models: Path) -> Path:
    """The executable that the tests start as llama-server."""
    path = folder / "llama-server"
    path.write_text(
        f"#!{sys.executable}\nimport sys\nfrom pathlib import Path\n\nsys.path.insert(0, {str(_SCRIPTS)!r})\n"
        f"from upstream.stand_in import main\n\nmain(Path({str(models)!r}), sys.argv[1:])\n"
    )
    path.chmod(0o755)
    return path


@contextmanager
def _pictures() -> Iterator[str]:
    """A site with the two pictures and a page that is none; its address."""
    drawn = {f"/{name}": _drawn(seed) for name, seed in _PICTURES.items()}

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            page = b"<!doctype html><p>no picture" if self.path == "/" else None
            body = drawn.get(self.path, page)
            self.send_response(404 if body is None else 200)
            self.send_header("Content-Length", str(len(body or b"")))
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def _drawn(seed: int) -> bytes:
    """A PNG of 32 × 32 pixels in blocks of any colour, as CIFAR's pictures are small."""
    blocks = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8).repeat(4, 0).repeat(4, 1)
    out = io.BytesIO()
    Image.fromarray(blocks).save(out, "PNG")
    return out.getvalue()
