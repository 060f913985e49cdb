"""Turns of a conversation, put together from the smaller items that some APIs send."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from diptych.errors import InputError
from diptych.server.asking.parts import Part, joined
from diptych.types import Message, ToolCall


@dataclass
class _Turn:
    role: str
    parts: list[Part] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)
    thoughts: list[str] = field(default_factory=list)
    call_id: str | None = None  # of the call that it answers


class Turns:
    """What one role says in a row is one turn; the answer to a call is one of its own."""

    def __init__(self) -> None:
        self._turns: list[_Turn] = []

    def say(self, role: str, parts: Iterable[Part]) -> None:
        """Texts and media of a role. A developer who goes on from the system speaks as the system."""
        if role == "developer" and self._turns and self._turns[-1].role == "system":
            role = "system"
        self._turn(role).parts += parts

    def think(self, text: str) -> None:
        """The assistant's reasoning."""
        self._turn("assistant").thoughts.append(text)

    def call(self, call: ToolCall) -> None:
        """A call that the assistant made."""
        self._turn("assistant").calls.append(call)

    def answer(self, call_id: str, parts: Iterable[Part]) -> None:
        """What the call of that id came to."""
        self._turns.append(_Turn("tool", list(parts), call_id=call_id))

    def messages(self) -> tuple[Message, ...]:
        """All that was said. Raises InputError where it ends with a call, which nothing can go on from."""
        if self._turns and self._turns[-1].calls:
            name = self._turns[-1].calls[-1].name
            raise InputError(f"the conversation ends with a call of {name!r:.60}; send what it came to as well")
        return tuple(
            Message(turn.role, joined(turn.parts), tuple(turn.calls), turn.call_id, None, "\n".join(turn.thoughts) or None)
            for turn in self._turns
        )

    def _turn(self, role: str) -> _Turn:
        if not self._turns or self._turns[-1].role != role:
            self._turns.append(_Turn(role))
        return self._turns[-1]
