"""A chat template: the conversation as the model's file wants it written, and where its media parts stand in it."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property

import jinja2

from diptych.errors import InputError
from diptych.prompt import sandbox
from diptych.types import MediaKind, Message, Source

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)  # what llama.cpp takes where a file has no template
_MAX_SOURCE = 2**20  # characters of a template; real ones have up to 20,000

Placeholders = Mapping[MediaKind, tuple[str, ...]]
Form = Callable[[Message], bool]  # whether a message's content is given as a list of parts rather than a string


class ChatTemplate:
    """The template in a model's file, with its special tokens; ChatML where the file has none.

    A placeholder in the template's own text stands for a media part; one that a user typed does not. They are told
    apart by a secret: it takes the place of the placeholder in the template's source, where no user can write.
    """

    def __init__(self, source: str | None = None, bos: str = "", eos: str = "") -> None:
        self.source = source if source and source != "chatml" else CHATML
        self._special = {name: text for name, text in (("bos_token", bos), ("eos_token", eos)) if text}
        self._secret = f"part{secrets.token_hex(16)}"
        self._compiled: dict[str, jinja2.Template] = {}

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
        """The conversation as text, equal to `apply_chat_template` of transformers; media as the template prints them.

        Raises InputError with the template's own words where it refuses the conversation or cannot be used.
        """
        given = [_listed(m) if self._wants_lists or _has_media(m) else _plain(m) for m in messages]
        return self._run(self.source, given, add_generation_prompt)

    def cut(self, messages: Sequence[Message], placeholders: Placeholders) -> list[str | Source]:
        """The rendered conversation cut at its media parts: texts and sources as they follow each other.

        Content with media is given as a list of parts; where a template does not print them, as text with a random
        mark for each, first of the roles other than `user` and then of all. Raises InputError as `render` does, and
        where no way brings every media part into the prompt once.
        """
        if not any(map(_has_media, messages)):
            return [self.render(messages)]
        placeholders = {kind: texts for kind, texts in placeholders.items() if texts}
        everywhere: Form = _any if self._wants_lists else _has_media
        forms: tuple[Form, ...] = (everywhere, lambda m: m.role == "user" and everywhere(m), lambda m: False)
        failure: InputError | None = None
        for form in forms:
            try:
                if (pieces := self._cut(messages, placeholders, form)) is not None:
                    return pieces
            except InputError as error:
                failure = error
        raise failure or InputError(
            "the model's chat template does not print each picture of the conversation once; "
            "put the pictures into user messages, or use a model with another template"
        )

    def _cut(self, messages: Sequence[Message], placeholders: Placeholders, form: Form) -> list[str | Source] | None:
        """The pieces when content is given in this form; None when a media part is missing or comes twice."""
        sources = [part for m in messages for part in m.parts if isinstance(part, Source)]
        listed = [s for m in messages if form(m) for s in m.parts if isinstance(s, Source)]
        nonce = f"part{secrets.token_hex(16)}n"
        marks = (f"{nonce}{i}e" for i in range(len(sources)))
        written = [_written(m, marks) for m in messages]
        plain = _listed if self._wants_lists and not listed else _plain
        given = [_listed(m) if form(m) else plain(w) for m, w in zip(messages, written, strict=True)]
        source, pattern = self._marked(placeholders) if listed else (self.source, "")
        text = self._run(source, given, True)
        waiting = {kind: iter([s for s in listed if s.kind == kind]) for kind in placeholders}
        pieces: list[str | Source | None] = []
        end = 0
        for match in re.finditer(f"{nonce}(?P<at>[0-9]+)e{pattern}", text):
            pieces.append(text[end : match.start()])
            if match["at"]:
                pieces.append(sources[int(match["at"])])
            else:
                pieces.append(next(next(queue for kind, queue in waiting.items() if match[kind]), None))
            end = match.end()
        pieces.append(text[end:])
        return _once(pieces, sources)

    def _marked(self, placeholders: Placeholders) -> tuple[str, str]:
        """The source with a secret for each placeholder's core, and a pattern, one group a kind, longest text first."""
        source, pattern = self.source, ""
        for kind, texts in placeholders.items():
            secret = f"{self._secret}{kind}"
            cores = [t for t in texts if not any(other != t and other in t for other in texts)]
            for core in cores:
                source = source.replace(core, secret)
                texts = tuple(t.replace(core, secret) for t in texts)
            longest_first = sorted(set(texts), key=len, reverse=True)
            pattern += f"|(?P<{kind}>{'|'.join(map(re.escape, longest_first))})"
        return source, pattern

    @cached_property
    def _wants_lists(self) -> bool:
        """Whether the template prints content given as a list of parts only, and would drop a string's text."""
        probe = f"probe{secrets.token_hex(4)}"

        def printed(content: Callable[[Message], dict[str, object]]) -> bool:
            try:
                return probe in self._run(self.source, [content(Message("user", (probe,)))], True)
            except InputError:
                return False

        return not printed(_plain) and printed(_listed)

    def _run(self, source: str, messages: list[dict[str, object]], add_generation_prompt: bool) -> str:
        try:
            if source not in self._compiled:
                self._compiled[source] = _compile(source)
            variables = {"messages": messages, "add_generation_prompt": add_generation_prompt, "tools": None, "documents": None}
            return sandbox.render(self._compiled[source], {**variables, **self._special})
        except jinja2.TemplateSyntaxError as error:
            raise InputError(
                f"the model's chat template is not valid Jinja: {error.message} (line {error.lineno}); convert the model again"
            ) from error
        except jinja2.TemplateError as error:
            raise InputError(f"the model's chat template refuses the conversation: {_line(error)}") from error
        except Exception as error:  # a template is a program, and fails like one
            raise InputError(
                f"the model's chat template cannot take the conversation: {type(error).__name__}: {_line(error)}; "
                "say it in other roles or another order, or use a model with another template"
            ) from error


def _compile(source: str) -> jinja2.Template:
    if len(source) > _MAX_SOURCE:
        raise jinja2.TemplateError(f"it has {len(source):,} characters, and {_MAX_SOURCE:,} is the most")
    return sandbox.compile(source)


def _listed(message: Message) -> dict[str, object]:
    """A message whose content is a list of parts."""
    parts = [{"type": "text", "text": part} if isinstance(part, str) else {"type": part.kind} for part in message.parts]
    return {"role": message.role, "content": parts}


def _plain(message: Message) -> dict[str, object]:
    """A message whose content is a string."""
    return {"role": message.role, "content": "".join(part for part in message.parts if isinstance(part, str))}


def _written(message: Message, marks: Iterator[str]) -> Message:
    """A message of one text, in which each media part is the next mark."""
    return Message(message.role, ("".join(part if isinstance(part, str) else next(marks) for part in message.parts),))


def _has_media(message: Message) -> bool:
    return any(isinstance(part, Source) for part in message.parts)


def _any(message: Message) -> bool:
    return True


def _once(pieces: list[str | Source | None], sources: list[Source]) -> list[str | Source] | None:
    """The pieces if each source is among them once, told apart by identity: two may be equal."""
    found = [id(p) for p in pieces if not isinstance(p, str)]
    whole = [p for p in pieces if p is not None and p != ""]
    return whole if sorted(found) == sorted(map(id, sources)) else None


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or "no reason given"
