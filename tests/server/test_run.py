"""How a server begins and ends: real processes, real signals."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from processes import DIPTYCH, Process, started

from diptych import reader
from diptych.engine import Engine
from diptych.errors import FileError, InputError, MissingExtra
from diptych.options import ServerOptions
from diptych.server import run

LONG: dict[str, Any] = {
    "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4000, "ignore_eos": True, "stream": True,
}  # fmt: skip


class Stream:
    """A streamed answer, read on a thread of its own."""

    def __init__(self, client: httpx.Client, body: dict[str, Any]) -> None:
        self.events: list[dict[str, Any]] = []
        self.done = False
        self._begun = threading.Event()
        self._thread = threading.Thread(target=self._read, args=(client, body))
        self._thread.start()
        assert self._begun.wait(60)

    def _read(self, client: httpx.Client, body: dict[str, Any]) -> None:
        # a server that is killed breaks off
        with suppress(httpx.HTTPError), client.stream("POST", "/v1/chat/completions", json=body) as response:
            for line in response.iter_lines():
                if line == "data: [DONE]":
                    self.done = True
                elif line.startswith("data: "):
                    self.events.append(json.loads(line[6:]))
                    self._begun.set()

    def end(self) -> None:
        self._thread.join(60)
        assert not self._thread.is_alive()


@contextmanager
def ready(*arguments: str) -> Iterator[tuple[Process, httpx.Client]]:
    with started(*arguments) as process, process.ready() as client:
        yield process, client


def serve(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """A start that does not come far."""
    return subprocess.run(
        [DIPTYCH, "serve", *arguments], env={**os.environ, **variables}, capture_output=True, text=True, timeout=90
    )


def assert_one_line(done: subprocess.CompletedProcess[str], said: str) -> None:
    assert done.returncode == 2, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert said in errors[0]
    assert "Traceback" not in done.stderr


def test_a_port_that_is_taken_is_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert_one_line(serve("reader", "--port", port), f"cannot listen on 127.0.0.1:{port}: Address already in use")
    with pytest.raises(InputError, match=r"cannot listen on 192\.0\.2\.1"):
        run.bind(ServerOptions(host="192.0.2.1", port=0))


def test_a_model_that_cannot_be_loaded_ends_the_process_with_one_line(tmp_path: Path) -> None:
    broken = tmp_path / "text.gguf"
    broken.write_bytes((reader.FOLDER / "text.gguf").read_bytes()[:5000])
    assert_one_line(serve("-m", str(broken), "--port", "0"), "text.gguf")


def test_a_fault_of_ours_while_loading_ends_it_too() -> None:
    def load() -> Engine:
        raise KeyError("x")

    with pytest.raises(KeyError):
        run.serve("reader", ServerOptions(port=0), load, lambda _: None)


def test_keys_and_traces_that_cannot_be_had_are_told_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(error: type[Exception], said: str, **options: Any) -> None:
        with pytest.raises(error, match=said):
            run.serve("reader", ServerOptions(port=0, **options), unwanted, unwanted)

    def unwanted(*_: object) -> Any:
        raise AssertionError

    start(FileError, "cannot read the keys", api_key_file=tmp_path / "keys")
    start(InputError, "--otlp-traces-endpoint", otlp_traces_endpoint="ftp://x")
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    start(MissingExtra, r"pip install 'diptych\[otel\]'", otlp_traces_endpoint="http://localhost:1")


def test_sigterm_lets_a_stream_come_to_its_end_and_takes_no_more() -> None:
    with ready("--drain-seconds", "60") as (process, client):
        stream = Stream(client, {**LONG, "max_tokens": 400})
        address = (client.base_url.host, client.base_url.port)
        process.signal(signal.SIGTERM)
        deadline = time.monotonic() + 10
        while True:
            try:
                socket.create_connection(address, timeout=5).close()
            except ConnectionRefusedError:
                break
            assert time.monotonic() < deadline
            time.sleep(0.02)
        stream.end()
        assert stream.done
        assert stream.events[-1]["choices"][0]["finish_reason"] == "length"
        assert process.ends() == 0
        assert "Traceback" not in process.text
        assert " 200 | length" in process.text


def test_what_still_runs_then_is_ended_with_an_error_of_its_own() -> None:
    with (
        ready("--drain-seconds", "1", "-np", "1") as (process, client),
        httpx.Client(base_url=client.base_url, timeout=60) as other,
    ):
        stream, answers = Stream(client, LONG), list[httpx.Response]()
        waiting = threading.Thread(
            target=lambda: answers.append(other.post("/v1/chat/completions", json={**LONG, "stream": False}))
        )
        waiting.start()
        time.sleep(0.3)
        start = time.monotonic()
        process.signal(signal.SIGTERM)
        stream.end()
        waiting.join(30)
        assert process.ends(30) == 0
        assert 0.9 < time.monotonic() - start < 8
    assert not stream.done
    assert stream.events[-1]["error"]["type"] == "unavailable_error"
    assert "closed" in stream.events[-1]["error"]["message"]
    assert answers[0].status_code == 503
    assert process.text.count(": 503 | ") == 2
    assert "Traceback" not in process.text
    assert "Exception" not in process.text


def test_a_second_signal_does_not_wait() -> None:
    with ready("--drain-seconds", "600") as (process, client):
        try:
            stream = Stream(client, LONG)
            process.signal(signal.SIGTERM)
            time.sleep(0.5)
            assert process.process.poll() is None
            start = time.monotonic()
            process.signal(signal.SIGTERM)
            assert process.ends(10) == 128 + signal.SIGTERM
            assert time.monotonic() - start < 5
        finally:
            process.process.kill()
            stream._thread.join(10)
    assert "Traceback" not in process.text


def test_a_free_port_is_told_and_ctrl_c_ends_in_good_order_and_without_a_traceback() -> None:
    with ready() as (process, client):
        assert int(str(client.base_url).rstrip("/").rpartition(":")[2]) > 1024  # of the free port that was taken
        assert client.get("/health").json() == {"status": "ok"}
        process.signal(signal.SIGINT)
        assert process.ends(30) == 130
        assert "Traceback" not in process.text


LATE = """
import sys, time
from diptych.engine import Engine
real = Engine.load
Engine.load = classmethod(lambda cls, *a, **k: (time.sleep(60), real(*a, **k))[1])
from diptych.cli.main import main
main(["serve", "reader", "--port", "0"])
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_while_the_model_is_loaded_a_signal_ends_the_process_at_once(number: int, code: int) -> None:
    with subprocess.Popen([sys.executable, "-c", LATE], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        found = next(line for line in process.stderr if "listening on" in line).split()[-1]
        while httpx.get(f"{found}/health").status_code != 503:
            time.sleep(0.05)
        start = time.monotonic()
        process.send_signal(number)
        assert process.wait(10) == code
        assert time.monotonic() - start < 5
        assert "Traceback" not in process.stderr.read()
