"""`diptych serve`: the model over HTTP."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Annotated

import typer
from rich.text import Text

from diptych.cli import console, flags, model
from diptych.cli.flags import with_options
from diptych.cli.sampling import Given, with_sampling
from diptych.engine import Engine
from diptych.media.access import Access
from diptych.options import ServerOptions

log = logging.getLogger(__name__)

Always = Annotated[
    bool,
    typer.Option(
        "--jinja", "--cont-batching", "-cb", "--swa-full", help="What is always so here, and llama-server has to be told."
    ),
]


@with_options(*flags.SERVER, *flags.TEXT, *flags.SHARED, *flags.TRACE, *flags.MEDIA)
@with_sampling
@model.with_model
def command(
    always: Always = False,
    *,
    named: model.Named,
    options: ServerOptions,
    sampling: Given,
) -> None:
    """Serve a model: the API of OpenAI, Anthropic and llama-server clients, and a chat page.

    The model is named as for `run`: a deployment (`diptych serve reader`), two halves (-m and --mmproj), or -hf. How
    tokens are chosen is the default of requests that do not say.
    """
    from diptych.server import run

    files = named.find(absolute=options.allow_absolute_paths)
    run.log_to_stderr(options)
    tell = _in_log if options.log_json else _on_screen
    name = _name(named.deployment, named.hf, str(files.text_half))

    def load() -> Engine:
        engine = Engine.load(files, options=options, access=Access.server(options))
        engine.default_sampling = replace(engine.default_sampling, **sampling)
        if options.media_backend == "auto" and engine.media_backend:
            tell(f"Media backend: {engine.media_backend}")
        tell(f"[bold]{options.alias or name}[/] is ready after {engine.load_ms / 1e3:.1f} s; Ctrl-C ends it.")
        return engine

    run.serve(name, options, load, lambda address: tell(f"Loading; listening on [bold]{address}[/]"))


def _name(deployment: str | None, hf: str | None, path: str) -> str:
    """What answers call the model: the repository, the directory's name, or the file's."""
    from pathlib import Path

    return hf or (Path(deployment).resolve().name if deployment else Path(path).stem)


def _on_screen(text: str) -> None:
    console.err.print(text, soft_wrap=True)


def _in_log(text: str) -> None:
    """Where machines read the log, all that is said is a line of it."""
    log.info("%s", Text.from_markup(text).plain)
