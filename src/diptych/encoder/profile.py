"""ONNX Runtime's own record of the operators of a session, on its way into a trace."""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from weakref import finalize

from diptych.errors import OutputError
from diptych.trace import Trace

log = logging.getLogger(__name__)

MAX_RUNS = 64  # of a session; each keeps about 1 KB an operator in memory until the record ends
_LANE = "encoder operators"


class Profile:
    """Where ONNX Runtime writes the record of one session, and how that becomes spans of a trace."""

    def __init__(self, trace: Trace) -> None:
        """Raises OutputError when there is no place for temporary files."""
        try:
            folder = tempfile.mkdtemp(prefix="diptych-operators-")
        except OSError as error:
            raise OutputError(f"no temporary file can be made for --trace-ops: {error.strerror}; set TMPDIR") from error
        self.prefix = os.path.join(folder, "record")
        self._trace = trace
        self._left = MAX_RUNS
        self._remove = finalize(self, shutil.rmtree, folder, ignore_errors=True)  # also where the session does not start
        self._zero = 0.0

    def begin(self, start_ns: int) -> None:
        """The record counts from `start_ns`, on a clock that differs from platform to platform: the wall's or a steady one."""
        clock = min((time.time_ns, time.monotonic_ns, time.perf_counter_ns), key=lambda now: abs(now() - start_ns))
        self._zero = time.perf_counter() - 1e-9 * (clock() - start_ns)

    def full(self) -> bool:
        """Count a run; whether it was the last that is recorded."""
        self._left -= 1
        return self._left == 0

    def end(self, record: str) -> None:
        """Put the operators of the record that ONNX Runtime has written into the trace, and remove it."""
        try:
            for event in _events(Path(record)):
                if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
                    self._put(event)
        except (OSError, ValueError, LookupError) as error:  # such as a disk that was full
            log.warning("the trace lacks operators: %s is no whole record of ONNX Runtime: %s", record, error)
        self._remove()

    def _put(self, event: dict[str, Any]) -> None:
        start = self._zero + 1e-6 * event["ts"]
        args = event["args"]
        self._trace.complete(
            args["op_name"], _LANE, start, start + 1e-6 * event["dur"],
            node=event["name"].removesuffix("_kernel_time"), provider=args.get("provider", ""),
            output=json.dumps(args.get("output_type_shape", "")),
        )  # fmt: skip


def _events(record: Path) -> Iterator[dict[str, Any]]:
    """The events of a record, one a line, so that a large one is never in memory as a whole."""
    with record.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if (text := line.strip().rstrip(",")).startswith("{"):
                yield json.loads(text)
