"""What became of the tests, as Markdown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from upstream.reasons import REASONS

MARK = "<!-- upstream -->"
# what concerns a server of one model; the others are of llama-server's router, tools, proxy, drafts and adapters
FILES = (
    "test_basic", "test_chat_completion", "test_completion", "test_compat_anthropic", "test_compat_oai_responses",
    "test_vision_api", "test_embedding", "test_security", "test_slot_save", "test_tokenize", "test_template", "test_ignore_eos",
    "test_ctx_shift", "test_metrics", "test_infill", "test_rerank", "test_tool_call",
)  # fmt: skip


@dataclass(frozen=True)
class Result:
    """A test by pytest's name, how it ended (`passed`, `words`, `failed`, `skipped`), and pytest's word for why."""

    test: str
    outcome: str
    why: str
    seconds: float

    @property
    def file(self) -> str:
        return self.test.partition(".py")[0]

    @property
    def name(self) -> str:
        return self.test.partition("::")[2]

    @property
    def reason(self) -> str | None:
        """Why it does not pass, for a user; None where nobody has written that down."""
        return next((reason for pattern, reason in REASONS.items() if fnmatchcase(self.test, pattern)), None)


def read(record: Path) -> list[Result]:
    """The results that a run left behind."""
    return [Result(**json.loads(line)) for line in record.read_text().splitlines()] if record.exists() else []


def unexplained(results: Sequence[Result]) -> list[Result]:
    """Tests that fail without a reason in reasons.py."""
    return [r for r in results if r.outcome == "failed" and r.reason is None]


def markdown(results: Sequence[Result]) -> str:
    """A row for each file, and below it what does not pass."""
    lines = ["| tests | pass | pass but for the words | do not pass | skip |", "|---|--:|--:|--:|--:|"]
    outcomes = ("passed", "words", "failed", "skipped")
    for file in dict.fromkeys(r.file for r in results):
        counts = [sum(r.file == file and r.outcome == outcome for r in results) for outcome in outcomes]
        lines.append(f"| `{file}` | {' | '.join(map(str, counts))} |")
    total = [sum(r.outcome == outcome for r in results) for outcome in outcomes]
    lines += [f"| all | {' | '.join(map(str, total))} |", "", "| does not pass | because |", "|---|---|"]
    failed = [r for r in results if r.outcome == "failed"]
    for reason in dict.fromkeys(r.reason or r.why for r in failed):
        tests = dict.fromkeys(f"`{r.file}::{r.name.partition('[')[0]}`" for r in failed if (r.reason or r.why) == reason)
        lines.append(f"| {', '.join(tests)} | {reason.replace('|', chr(92) + '|')} |")
    return "\n".join(lines)


def put(page: Path, text: str) -> None:
    """Put a table between the marks of a page."""
    before, _, rest = page.read_text().partition(MARK)
    page.write_text(f"{before}{MARK}\n{text}\n{MARK}{rest.partition(MARK)[2]}")
