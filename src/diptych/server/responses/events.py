"""An answer as the output items of a response, and the events that tell of them."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from diptych.server.parsers import CallArguments, CallStart, Content, Delta, Reasoning

Event = dict[str, Any]  # the wire format
Status = Literal["completed", "incomplete"]


@dataclass
class _Item:
    """The item that is being told: what it is without its text, the texts so far, and the probabilities of its tokens."""

    fields: Event
    texts: list[str] = field(default_factory=list)
    logprobs: list[Event] = field(default_factory=list)


class Items:
    """Takes what an answer tells. `output` holds the items that are complete."""

    def __init__(self) -> None:
        self.output: list[Event] = []
        self._item: _Item | None = None

    def take(self, deltas: Sequence[Delta], logprobs: Sequence[Event] = ()) -> Iterator[Event]:
        """The events of a piece; the probabilities of its tokens are told with its text."""
        for delta in deltas:
            match delta:
                case Reasoning(told):
                    yield from self._text("reasoning", told, ())
                case Content(told):
                    yield from self._text("message", told, logprobs)
                    logprobs = ()
                case CallStart(_, call_id, name):
                    yield from self._begin(_call(call_id, name))
                case CallArguments(_, told):
                    assert self._item is not None
                    self._item.texts.append(told)
                    yield self._event("response.function_call_arguments.delta", delta=told)

    def close(self, status: Status = "completed") -> Iterator[Event]:
        """The events that end the item which is being told, if there is one."""
        if (item := self._item) is None:
            return
        whole = "".join(item.texts)
        if item.fields["type"] == "function_call":
            item.fields["arguments"] = whole
            yield self._event("response.function_call_arguments.done", arguments=whole)
        else:
            part = _part(item.fields["type"], whole, item.logprobs)
            more = {} if part["type"] == "reasoning_text" else {"logprobs": item.logprobs}
            yield self._event(f"response.{part['type']}.done", content_index=0, text=whole, **more)
            yield self._event("response.content_part.done", content_index=0, part=part)
            item.fields["content"] = [part]
        item.fields["status"] = status
        yield {"type": "response.output_item.done", "output_index": len(self.output), "item": item.fields}
        self.output.append(item.fields)
        self._item = None

    def _text(self, kind: Literal["reasoning", "message"], told: str, logprobs: Sequence[Event]) -> Iterator[Event]:
        """More text of an item of a kind, which is begun where another was being told."""
        if self._item is None or self._item.fields["type"] != kind:
            yield from self._begin(_message() if kind == "message" else _reasoning())
            yield self._event("response.content_part.added", content_index=0, part=_part(kind, "", ()))
        assert self._item is not None
        self._item.texts.append(told)
        self._item.logprobs += logprobs
        more = {} if kind == "reasoning" else {"logprobs": list(logprobs)}
        name = "reasoning_text" if kind == "reasoning" else "output_text"
        yield self._event(f"response.{name}.delta", content_index=0, delta=told, **more)

    def _begin(self, fields: Event) -> Iterator[Event]:
        yield from self.close()
        self._item = _Item(fields)
        yield {"type": "response.output_item.added", "output_index": len(self.output), "item": dict(fields)}

    def _event(self, kind: str, **more: object) -> Event:
        assert self._item is not None
        return {"type": kind, "item_id": self._item.fields["id"], "output_index": len(self.output), **more}


def _message() -> Event:
    return {"type": "message", "id": _id("msg"), "status": "in_progress", "role": "assistant", "content": []}


def _reasoning() -> Event:
    return {"type": "reasoning", "id": _id("rs"), "status": "in_progress", "summary": [], "content": []}


def _call(call_id: str, name: str) -> Event:
    call = {"call_id": call_id, "name": name, "arguments": ""}
    return {"type": "function_call", "id": _id("fc"), "status": "in_progress", **call}


def _part(kind: str, text: str, logprobs: Sequence[Event]) -> Event:
    if kind == "reasoning":
        return {"type": "reasoning_text", "text": text}
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": list(logprobs)}


def _id(prefix: str) -> str:
    return f"{prefix}_{secrets.token_hex(16)}"
