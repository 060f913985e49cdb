"""Many clients at once, some of whom hang up and some of whom send nonsense: nothing is lost, nothing grows, all is right.

    python benchmarks/soak.py --requests 2000 --clients 16

A server of the shipped reader is started, and asked each question alone first. Then the clients ask all at once: texts,
pictures and both, whole and streamed; a tenth hang up in the middle, and a tenth is malformed. Every answer must be the
one that was given alone, every malformed request must be refused with a status of 400 to 499, every slot must be free at
the end, and the memory of the server must not grow by more than `--growth` MB once a quarter has been served.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import random
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import psutil
from PIL import Image, ImageDraw, ImageFont

CHAT = "/v1/chat/completions"
N_PICTURES = 12
FLAGS = (
    "--cache-type-k",
    "f32",
    "--cache-type-v",
    "f32",
    "--flash-attn",
    "off",
    "--encode-disk-mib",
    "0",
    "--log-level",
    "error",
)
Body = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--growth", type=float, default=30.0, help="MB that the server may grow by after the first quarter")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    command = [str(Path(sys.executable).with_name("diptych")), "serve", "reader", "--port", "0", "-np", str(args.slots), *FLAGS]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            faults = asyncio.run(Soak(args, address(server), psutil.Process(server.pid)).run())
        finally:
            server.terminate()
            said = server.stderr.read() if server.stderr else ""
    faults += [f"the server said: {line}" for line in said.splitlines() if line.strip()]
    faults += [f"the server ended with {server.returncode}"] if server.returncode else []
    for fault in faults[:100]:
        print("FAULT", fault)
    sys.exit(1 if faults else 0)


def address(server: subprocess.Popen[str]) -> str:
    """Where a server that was just started listens, once it is ready."""
    found = line = ""
    for line in server.stderr or ():
        found = found or "".join(re.findall(r"http://[\d.]+:\d+", line))
        if "is ready" in line:
            return found
    raise SystemExit(f"the server did not start: {line}")


class Soak:
    """One run. `faults` are what went wrong."""

    def __init__(self, args: argparse.Namespace, url: str, process: psutil.Process) -> None:
        self.args, self.url, self.process = args, url, process
        self.random = random.Random(args.seed)
        self.questions = questions()
        self.expected: list[str] = []
        self.outcomes: Counter[str] = Counter()
        self.faults: list[str] = []
        self.memory: list[float] = []
        self.left = args.requests

    async def run(self) -> list[str]:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=self.url, timeout=300, limits=limits) as http:
            self.expected = [text(await http.post(CHAT, json=question)) for question in self.questions]
            start = time.perf_counter()
            await asyncio.gather(*(self.client(http, self.args.seed * 1000 + i) for i in range(self.args.clients)))
            seconds = time.perf_counter() - start
            await asyncio.sleep(1)
            slots = (await http.get("/slots")).json()
            metrics = (await http.get("/metrics")).text
        if busy := [slot["id"] for slot in slots if slot["is_processing"]]:
            self.faults.append(f"slots {busy} are still taken")
        quarter = self.memory[len(self.memory) // 4 :]
        growth = quarter[-1] - quarter[0]
        if growth > self.args.growth:
            self.faults.append(f"the server grew by {growth:.1f} MB, and {self.args.growth} MB is the bound")
        print(f"{self.args.requests} requests of {self.args.clients} clients in {seconds:.1f} s: {dict(self.outcomes)}")
        print(f"memory {self.memory[0]:.0f} MB at first, {quarter[0]:.0f} MB after a quarter, {quarter[-1]:.0f} MB at the end")
        print(
            "\n".join(
                line for line in metrics.splitlines() if re.match(r"diptych_(preempt|encoder_runs|encoder_cache_hits)", line)
            )
        )
        return self.faults

    async def client(self, http: httpx.AsyncClient, seed: int) -> None:
        """One client: asks one thing after the other while there is something left to ask."""
        rng = random.Random(seed)
        while self.left > 0:
            self.left -= 1
            if self.left % 50 == 0:
                self.memory.append(self.process.memory_info().rss / 1e6)
            kind = rng.choices(("whole", "stream", "hang up", "malformed"), (45, 35, 10, 10))[0]
            i = rng.randrange(len(self.questions))
            try:
                await {"whole": self.whole, "stream": self.stream, "hang up": self.hang_up, "malformed": self.malformed}[kind](
                    http, i, rng
                )
                self.outcomes[kind] += 1
            except Exception as error:
                self.faults.append(f"{kind} {i}: {type(error).__name__}: {error}")

    async def whole(self, http: httpx.AsyncClient, i: int, rng: random.Random) -> None:
        self.check(i, text(await http.post(CHAT, json=self.questions[i])))

    async def stream(self, http: httpx.AsyncClient, i: int, rng: random.Random) -> None:
        said, done = "", False
        async with http.stream("POST", CHAT, json={**self.questions[i], "stream": True}) as response:
            async for line in response.aiter_lines():
                if line == "data: [DONE]":
                    done = True
                elif line.startswith("data: "):
                    said += json.loads(line[6:])["choices"][0]["delta"].get("content") or ""
        if not done:
            raise ValueError("the stream broke off")
        self.check(i, said)

    async def hang_up(self, http: httpx.AsyncClient, i: int, rng: random.Random) -> None:
        """Leave in the middle: at some moment of a whole answer, or behind some lines of a stream."""
        if rng.random() < 0.5:
            try:
                await asyncio.wait_for(http.post(CHAT, json=self.questions[i]), rng.uniform(0.001, 0.1))
            except TimeoutError:
                return
            return
        async with http.stream("POST", CHAT, json={**self.questions[i], "stream": True}) as response:
            n = rng.randrange(6)
            async for _ in response.aiter_lines():
                if (n := n - 1) < 0:
                    return

    async def malformed(self, http: httpx.AsyncClient, i: int, rng: random.Random) -> None:
        response = await http.post(CHAT, content=rng.choice(MALFORMED))
        if not 400 <= response.status_code < 500 or "error" not in response.json():
            raise ValueError(f"answered {response.status_code} {response.text[:100]}")

    def check(self, i: int, said: str) -> None:
        if said != self.expected[i]:
            raise ValueError(f"answered {said!r}, and alone {self.expected[i]!r}")


def text(response: httpx.Response) -> str:
    if response.status_code != 200:
        raise ValueError(f"answered {response.status_code} {response.text[:200]}")
    content: str = response.json()["choices"][0]["message"]["content"]
    return content


def questions() -> list[Body]:
    """Bodies to be answered: texts, a picture each, and two pictures."""
    pictures = [picture(f"PAGE {i} NO. {i * 37 % 100}", seed=i) for i in range(N_PICTURES)]
    asked = [[words(f"text {i} " * (1 + i * 5))] for i in range(8)]
    asked += [[image(one), words("Read the text.")] for one in pictures]
    asked += [[image(pictures[i]), words("and"), image(pictures[-1 - i])] for i in range(4)]
    return [body(parts) for parts in asked]


def body(parts: Sequence[Body]) -> Body:
    return {"messages": [{"role": "user", "content": parts}], "max_tokens": 40, "temperature": 0}


def words(said: str) -> Body:
    return {"type": "text", "text": said}


def image(data: bytes) -> Body:
    return {"type": "image_url", "image_url": {"url": "data:image/png;base64," + base64.b64encode(data).decode()}}


def picture(said: str, seed: int) -> bytes:
    """The PNG file of a line of text."""
    drawn = Image.new("RGB", (220 + 14 * (seed % 5), 60), "white")
    font = ImageFont.truetype(str(Path(FONT)), 20) if Path(FONT).is_file() else ImageFont.load_default(20)
    ImageDraw.Draw(drawn).text((10, 18), said, "black", font=font)
    out = io.BytesIO()
    drawn.save(out, "PNG")
    return out.getvalue()


FONT = "/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf"
MALFORMED = [
    b"",
    b"{",
    b"[" * 50_000,
    json.dumps({"messages": []}).encode(),
    json.dumps({"messages": [{"role": "user", "content": 3}]}).encode(),
    json.dumps(body([{"type": "image_url", "image_url": {"url": "no url"}}])).encode(),
    json.dumps(body([image(b"no picture")])).encode(),
    json.dumps(body([image(picture("cut", 0)[:200])])).encode(),
    json.dumps({**body([words("a")]), "grammar": "root ::= ("}).encode(),
    json.dumps({**body([words("a")]), "grammar": "root ::= " + "(" * 20_000}).encode(),
    json.dumps({**body([words("a")]), "top_p": "much"}).encode(),
    json.dumps({**body([words("a")]), "max_tokens": -7}).encode(),
    json.dumps(body([{"type": "image_url", "image_url": {"id": "nobody's"}}])).encode(),
]


if __name__ == "__main__":
    main()
