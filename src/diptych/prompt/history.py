"""Which pictures of a conversation the model still sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from diptych.errors import InputError
from diptych.types import Message, Source

_CHOICES = ("all", "last")


def seen(messages: Sequence[Message], vision_history: str) -> tuple[Message, ...]:
    """The messages with the pictures that `vision_history` leaves: `all`, or those of the `last` message that has any.

    Text and recordings stay. Raises InputError for another choice.
    """
    if vision_history not in _CHOICES:
        raise InputError(f"vision_history is {vision_history!r:.40}; it must be one of {', '.join(_CHOICES)}")
    last = max((i for i, message in enumerate(messages) if any(map(_is_image, message.parts))), default=0)
    if vision_history == "all":
        return tuple(messages)
    return (*(_without_images(message) for message in messages[:last]), *messages[last:])


def _without_images(message: Message) -> Message:
    return replace(message, parts=tuple(part for part in message.parts if not _is_image(part)))


def _is_image(part: str | Source) -> bool:
    return isinstance(part, Source) and part.kind == "image"
