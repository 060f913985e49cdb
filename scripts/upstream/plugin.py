"""The pytest plugin that runs llama.cpp's tests: what its own conftest.py does, without downloads, and a record of each."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

import pytest

from upstream.forked import Forked

SECONDS = 120  # a test that takes longer has failed
# what holds whatever the weights are; every other pattern is of words that the published weights say
_KEPT = ('"42"', "[ -3000 ]", '"foooooo"', "(\\{|John)+", "a{5,5}")
_relaxed: list[str] = []


def pytest_configure() -> None:
    """Let patterns of words match any text, before a test module takes the function that matches."""
    import utils  # type: ignore[import-not-found] # upstream's, in the working directory

    exact = utils.match_regex

    def match_regex(pattern: str, text: str) -> bool:
        if exact(pattern, text) or pattern in _KEPT:
            return bool(exact(pattern, text))
        _relaxed.append(pattern)
        return isinstance(text, str)

    utils.match_regex = match_regex
    if "UPSTREAM_FORK" in os.environ:
        utils.subprocess = SimpleNamespace(Popen=Forked, TimeoutExpired=subprocess.TimeoutExpired)


@pytest.fixture(autouse=True)
def _stop_servers() -> Iterator[None]:
    import utils

    yield
    for server in set(utils.server_instances):
        server.stop()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol() -> Iterator[None]:
    """Each test in bounded time."""

    def late(_number: int, _frame: FrameType | None) -> None:
        raise TimeoutError(f"the test took over {SECONDS} s")

    _relaxed.clear()
    signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        return (yield)
    finally:
        signal.alarm(0)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Write down how each test ended: passed, words (passed but for the words of the weights), failed or skipped."""
    report: Any = yield
    if report.when == "call" or report.outcome != "passed":
        outcome = "words" if report.outcome == "passed" and _relaxed else report.outcome
        if report.when == "teardown":
            return report
        why = _reason(report, call) if outcome in ("failed", "skipped") else ""
        _record({"test": item.nodeid.removeprefix("unit/"), "outcome": outcome, "why": why, "seconds": round(call.duration, 2)})
        if outcome == "failed":
            _log(item.nodeid, report)
    return report


def _reason(report: Any, call: pytest.CallInfo[None]) -> str:
    if report.outcome == "skipped":
        return str(call.excinfo.value) if call.excinfo else ""
    crash = getattr(report.longrepr, "reprcrash", None)
    return " ".join(re.sub(r"\s+", " ", crash.message if crash else str(report.longrepr)).split())[:300]


def _record(found: dict[str, object]) -> None:
    with Path(os.environ["UPSTREAM_RECORD"]).open("a") as file:
        file.write(json.dumps(found) + "\n")


def _log(name: str, report: Any) -> None:
    with Path(os.environ["UPSTREAM_RECORD"]).with_suffix(".log").open("a") as file:
        said = "\n".join(text for _, text in report.sections)
        file.write(f"{'=' * 20} {name}\n{report.longreprtext[-3000:]}\n{said[-6000:]}\n")
