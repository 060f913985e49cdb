"""`llama-server` as its tests start it: its flags in the words of `diptych serve`, which then runs in this process."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

# flag → what `diptych serve` calls it, with the value behind it
VALUED = {
    "--port": "--port",
    "--host": "--host",
    "--temp": "--temp",
    "--seed": "--seed",
    "--model": "-m",
    "--batch-size": "-b",
    "--ubatch-size": "-ub",
    "--threads": "-t",
    "--n-gpu-layers": "-ngl",
    "--pooling": "--pooling",
    "--alias": "--alias",
    "--tags": "--tags",
    "--ctx-size": "-c",
    "--parallel": "-np",
    "-ctk": "-ctk",
    "-ctv": "-ctv",
    "-fa": "-fa",
    "--n-predict": "--n-predict",
    "--slot-save-path": "--slot-save-path",
    "--api-key": "--api-key",
    "--reasoning-format": "--reasoning-format",
    "--reasoning": "--reasoning",
    "--chat-template": "--chat-template",
    "--chat-template-file": "--chat-template-file",
    "--media-path": "--media-path",
    "--cors-origins": "--cors-origins",
}
SWITCHES = {
    "--embedding": ("--embeddings",),
    "--slots": ("--slots",),
    "--no-slots": ("--no-slots",),
    "--metrics": ("--metrics",),
    "--kv-unified": ("--kv-unified",),
    "--no-ui": ("--no-ui",),
    "--offline": ("--offline",),
    "--cont-batching": ("--cont-batching",),
    "--swa-full": ("--swa-full",),
    "--jinja": ("--jinja",),
    "--verbose": ("--log-level", "debug"),
}
# nothing is lost where these are left out
SILENT = ("--no-jinja", "--no-cache-idle-slots", "--no-mmproj")
NAMING = ("--hf-repo", "--hf-file", "--mmproj-url")
# what llama-server does where it is not told, and `diptych serve` does not
ABSENT = {"--metrics": ("--no-metrics",), "--kv-unified": ("--no-kv-unified",), "--cors-origins": ("--cors-origins", "*")}
ALWAYS = ("--no-warmup", "--allow-private-media")  # pictures come from a server on this machine


def main(models: Path, given: Sequence[str]) -> None:
    """Run `diptych serve` as a test wants it. `models` is the file that `upstream.models.write` wrote."""
    from diptych.cli.main import main as diptych

    sys.argv = ["diptych", "serve", *translated(json.loads(models.read_text()), given)]
    print("stand-in:", *sys.argv, file=sys.stderr, flush=True)
    diptych()


def translated(models: dict[str, dict[str, str]], given: Sequence[str]) -> list[str]:
    """The arguments of `diptych serve`; flags that have no meaning there are named on standard error."""
    out, seen = list(ALWAYS), dict(_pairs(given))
    for flag, value in seen.items():
        if flag == "--chat-template" and re.fullmatch(r"[\w-]+", value or ""):
            out += [
                flag,
                "chatml",
            ]  # the only one of llama.cpp's that goes by its name here; what the others write is not checked
        elif flag in VALUED:
            out += [VALUED[flag], value or ""]
        elif flag in SWITCHES:
            out += SWITCHES[flag]
        elif flag not in (*SILENT, *NAMING):
            print(f"stand-in: {flag} {value or ''} has no meaning for diptych serve", file=sys.stderr)
    for flag, instead in ABSENT.items():
        if flag not in seen:
            out += instead
    if "--model" not in seen:
        out += _files(models, seen)
    return out


def _pairs(given: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """Flags, each with the value behind it, if there is one."""
    for i, text in enumerate(given):
        if text.startswith("-"):
            following = given[i + 1] if i + 1 < len(given) else "-"
            yield text, None if following.startswith("--") or following in ("-fa", "-ctk", "-ctv", "-") else following


def _files(models: dict[str, dict[str, str]], seen: dict[str, str | None]) -> list[str]:
    """The model that stands for a repository and a file of it."""
    repo, file = (seen.get("--hf-repo") or "").partition(":")[0], seen.get("--hf-file")
    found = models.get(f"{repo}/{file}") or models.get(repo)
    if found is None:
        sys.exit(f"stand-in: there is no model for {repo} {file or ''}")
    if "mmproj" not in found or "--no-mmproj" in seen:
        return ["-m", found["model"]]
    return ["-m", found["model"], "--mmproj", found["mmproj"], "--media-backend", "mtmd"]


if __name__ == "__main__":
    main(Path(os.environ["UPSTREAM_MODELS"]), sys.argv[1:])
