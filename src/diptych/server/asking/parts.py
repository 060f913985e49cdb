"""Messages and content parts as clients send them → the engine's."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any, cast, get_args

from diptych.errors import InputError, MediaError, UnsupportedMedia
from diptych.types import MediaKind, Message, Source, ToolCall

Part = str | Source

ENCODED = "media_embedding"  # the type of a part that was encoded before
MAX_ID = 256  # characters of a media id
_KINDS: Mapping[str, MediaKind] = {"image_url": "image", "input_audio": "audio", "input_video": "video", "video_url": "video"}


def messages(given: Sequence[Mapping[str, Any]]) -> tuple[Message, ...]:
    """OpenAI's messages. Raises InputError naming the message that is none."""
    return tuple(_message(one, i) for i, one in enumerate(given))


def _message(given: Mapping[str, Any], i: int) -> Message:
    role, content = given.get("role"), given.get("content")
    if not isinstance(role, str) or not role:
        raise InputError(f"messages[{i}] has role {role!r}; it must be a string such as 'user'")
    calls = given.get("tool_calls") or ()
    if content is None and not calls and role != "assistant":
        raise InputError(f"messages[{i}] has no content; give a string or a list of parts")
    reasoning = given.get("reasoning_content") or given.get("reasoning")
    for name, value in (
        ("reasoning_content", reasoning),
        ("name", given.get("name")),
        ("tool_call_id", given.get("tool_call_id")),
    ):
        if value is not None and not isinstance(value, str):
            raise InputError(f"messages[{i}].{name} is {value!r:.40}; it must be a string")
    said = content_parts(content, f"messages[{i}].content")
    return Message(role, said, _calls(calls, i), given.get("tool_call_id"), given.get("name"), reasoning)


def part(given: object, where: str) -> Part:
    """A content part of OpenAI's chat. Raises InputError or MediaError for one that cannot be."""
    if not isinstance(given, Mapping):
        raise InputError(f"{where} is {type(given).__name__}; it must be an object with a type")
    kind = str(given.get("type"))
    if kind in ("text", "input_text", "output_text", "refusal"):
        return text(given, "refusal" if "text" not in given and "refusal" in given else "text", where)
    if kind in _KINDS:
        return media(_KINDS[kind], given.get(kind), where, given)
    if kind == ENCODED:
        return encoded(given.get(kind), where)
    raise InputError(
        f"{where} is of type {kind!r:.40}; text, {', '.join(_KINDS)}, {ENCODED} are known (unsupported content[].type)"
    )


def text(given: Mapping[str, Any], name: str, where: str) -> str:
    """A field that must be there and be a string."""
    value = given.get(name)
    if not isinstance(value, str):
        raise InputError(f"{where}.{name} is {value!r:.40}; it must be a string")
    return value


def content_parts(content: object, where: str, read: Callable[[object, str], Part] = part) -> tuple[Part, ...]:
    """A string, a list of parts that `read` knows, or nothing → texts and media."""
    if content is None:
        return ()
    if isinstance(content, str):
        return (content,)
    if not isinstance(content, list):
        raise InputError(f"{where} is {type(content).__name__}; it must be a string or a list of parts")
    return joined(read(given, f"{where}[{i}]") for i, given in enumerate(content))


def joined(given: Iterable[Part]) -> tuple[Part, ...]:
    """Parts with texts next to each other in one, a newline between them, as llama-server has it."""
    out: list[Part] = []
    for kind, group in groupby(given, type):
        same = list(group)
        out += ["\n".join(map(str, same))] if kind is str else same
    return tuple(out)


def encoded(value: Any, where: str) -> Source:  # noqa: ANN401 - JSON, which is checked where it is prepared
    """A media part that the client has had encoded: what `/v1/media/encode` answered, or its chunks alone."""
    kind = value.get("kind", "image") if isinstance(value, Mapping) else "image"
    if not value or kind not in get_args(MediaKind):
        raise MediaError(f"{where}.{ENCODED} is no answer of /v1/media/encode; send one as it came")
    return Source(cast(MediaKind, kind), encoded=value)


def media(kind: MediaKind, value: object, where: str, part: Mapping[str, Any] = {}) -> Source:
    """A media part: `{"url": …}`, `{"data": …}`, or the URL itself; with `id` (or vLLM's `uuid`) what it is to be called."""
    inner: Mapping[str, Any] = value if isinstance(value, Mapping) else {"url": value}
    text = inner.get("url") if inner.get("url") is not None else inner.get("data")
    name = next((v for v in (inner.get("id"), inner.get("uuid"), part.get("id"), part.get("uuid")) if v is not None), None)
    if name is not None and (not isinstance(name, str) or not 0 < len(name) <= MAX_ID):
        raise InputError(f"{where} has the id {name!r:.40}; it must be a string of 1 to {MAX_ID} characters")
    if text is None or text == "":
        if name is None:
            raise MediaError(f"{where} has neither url nor data nor id; give one of them")
        return Source(kind, id=name)
    if not isinstance(text, str):
        raise InputError(f"{where} has {type(text).__name__} for its url; it must be a string")
    return source(kind, text, where, name)


def source(kind: MediaKind, text: str, where: str, name: str | None = None) -> Source:
    """A URL, or bare base64, which is what a text without a scheme is taken for, as llama-server does."""
    scheme = text[:8].lower()
    if scheme.startswith(("http:", "https:", "file:")):
        return Source(kind, url=text, id=name)
    if scheme.startswith("data:"):
        declared = text[5:40].lower().partition(";")[0].partition(",")[0]
        if declared and not declared.startswith((f"{kind}/", "application/octet-stream")):
            raise UnsupportedMedia(f"{where} is of type {declared}, and {kind} is expected")
        return Source(kind, url=text, id=name)
    return Source(kind, data=_decoded(text, where), id=name)


def _decoded(text: str, where: str) -> bytes:
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise MediaError(f"{where} is no URL (http:, https:, file:, data:) and not base64: {str(error).lower()}") from error
    if not data:
        raise MediaError(f"{where} holds no bytes")
    return data


def _calls(given: object, i: int) -> tuple[ToolCall, ...]:
    """The calls an assistant made in an earlier turn."""
    if not isinstance(given, Sequence) or isinstance(given, str):
        raise InputError(f"messages[{i}].tool_calls is {type(given).__name__}; it must be a list")
    out = []
    for j, call in enumerate(given):
        function = call.get("function") if isinstance(call, Mapping) else None
        name = function.get("name") if isinstance(function, Mapping) else None
        arguments = function.get("arguments", "{}") if isinstance(function, Mapping) else None
        if not isinstance(name, str) or not isinstance(arguments, str):
            raise InputError(
                f"messages[{i}].tool_calls[{j}] is no call; "
                'it must be {"id": …, "type": "function", "function": {"name": …, "arguments": JSON as a string}}'
            )
        out.append(ToolCall(name, arguments, str(call.get("id") or "")))
    return tuple(out)
