"""An answer as the content blocks of a message, and the events that tell of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from diptych.server.parsers import CallArguments, CallStart, Content, Delta, Reasoning

Event = dict[str, Any]  # the wire format
_TEXT = {"thinking": "thinking", "text": "text"}  # type of a block → its field


class Blocks:
    """Takes what an answer tells. `content` holds the blocks that are complete; `thoughts` are told or left out."""

    def __init__(self, thoughts: bool = True) -> None:
        self.content: list[Event] = []
        self._thoughts = thoughts
        self._block: Event | None = None
        self._texts: list[str] = []

    def take(self, deltas: Sequence[Delta]) -> Iterator[Event]:
        """The events of a piece."""
        for delta in deltas:
            match delta:
                case Reasoning(told):
                    yield from self._within({"type": "thinking", "thinking": "", "signature": ""})
                    if self._thoughts:
                        yield self._more("thinking_delta", "thinking", told)
                case Content(told):
                    yield from self._within({"type": "text", "text": ""})
                    yield self._more("text_delta", "text", told)
                case CallStart(_, name_id, name):
                    yield from self._begin({"type": "tool_use", "id": name_id, "name": name, "input": {}})
                case CallArguments(_, told):
                    yield self._more("input_json_delta", "partial_json", told)

    def close(self) -> Iterator[Event]:
        """The events that end the block which is being told, if there is one. Thoughts have an empty signature: nobody
        here looks at it when they come back."""
        if (block := self._block) is None:
            return
        whole, kind = "".join(self._texts), block["type"]
        if kind == "thinking":
            yield self._delta({"type": "signature_delta", "signature": ""})
        yield {"type": "content_block_stop", "index": len(self.content)}
        if kind == "tool_use":
            block["input"] = _object(whole)
        else:
            block[_TEXT[kind]] = whole
        self.content.append(block)
        self._block = None

    def _within(self, block: Event) -> Iterator[Event]:
        """Go on in a block of this type, or begin it."""
        if self._block is None or self._block["type"] != block["type"]:
            yield from self._begin(block)

    def _begin(self, block: Event) -> Iterator[Event]:
        yield from self.close()
        self._block, self._texts = block, []
        yield {"type": "content_block_start", "index": len(self.content), "content_block": dict(block)}

    def _more(self, kind: str, name: str, told: str) -> Event:
        self._texts.append(told)
        return self._delta({"type": kind, name: told})

    def _delta(self, delta: Event) -> Event:
        return {"type": "content_block_delta", "index": len(self.content), "delta": delta}


def _object(text: str) -> Event:
    """The arguments of a call; none where it was cut off in them."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
