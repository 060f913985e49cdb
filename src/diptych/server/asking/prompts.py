"""Prompts that no template touches, in llama-server's forms → pieces for the engine: texts, tokens and media."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from diptych.errors import InputError
from diptych.media.recognise import recognise
from diptych.server.asking import parts
from diptych.types import MediaKind, Source

Prompt = tuple[str | int | Source, ...]
MAX_PROMPTS = 1024  # in one request
MAX_CHARACTERS = 2**22  # of a prompt: more than any context holds, and tokenising takes seconds
_FORMS = (
    'a string, a list of tokens, a list of strings and tokens, {"prompt_string": …, "multimodal_data": [base64, …]}, '
    "or a list of these"
)


def prompts(given: object, marker: str, where: str = "prompt") -> list[Prompt]:
    """One prompt, or a list of some. A list that holds a token is one prompt; any other list holds prompts.

    `marker` stands in a `prompt_string` for each item of its `multimodal_data`. Raises InputError for what is none, or
    where markers and items differ in number; MediaError for an item that is no media.
    """
    if not isinstance(given, list) or any(map(_is_token, given)):
        return [prompt(given, marker, where)]
    if not 0 < len(given) <= MAX_PROMPTS:
        raise InputError(f"{where} is a list of {len(given)} prompts; send 1 to {MAX_PROMPTS}")
    return [prompt(one, marker, f"{where}[{i}]") for i, one in enumerate(given)]


def prompt(given: object, marker: str, where: str = "prompt") -> Prompt:
    """One prompt. Raises as `prompts` does."""
    if isinstance(given, Mapping):
        return _marked(given, marker, where)
    found = texts_and_tokens(given, where)
    if not any(piece != "" for piece in found):
        raise InputError(f"{where} is empty; say something")
    return found


def texts_and_tokens(given: object, where: str) -> tuple[str | int, ...]:
    """A text, or a list of texts and tokens. Raises InputError for anything else."""
    pieces = [given] if isinstance(given, str) else given
    if not isinstance(pieces, list):
        raise InputError(f"{where} is of type {type(given).__name__}; it must be {_FORMS}")
    for piece in pieces:
        if not isinstance(piece, str) and not _is_token(piece):
            raise InputError(f"{where} holds something of type {type(piece).__name__}; it must be {_FORMS}")
    _check_length(pieces, where)
    return tuple(pieces)


def shown(given: Prompt, marker: str) -> tuple[str | int, ...]:
    """A prompt with the marker in the place of its media."""
    return tuple(marker if isinstance(piece, Source) else piece for piece in given)


def _marked(given: Mapping[str, object], marker: str, where: str) -> Prompt:
    """A prompt as an object: its text, cut where its media go."""
    if "prompt_string" not in given:
        raise InputError(f"{where} is an object without prompt_string; it must be {_FORMS}")
    text, data = given["prompt_string"], given.get("multimodal_data")
    if data is None:
        return prompt(text, marker, f"{where}.prompt_string")
    if not isinstance(text, str) or not isinstance(data, list):
        raise InputError(f"{where}.prompt_string must be a string and {where}.multimodal_data a list beside it")
    _check_length([text], where)
    texts = text.split(marker)
    if len(texts) - 1 != len(data):
        raise InputError(
            f"{where}.prompt_string holds {len(texts) - 1} media markers, and multimodal_data {len(data)} items; put one "
            f"{marker} (media_marker of /props) into the text for each"
        )
    found = [_media(item, f"{where}.multimodal_data[{i}]") for i, item in enumerate(data)]
    pieces = [texts[0], *(piece for pair in zip(found, texts[1:], strict=True) for piece in pair)]
    return tuple(piece for piece in pieces if piece != "")


def _check_length(pieces: Iterable[str | int], where: str) -> None:
    if (n := sum(len(piece) for piece in pieces if isinstance(piece, str))) > MAX_CHARACTERS:
        raise InputError(f"{where} has {n:,} characters, and {MAX_CHARACTERS:,} is the most; send less")


def _media(item: object, where: str) -> Source:
    """Bare base64 as in llama-server, or a URL. What the bytes are decides how they are read."""
    if not isinstance(item, str):
        raise InputError(f"{where} is {type(item).__name__}; it must be base64")
    kind: MediaKind = "audio" if item[:11].lower() == "data:audio/" else "image"
    found = parts.source(kind, item, where)
    return Source("audio", data=found.data) if found.data and _is_sound(found.data) else found


def _is_sound(data: bytes) -> bool:
    """An MP3 file need not begin with a tag: then it is eleven bits set."""
    return (recognise(data) or "").startswith("audio") or (data[0] == 0xFF and data[1:2] >= b"\xe0")


def _is_token(piece: object) -> bool:
    return isinstance(piece, int) and not isinstance(piece, bool)
