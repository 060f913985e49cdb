"""The stand-in in a fork of this process, which has imported everything already: most tests take less time than that."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import diptych.cli.serve
import diptych.server.run  # noqa: F401 - imported here, so that no child has to
from upstream import stand_in


class Forked:
    """What the tests use of `subprocess.Popen`, for the stand-in."""

    def __init__(self, args: Sequence[str], *, stdout: Any, env: Mapping[str, str], **_rest: Any) -> None:
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            _run(args[1:], stdout.fileno(), env)

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float) -> int:
        end = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired("llama-server", timeout)
            time.sleep(0.01)
        return code

    def terminate(self) -> None:
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        self._send(signal.SIGKILL)

    def _send(self, number: signal.Signals) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


def _run(args: Sequence[str], out: int, env: Mapping[str, str]) -> None:
    """In the child: be the stand-in, and never come back into pytest."""
    code: Any = 1
    try:
        os.dup2(out, 1)
        os.dup2(out, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        os.environ.clear()
        os.environ.update(env)
        stand_in.main(Path(env["UPSTREAM_MODELS"]), args)
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 0 if code is None else 1)
