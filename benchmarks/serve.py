"""A server under load: throughput, time to first token, time between tokens, at 1, 4 and 16 clients, against its peers.

    python benchmarks/serve.py --cache /var/tmp/diptych-bench --llama-server PATH

The model (random weights, Q8_0 text half of Qwen2-0.5B's shape and a tower of 46 million weights) is made once in the
cache folder. The peers serve the same files: `llama-server`, where its path is given, and llama-cpp-python's own server
(`pip install 'llama-cpp-python[server]'`), where that is installed. The sides take turns, each measurement on a server
that was started for it. Every prompt is another one, so that no cache helps, and every answer has the same length.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import httpx
import numpy as np
from measure import peak_memory, processor
from PIL import Image

from model import made

START_SECONDS = 120


@dataclass(frozen=True)
class Side:
    """A server: its name, and the command that starts it on a port."""

    name: str
    command: Callable[[int], list[str]]


@dataclass(frozen=True)
class Result:
    """Figures of one measurement; seconds, but for tokens per second."""

    throughput: float
    first: list[float]
    between: list[float]
    peak: float  # memory in GB

    def row(self) -> str:
        if not self.first or not self.between:
            return "fails: nothing was answered"
        first, first_95 = np.quantile(self.first, [0.5, 0.95])
        between, between_95 = 1e3 * np.quantile(self.between, [0.5, 0.95])
        return (
            f"{self.throughput:7.1f} tok/s   first token {first:6.2f} s (95 %: {first_95:6.2f})"
            f"   between {between:6.1f} ms (95 %: {between_95:6.1f})   {self.peak:.2f} GB"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=Path("/var/tmp/diptych-bench"), help="folder the model is kept in")
    parser.add_argument("--llama-server", type=Path, help="llama.cpp's own server")
    parser.add_argument("--clients", type=int, nargs="*", default=[1, 4, 16])
    parser.add_argument("--tokens", type=int, default=48, help="length of every answer")
    parser.add_argument("--prompt", type=int, default=300, help="characters, about as many tokens")
    parser.add_argument("--size", type=int, default=336, help="pixels a side of the pictures")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="*", default=None, help="sides to measure")
    args = parser.parse_args()
    text, mmproj = made(args.cache)
    sides = [side for side in every_side(text, mmproj, args) if args.only is None or side.name in args.only]
    print(f"{processor()}, {args.threads} threads; {args.prompt}-character prompts, {args.tokens} tokens a time", flush=True)
    for images in (False, True):
        for clients in args.clients:
            for _ in range(args.rounds):
                for side in sides:
                    kind = f"{args.size}×{args.size} picture" if images else "text"
                    print(f"{kind:16} {clients:3} clients  {side.name:16} {told(side, clients, images, args)}", flush=True)


def every_side(text: Path, mmproj: Path, args: argparse.Namespace) -> Iterator[Side]:
    """Diptych, and the peers that are there."""
    diptych = str(Path(sys.executable).with_name("diptych"))
    threads, halves = str(args.threads), ["-m", str(text), "--mmproj", str(mmproj)]
    common = ["-c", "32768", "-np", "16", "-t", threads]
    plain = ["--log-level", "error", "--encode-disk-mib", "0"]
    yield Side("diptych", lambda port: [diptych, "serve", *halves, *common, *plain, "--port", str(port)])
    if args.llama_server:
        native = [str(args.llama_server), *halves, *common, "--kv-unified", "--cache-ram", "0", "--jinja"]
        yield Side("llama-server", lambda port: [*native, "--port", str(port)])
    if find_spec("sse_starlette") and find_spec("starlette_context"):
        flags = ["--model", str(text), "--clip_model_path", str(mmproj), "--chat_format", "qwen2.5-vl", "--n_ctx", "8192"]
        threaded = ["--n_threads", threads, "--n_threads_batch", threads]
        yield Side(
            "llama-cpp-python", lambda port: [sys.executable, "-m", "llama_cpp.server", *flags, *threaded, "--port", str(port)]
        )


@contextmanager
def server(side: Side) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A server of a side, from when it is ready to its end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(side.command(port), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        end = time.monotonic() + START_SECONDS
        while not ready(url):
            if process.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"{side.name} does not start: {' '.join(side.command(port))}")
            time.sleep(0.2)
        yield url, process
    finally:
        process.terminate()
        process.wait()


def ready(url: str) -> bool:
    """Whether the model is loaded; llama-server lists its models before that, llama-cpp-python knows no /health."""
    try:
        found = httpx.get(f"{url}/health").status_code
        return found == 200 or (found == 404 and httpx.get(f"{url}/v1/models").status_code == 200)
    except httpx.TransportError:
        return False


def told(side: Side, clients: int, images: bool, args: argparse.Namespace) -> str:
    """A row of figures, or why there are none: not every peer bears every load."""
    try:
        return measured(side, clients, images, args).row()
    except httpx.HTTPError as error:
        return f"fails: {type(error).__name__} {error}"


def measured(side: Side, clients: int, images: bool, args: argparse.Namespace) -> Result:
    """Two requests of each client, after one to warm up."""
    with server(side) as (url, process):
        return asyncio.run(load(url, process, clients, images, args))


async def load(url: str, process: subprocess.Popen[bytes], clients: int, images: bool, args: argparse.Namespace) -> Result:
    first: list[float] = []
    between: list[float] = []
    async with httpx.AsyncClient(base_url=url, timeout=600) as http:
        await ask(http, body(10**6, images, args), [], [])
        start = time.perf_counter()

        async def client(i: int) -> None:
            for turn in range(2):
                await ask(http, body(2 * i + turn, images, args), first, between)

        await asyncio.gather(*map(client, range(clients)))
        seconds = time.perf_counter() - start
    return Result(2 * clients * args.tokens / seconds, first, between, peak_memory(process.pid) / 1024)


async def ask(http: httpx.AsyncClient, wanted: dict[str, object], first: list[float], between: list[float]) -> None:
    """One streamed answer; the seconds to its first token, and between the others."""
    last, begun = time.perf_counter(), False
    async with http.stream("POST", "/v1/chat/completions", json=wanted) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if not line.startswith("data: {") or not (choices := json.loads(line[6:])["choices"]):
                continue
            if not choices[0]["delta"].get("content"):
                continue
            now = time.perf_counter()
            (between if begun else first).append(now - last)
            last, begun = now, True


def body(seed: int, images: bool, args: argparse.Namespace) -> dict[str, object]:
    """A request like no other: the number of the request is in its text and in its picture."""
    said = {"type": "text", "text": f"{seed} " + "".join(chr(97 + (seed * 7 + i * i) % 26) for i in range(args.prompt))}
    parts = [{"type": "image_url", "image_url": {"url": picture(seed, args.size)}}, said] if images else [said]
    # every token of the vocabulary's filling is text, and none ends the answer
    return {
        "messages": [{"role": "user", "content": parts}], "stream": True, "max_tokens": args.tokens, "temperature": 0.8,
        "seed": seed, "top_k": 40, "ignore_eos": True,
    }  # fmt: skip


def picture(seed: int, size: int) -> str:
    pixels = np.random.default_rng(seed).integers(0, 256, (size // 14, size // 14, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).resize((size, size)).save(out, "PNG")
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()


if __name__ == "__main__":
    main()
