"""A chat template: the conversation as the model's file wants it written, and where its media parts stand in it."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property

import jinja2

from diptych.errors import InputError
from diptych.prompt import message, sandbox
from diptych.prompt.variables import variables
from diptych.types import MediaKind, Message, Request, Source, ToolCall

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)  # what llama.cpp takes where a file has no template
_THINK, _THOUGHT = "<think>", "</think>"
_SHORT_IDS = "length != 9"  # Mistral's templates refuse calls whose ids are longer
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

    def render(self, request: Request) -> str:
        """The conversation as text, equal to `apply_chat_template` of transformers; media as the template prints them,
        or not at all where it takes none.

        Raises InputError with the template's own words where it refuses the conversation or cannot be used.
        """
        messages, end = self._messages(request)
        listing: Form = _any if self._wants_lists else message.has_media
        given = [self._turn(m, listing(m)) for m in messages]
        try:
            text = self._run(self.source, given, variables(request))
        except InputError:  # as of templates that join content to text
            if self._wants_lists or not any(map(message.has_media, messages)):
                raise
            text = self._run(self.source, [self._turn(m, False) for m in messages], variables(request))
        return _up_to(end, text)

    def opening(self, request: Request) -> str:
        """What the template writes behind the last message, or of the message that goes on: there the answer begins."""
        if request.continue_final:
            before = replace(request, messages=request.messages[:-1], continue_final=False, add_generation_prompt=False)
        else:
            before = replace(request, add_generation_prompt=False)
        try:
            closed = self.render(before) if before.messages else ""
        except InputError:  # a template may want an answer behind every question
            closed = ""
        text = self.render(request)
        same = next((i for i, (a, b) in enumerate(zip(text, closed, strict=False)) if a != b), len(closed))
        return text[same:]

    def cut(self, request: Request, placeholders: Placeholders) -> list[str | Source]:
        """The rendered conversation cut at its media parts: texts and sources as they follow each other.

        Content with media is given as a list of parts; where a template does not print them, as text with a random
        mark for each, first of the roles other than `user` and then of all. Raises InputError as `render` does, and
        where no way brings every media part into the prompt once.
        """
        if not any(map(message.has_media, request.messages)):
            return [self.render(request)]
        placeholders = {kind: texts for kind, texts in placeholders.items() if texts}
        everywhere: Form = _any if self._wants_lists else message.has_media
        forms: tuple[Form, ...] = (everywhere, lambda m: m.role == "user" and everywhere(m), lambda m: False)
        failure: InputError | None = None
        for form in forms:
            try:
                if (pieces := self._cut(request, placeholders, form)) is not None:
                    return pieces
            except InputError as error:
                failure = error
        raise failure or InputError(
            "the model's chat template does not print each picture of the conversation once; "
            "put the pictures into user messages, or use a model with another template"
        )

    def _cut(self, request: Request, placeholders: Placeholders, form: Form) -> list[str | Source] | None:
        """The pieces when content is given in this form; None when a media part is missing or comes twice."""
        messages, end = self._messages(request)
        sources = [part for m in messages for part in m.parts if isinstance(part, Source)]
        listed = [s for m in messages if form(m) for s in m.parts if isinstance(s, Source)]
        nonce = f"part{secrets.token_hex(16)}n"
        marks = (f"{nonce}{i}e" for i in range(len(sources)))
        written = [message.written(m, marks) for m in messages]
        lists = self._wants_lists and not listed
        given = [self._turn(m if form(m) else w, form(m) or lists) for m, w in zip(messages, written, strict=True)]
        source, pattern = self._marked(placeholders) if listed else (self.source, "")
        text = _up_to(end, self._run(source, given, variables(request)))
        waiting = {kind: iter([s for s in listed if s.kind == kind]) for kind in placeholders}
        pieces: list[str | Source | None] = []
        at = 0
        for match in re.finditer(f"{nonce}(?P<at>[0-9]+)e{pattern}", text):
            pieces.append(text[at : match.start()])
            if match["at"]:
                pieces.append(sources[int(match["at"])])
            else:
                pieces.append(next(next(queue for kind, queue in waiting.items() if match[kind]), None))
            at = match.end()
        pieces.append(text[at:])
        return _once(pieces, sources)

    def _messages(self, request: Request) -> tuple[list[Message], str]:
        """The messages as this template can take them, and the mark at which the text is to be cut off, if any."""
        messages = list(request.messages)
        if _SHORT_IDS in self.source:
            messages = [message.with_short_ids(m, 9) for m in messages]
        if "developer" not in self.source:
            messages = [replace(m, role="system") if m.role == "developer" else m for m in messages]
        if not request.continue_final or not messages:
            return messages, ""
        mark = f"end{secrets.token_hex(16)} "  # the space shows whether the template strips its messages
        return [*messages[:-1], message.open_ended(messages[-1], mark)], mark

    def _turn(self, given: Message, as_list: bool) -> message.Turn:
        return (message.listed if as_list else message.plain)(given, not given.tool_calls or self._takes_objects)

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
        asked = Message("user", (probe,))
        return probe not in self._tried(message.plain(asked)) and probe in self._tried(message.listed(asked))

    @cached_property
    def _takes_objects(self) -> bool:
        """Whether a call's arguments are to be an object, as transformers has them, rather than JSON text.

        They are text for a template that joins them to other text, or prints an object as Python would.
        """
        key, value = f"key{secrets.token_hex(4)}", f"value{secrets.token_hex(4)}"
        calls = (ToolCall("probe", json.dumps({key: value}), "probe0000"),)
        before, after = Message("user", ("probe",)), Message("tool", ("probe",), tool_call_id="probe0000")
        form = message.listed if self._wants_lists else message.plain

        def printed(objects: bool) -> bool:
            turns = [form(before), form(Message("assistant", (), calls), objects), form(after)]
            text = self._tried(*turns)
            return key in text and value in text and repr(key) not in text

        return printed(objects=True) or not printed(objects=False)

    def _tried(self, *turns: message.Turn) -> str:
        """A conversation rendered to see what becomes of it; nothing where it is refused."""
        try:
            return self._run(self.source, list(turns), variables(Request()))
        except InputError:
            return ""

    def _run(self, source: str, turns: list[message.Turn], given: Mapping[str, object]) -> str:
        try:
            if source not in self._compiled:
                self._compiled[source] = _compile(source)
            text = sandbox.render(self._compiled[source], {**given, "messages": turns, **self._special})
            return text + _THOUGHT if _begins_to_think(text) and _is_not_to(given) else text
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


def _begins_to_think(text: str) -> bool:
    return text.rstrip().endswith(_THINK)


def _is_not_to(given: Mapping[str, object]) -> bool:
    """Whether the answer is to come without thinking: a template that does not know of that is helped, as by llama.cpp."""
    return given.get("enable_thinking") is False and bool(given["add_generation_prompt"])


def _up_to(mark: str, text: str) -> str:
    """The text up to a mark, as transformers cuts it: without the white space before, where the template strips it."""
    if not mark:
        return text
    if (at := text.rfind(mark.strip())) < 0:
        raise InputError(
            "the model's chat template does not print the last message, so it cannot be continued; leave "
            "continue_final_message out, or use a model with another template"
        )
    return text[:at] if text.startswith(mark, at) else text[:at].rstrip()


def _any(_: Message) -> bool:
    return True


def _once(pieces: list[str | Source | None], sources: list[Source]) -> list[str | Source] | None:
    """The pieces if each source is among them once, told apart by identity: two may be equal."""
    found = [id(p) for p in pieces if not isinstance(p, str)]
    whole = [p for p in pieces if p is not None and p != ""]
    return whole if sorted(found) == sorted(map(id, sources)) else None


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or "no reason given"
