"""One line a request in the log, readable or as JSON, and one line for each field that is not known.

Nobody's words stand in the log: of what a client sent, numbers, names of fields and the path alone.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from datetime import datetime

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from diptych.errors import ContextOverflow, DiptychError, EngineError
from diptych.server.http.exchange import Exchange
from diptych.server.observe.figures import timings, usage
from diptych.types import MediaUse, Output

log = logging.getLogger("diptych.requests")

_FIELDS = 1000  # named at most; a client that makes up names must not fill the memory, nor the log
_NAME = 60  # characters of such a name
_PATH = 100  # characters of a path


class Notes:
    """What is worth a line. Fields that no route knows are named once each."""

    def __init__(self) -> None:
        self._named: set[tuple[str, str]] = set()

    def unknown(self, route: str, names: Iterable[str]) -> None:
        """Name fields that are not obeyed, each once for as long as the server lives."""
        for name in (given[:_NAME] for given in names):
            if (route, name) not in self._named and len(self._named) < _FIELDS:
                self._named.add((route, name))
                facts = {"route": route, "field": name}
                log.warning("%s: the field %r is not known and does nothing", route, name, extra={"facts": facts})

    def over(self, exchange: Exchange) -> None:
        """A request that came to its end: answered, refused, failed, or given up by its client."""
        facts = _facts(exchange)
        parts = [f"{exchange.method} {facts['path']} {exchange.id}: {exchange.status}"]
        parts += [str(facts["error"])] if "error" in facts else []
        parts += map(summary, exchange.answers)
        parts += [f"total {1e3 * exchange.seconds:.0f} ms"]
        log.log(_level(exchange), "%s", " | ".join(parts), extra={"facts": facts})


class JsonLines(logging.Formatter):
    """A JSON object a line: time, level, who says it, what, and what is known of a request as fields."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record."""
        time = datetime.fromtimestamp(record.created).astimezone().isoformat(timespec="milliseconds")
        line = {"time": time, "level": record.levelname.lower(), "logger": record.name}
        message = {"message": super().format(record)} if not hasattr(record, "facts") else {}
        return json.dumps({**line, **message, **getattr(record, "facts", {})})


class Lines(logging.Formatter):
    """A readable line: time, level, what."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S")


def summary(choices: Sequence[Output]) -> str:
    """Where the time of a prompt's answers went, in one line: `stop | queue 0 ms | image 280×140 50 tokens from encoder | …`."""
    first = choices[0]
    t, u, n = first.timings, first.usage, sum(choice.usage.completion_tokens for choice in choices)
    parts = [", ".join(str(choice.finish_reason) for choice in choices), f"queue {t.queue_ms:.0f} ms"]
    if first.media:
        parts += [*map(_medium, first.media), f"encode {t.encode_ms:.0f} ms", f"media prefill {t.media_prefill_ms:.0f} ms"]
    return " | ".join(
        [
            *parts,
            f"preprocess {t.preprocess_ms:.0f} ms",
            f"prompt {u.prompt_tokens} tokens ({u.cached_tokens} cached), text prefill {t.text_prefill_ms:.0f} ms",
            f"first token {t.time_to_first_token_ms:.0f} ms",
            f"decode {n} tokens {t.decode_ms:.0f} ms ({t.tokens_per_second:.1f}/s)",
        ]
    )


def reason(error: Exception) -> str:
    """What is said of an error in the log. What InputError and its kinds say may quote the client; they are named only."""
    if isinstance(error, RequestValidationError):
        where = next((str(part) for part in error.errors()[0]["loc"] if part != "body"), "the body")
        return f"InputError in {where[:_NAME]}"
    if isinstance(error, HTTPException | EngineError):
        return str(error.detail if isinstance(error, HTTPException) else error)
    if isinstance(error, ContextOverflow):
        return f"ContextOverflow: {error.n_prompt} tokens for a context of {error.n_ctx}"
    return type(error).__name__ if isinstance(error, DiptychError) else f"a fault in diptych: {type(error).__name__}"


def _medium(use: MediaUse) -> str:
    size = f" {use.size[0]}×{use.size[1]}→{use.used[0]}×{use.used[1]}" if use.kind == "image" else ""
    return f"{use.kind}{size} {use.n_tokens} tokens from {use.origin}"


def _level(exchange: Exchange) -> int:
    """Answers and what went wrong are told; who only looks, as monitors do every few seconds, is not."""
    if exchange.method in ("GET", "HEAD", "OPTIONS") and (exchange.status < 400 or exchange.status == 503):
        return logging.DEBUG
    return logging.WARNING if exchange.status >= 500 else logging.INFO


def _facts(exchange: Exchange) -> dict[str, object]:
    path = "".join(c if c.isprintable() and not c.isspace() else "?" for c in exchange.path[:_PATH])
    facts: dict[str, object] = {
        "method": exchange.method, "path": path, "route": exchange.route, "id": exchange.id, "status": exchange.status,
        "total_ms": round(1e3 * exchange.seconds, 3),
    }  # fmt: skip
    if (failure := exchange.failure) is not None:
        facts["error"] = " ".join(reason(failure).split())
    told = [
        {"finish_reasons": [c.finish_reason for c in choices], "usage": usage(*choices), "timings": timings(choices[0])}
        for choices in exchange.answers
    ]
    return facts | (told[0] if len(told) == 1 else {"answers": told} if told else {})
