"""What an answer is made of, as it comes: reasoning, content, and calls of tools."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from diptych.types import ToolCall


@dataclass(frozen=True)
class Reasoning:
    """More of what the model thinks before it answers."""

    text: str


@dataclass(frozen=True)
class Content:
    """More of what it says."""

    text: str


@dataclass(frozen=True)
class CallStart:
    """A call begins; calls are numbered from 0."""

    index: int
    id: str
    name: str


@dataclass(frozen=True)
class CallArguments:
    """More of the JSON text of a call's arguments."""

    index: int
    text: str


Delta = Reasoning | Content | CallStart | CallArguments


@dataclass(frozen=True)
class Said:
    """A whole answer. Reasoning and content are "" where there is none."""

    reasoning: str
    content: str
    calls: tuple[ToolCall, ...]


def joined(deltas: Iterable[Delta]) -> list[Delta]:
    """Deltas with neighbours of one kind in one."""
    out: list[Delta] = []
    for delta in deltas:
        match (out[-1] if out else None), delta:
            case (Reasoning(before), Reasoning(text)):
                out[-1] = Reasoning(before + text)
            case (Content(before), Content(text)):
                out[-1] = Content(before + text)
            case (CallArguments(i, before), CallArguments(j, text)) if i == j:
                out[-1] = CallArguments(i, before + text)
            case _:
                out.append(delta)
    return out


def said(deltas: Iterable[Delta]) -> Said:
    """The whole answer that the deltas tell."""
    parts: dict[type[Delta], list[str]] = {Reasoning: [], Content: []}
    starts: list[CallStart] = []
    arguments: dict[int, str] = {}
    for delta in joined(deltas):
        match delta:
            case CallStart():
                starts.append(delta)
            case CallArguments(index, text):
                arguments[index] = arguments.get(index, "") + text
            case Reasoning(text) | Content(text):
                parts[type(delta)].append(text)
    calls = tuple(ToolCall(start.name, arguments.get(start.index, ""), start.id) for start in starts)
    return Said("".join(parts[Reasoning]), "".join(parts[Content]), calls)
