"""What a client gives to the chat template besides messages: tools, and variables such as `enable_thinking`. Bounded."""

from __future__ import annotations

from collections.abc import Mapping

from diptych.errors import InputError
from diptych.prompt.sandbox import FUNCTIONS
from diptych.types import Json, Request

_OURS = ("messages", "tools", "add_generation_prompt", *FUNCTIONS)
_MAX_DEPTH = 100  # of lists and objects in one another
_MAX_SIZE = 2**22  # characters, a value counting as one; the tools of a large agent have some 100,000


def variables(request: Request) -> dict[str, object]:
    """The variables of a rendering, but for `messages`, as plain data that is the template's own.

    Raises InputError for a variable that is not the client's to set, and for what is too large or no JSON.
    """
    for name in request.template:
        if name in _OURS or name.endswith("_token") or not name.isidentifier():
            raise InputError(f"chat_template_kwargs sets {name[:40]!r}, which is not the client's to set; leave it out")
    return {
        "documents": None,
        **_Copy("chat_template_kwargs").of_object(request.template),
        "tools": _Copy("tools").of_list(request.tools) or None,
        "add_generation_prompt": request.add_generation_prompt and not request.continue_final,
    }


class _Copy:
    """Copies JSON, counting what it copies."""

    def __init__(self, name: str) -> None:
        self._name, self._left = name, _MAX_SIZE

    def of_object(self, value: Mapping[str, Json], depth: int = 0) -> dict[str, object]:
        return {self._text(key): self._of(item, depth) for key, item in value.items()}

    def of_list(self, value: tuple[Json, ...] | list[Json], depth: int = 0) -> list[object]:
        return [self._of(item, depth) for item in value]

    def _of(self, value: Json, depth: int) -> object:
        if depth > _MAX_DEPTH:
            raise InputError(f"{self._name} is nested over {_MAX_DEPTH} deep; send flatter JSON")
        self._spend(1)
        if isinstance(value, str):
            return self._text(value)
        if value is None or isinstance(value, (bool, int, float)):
            return value
        if isinstance(value, Mapping):
            return self.of_object(value, depth + 1)
        if isinstance(value, (list, tuple)):
            return self.of_list(value, depth + 1)
        raise InputError(f"{self._name} holds a value of the type {type(value).__name__}, which JSON has not")

    def _text(self, value: str) -> str:
        if not isinstance(value, str):
            raise InputError(f"{self._name} has {value!r:.40} for a key, and JSON has texts only")
        self._spend(len(value))
        return value

    def _spend(self, n: int) -> None:
        self._left -= n
        if self._left < 0:
            raise InputError(f"{self._name} has over {_MAX_SIZE:,} characters; send less")
