"""`diptych run`: one answer, streamed, or a chat."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer

from diptych.cli import console, flags, model
from diptych.cli.flags import with_options
from diptych.cli.sampling import Given, with_sampling
from diptych.engine import Engine
from diptych.errors import DiptychError, InputError
from diptych.options import Options
from diptych.types import MediaKind, Message, Output, Request, Sampling, Source

CHAT_HELP = "/image FILE adds a picture, /audio FILE a recording, /clear starts anew, /quit leaves"

Image = Annotated[list[str] | None, typer.Option("--image", help="A picture (path or URL), before the text; repeatable.")]
Audio = Annotated[
    list[str] | None, typer.Option("--audio", help="A recording (WAV, MP3 or FLAC; path or URL), behind pictures; repeatable.")
]


@with_options(*flags.TEXT, *flags.MEDIA, "encode_disk_mib", *flags.TRACE)
@with_sampling
@model.with_model
def command(
    prompt: Annotated[str | None, typer.Option("-p", "--prompt", help="What to ask; without it, a chat.")] = None,
    image: Image = None,
    audio: Audio = None,
    system: Annotated[str | None, typer.Option("-sys", "--system", help="A system message.")] = None,
    max_tokens: flags.MaxTokens = -1,
    stop: Annotated[list[str] | None, typer.Option("--stop", help="End the answer before this text; repeatable.")] = None,
    as_json: console.Json = False,
    *,
    named: model.Named,
    options: Options,
    sampling: Given,
) -> None:
    """Ask a model about pictures, once or in a chat.

    The model is a deployment (`diptych run reader`), the two halves (`-m text.gguf --mmproj mmproj.gguf`), or a
    repository of the Hugging Face hub (`-hf USER/REPO`). Pictures and recordings stand before the text of the turn.
    Without -p it is a chat: /image FILE, /audio FILE, /clear, /quit.
    """
    if as_json and prompt is None:
        raise InputError("--json gives one answer, and there is no question; add -p TEXT")
    files = named.find(absolute=options.allow_absolute_paths)
    with Engine.load(files, options=options) as engine:
        wanted = replace(engine.default_sampling, **sampling)
        chat = Chat(engine, wanted, None if max_tokens < 0 else max_tokens, tuple(stop or ()), options, system)
        for path in image or ():
            chat.add("image", path)
        for path in audio or ():
            chat.add("audio", path)
        if prompt is None:
            console.tell_backend(options, engine.media_backend)
            return chat.talk()
        answer = chat.answer(prompt, stream=not as_json)
        console.tell_backend(options, engine.media_backend)
        if as_json:
            console.print_json(answer)


class Chat:
    """A conversation: the turns so far, and the pictures and recordings waiting for the next one."""

    def __init__(
        self,
        engine: Engine,
        sampling: Sampling,
        max_tokens: int | None,
        stop: tuple[str, ...],
        options: Options,
        system: str | None,
    ) -> None:
        self.engine, self.sampling, self.max_tokens, self.stop, self.options = engine, sampling, max_tokens, stop, options
        self.first = (Message("system", (system,)),) if system else ()
        self.messages = self.first
        self.media: tuple[Source, ...] = ()

    def add(self, kind: MediaKind, path: str) -> None:
        self.media += (Source(kind, url=path),)

    def answer(self, text: str, *, stream: bool) -> dict[str, object]:
        """Ask, print as it comes when `stream`, and keep both turns. Nothing is kept when it fails."""
        messages = (*self.messages, Message("user", (*self.media, text)))
        settings = self.options.media
        request = Request(messages, self.sampling, self.max_tokens, self.stop, settings)
        said, tokens, last = asyncio.run(self._collect(request, stream))
        self.messages, self.media = (*messages, Message("assistant", (said,))), ()
        return {
            "text": said,
            "tokens": tokens,
            "finish_reason": last.finish_reason,
            "usage": asdict(last.usage),
            "media_backend": self.engine.media_backend,
            "timings": {"load_ms": self.engine.load_ms, **asdict(last.timings)},
        }

    async def _collect(self, request: Request, stream: bool) -> tuple[str, list[int], Output]:
        said, last = "", Output("")
        tokens: list[int] = []
        async for last in self.engine.generate(request):
            said += last.text
            tokens += last.tokens
            if stream:
                sys.stdout.write(last.text)
                sys.stdout.flush()
        if stream:
            sys.stdout.write("\n")
        return said, tokens, last

    def talk(self) -> None:
        """Read turns from standard input until it ends or /quit. An error in a turn is told, and the chat goes on."""
        if sys.stdin.isatty():
            import readline  # noqa: F401  (gives input() its line editing)

            console.err.print(f"[dim]{CHAT_HELP}[/]")
        while True:
            try:
                line = input("> " if sys.stdin.isatty() else "").strip()
            except EOFError:
                return
            word, _, rest = line.partition(" ")
            if word in ("/quit", "/exit"):
                return
            try:
                self.turn(word, rest.strip(), line)
            except DiptychError as error:
                console.err.print("[bold red]error:[/]", " ".join(str(error).split()), soft_wrap=True)

    def turn(self, word: str, rest: str, line: str) -> None:
        """One line of the chat: a command, or a question."""
        if word == "/clear":
            self.messages, self.media = self.first, ()
        elif word in ("/image", "/audio"):
            if not Path(rest).is_file() and "://" not in rest:
                raise InputError(f"{word} {rest}: no such file; give the path of one")
            self.add("image" if word == "/image" else "audio", rest)
        elif word.startswith("/") and "/" not in word[1:] and word[1:].isalpha():
            raise InputError(f"there is no command {word}; {CHAT_HELP}")
        elif line:
            self.answer(line, stream=True)
