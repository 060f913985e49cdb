"""Run `pip install` with the arguments given, and show how far llama.cpp's compilation has come."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections import deque

STEP = re.compile(r"\[\s*(\d+)(?:/(\d+)|%)\]")  # as Ninja and as Make count


def main(arguments: list[str]) -> int:
    pip = [sys.executable, "-m", "pip", "install", "-v", "--disable-pip-version-check", *arguments]
    process = subprocess.Popen(pip, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    last: deque[str] = deque(maxlen=40)
    live, shown, start = sys.stdout.isatty(), "", time.monotonic()
    assert process.stdout is not None
    for line in process.stdout:
        last.append(line)
        text = stage(line.strip())
        if text is None or text == shown:
            continue
        shown = text
        clock = time.strftime("%M:%S", time.gmtime(time.monotonic() - start))
        print(f"\r\x1b[K  {clock}  {text}" if live else f"  {clock}  {text}", end="" if live else "\n", flush=True)
    if live:
        print()
    if process.wait():
        print("".join(last), "\npip failed; the lines above are the last it said", file=sys.stderr)
    return process.returncode


def stage(line: str) -> str | None:
    """What a line of pip's output tells a person, or None."""
    if match := STEP.match(line):
        return f"compiling llama.cpp {100 * int(match[1]) // int(match[2] or 100) // 5 * 5}%"
    if line.startswith(("Collecting ", "Building wheel for ", "Installing collected")):
        return " ".join(line.split()[:4]).partition(">")[0].partition("==")[0].rstrip(":,")
    if line.startswith("Successfully installed"):
        return "installed"
    return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
