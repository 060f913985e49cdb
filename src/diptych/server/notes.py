"""One line a request in the log, readable or as JSON, and one line for each field that is not known."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping

from diptych.server.figures import timings, usage
from diptych.types import MediaUse, Output

log = logging.getLogger("diptych.requests")


class Notes:
    """What is worth a line. Fields that no route knows are named once each."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json
        self._named: set[tuple[str, str]] = set()

    def unknown(self, route: str, names: Iterable[str]) -> None:
        """Name fields that are not obeyed, each once for as long as the server lives."""
        for name in names:
            # a client that makes up names must not fill the memory, nor the log
            if (route, name) not in self._named and len(self._named) < 1000:
                self._named.add((route, name))
                self._write(
                    logging.WARNING, f"{route}: the field {name[:60]!r} is not known and does nothing", {"field": name[:60]}
                )

    def answered(self, route: str, request_id: str, output: Output) -> None:
        """A request that came to its end."""
        self._write(logging.INFO, f"{route} {request_id}: {summary(output)}", _facts(route, request_id, output))

    def failed(self, route: str, request_id: str, status: int, message: str) -> None:
        """A request that was refused, failed or given up by its client (499)."""
        facts = {"route": route, "id": request_id, "status": status, "error": message}
        self._write(logging.WARNING if status >= 500 else logging.INFO, f"{route} {request_id}: {status} {message}", facts)

    def _write(self, level: int, line: str, facts: Mapping[str, object]) -> None:
        log.log(level, "%s", json.dumps(facts) if self._as_json else " ".join(line.split()))


def summary(output: Output) -> str:
    """Where the time went, in one line: `queue 0 | image 280×140→280×140 50 tokens, encode 12 | …` in milliseconds."""
    t, u = output.timings, output.usage
    parts = [str(output.finish_reason), f"queue {t.queue_ms:.0f} ms"]
    if output.media:
        parts += [*map(_medium, output.media), f"preprocess {t.preprocess_ms:.0f} ms", f"encode {t.encode_ms:.0f} ms"]
        parts += [f"media prefill {t.media_prefill_ms:.0f} ms"]
    return " | ".join(
        [
            *parts,
            f"prompt {u.prompt_tokens} tokens ({u.cached_tokens} cached), text prefill {t.text_prefill_ms:.0f} ms",
            f"first token {t.time_to_first_token_ms:.0f} ms",
            f"decode {u.completion_tokens} tokens {t.decode_ms:.0f} ms ({t.tokens_per_second:.1f}/s)",
        ]
    )


def _medium(use: MediaUse) -> str:
    size = f" {use.size[0]}×{use.size[1]}→{use.used[0]}×{use.used[1]}" if use.kind == "image" else ""
    return f"{use.kind}{size} {use.n_tokens} tokens from {use.origin}"


def _facts(route: str, request_id: str, output: Output) -> dict[str, object]:
    return {
        "route": route,
        "id": request_id,
        "status": 200,
        "finish_reason": output.finish_reason,
        "usage": usage(output),
        "timings": timings(output),
    }
