"""The `diptych` command: finds the command's file, and turns every error into one line."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module

import typer
from rich.console import Console

from diptych.errors import DiptychError

COMMANDS = {
    "demo": "Read the example pictures with the shipped reader.",
    "run": "Ask a model about pictures, once or in a chat.",
    "serve": "Serve a model: the API of OpenAI, Anthropic and llama-server clients, and a chat page.",
    "encode": "Turn pictures and recordings into embeddings, with positions and grid.",
    "inspect": "Draw a picture as the model sees it.",
    "convert": "Turn a Hugging Face checkpoint into text.gguf and mmproj.gguf.",
    "quantize": "Quantise a GGUF with llama.cpp's quantiser.",
    "export": "Write a deployment: both halves of a model, and a config.json that binds them.",
    "show": "Show what a model consists of, and whether its halves fit.",
    "list": "List the models that were downloaded, and the shipped reader.",
    "rm": "Remove a model that Diptych downloaded.",
    "verify": "Compare both halves with libmtmd and transformers, before you trust them.",
    "bench": "Measure how fast a model is on this machine, and compare backends and precisions.",
    "doctor": "Show versions, hardware, what is missing and how to get it.",
}
HELP = """Run vision language models as two halves: text as GGUF in llama.cpp, media as ONNX on any execution provider.

Begin with `diptych demo`, or `diptych run reader --image PICTURE`."""


def app(wanted: str | None = None) -> typer.Typer:
    """The command line with the command `wanted` (None: all of them) loaded, and only the names of the others.

    Commands import what they need to run; the list of commands must not wait for that.
    """
    out = typer.Typer(name="diptych", help=HELP, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
    out.callback(invoke_without_command=True)(_version)
    for name, summary in COMMANDS.items():
        if wanted in (None, name):
            out.command(name, short_help=summary)(import_module(f"diptych.cli.{name}").command)
        else:
            out.command(name, help=summary)(_named_only)
    return out


def _version(version: bool = typer.Option(False, "--version", help="Print the version and exit.")) -> None:
    if version:
        from importlib.metadata import version as installed

        typer.echo(f"diptych {installed('diptych')}")
        raise typer.Exit


def _named_only() -> None:
    """Stand in for a command that was not asked for."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 when done, 1 for a fault of ours, 2 for an error of the user's, 130 on Ctrl-C."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    wanted = next((a for a in given if not a.startswith("-")), "")
    try:
        app(wanted)(given)
    except DiptychError as error:
        fail(str(error), 2)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:
        fail(f"{error.filename or 'the system'}: {error.strerror or error}", 2)
    except Exception as error:
        if os.environ.get("DIPTYCH_DEBUG"):
            raise
        fail(f"a fault in diptych: {type(error).__name__}: {error}; set DIPTYCH_DEBUG=1 to see where, and report it", 1)


def fail(message: str, code: int) -> None:
    """Print one line on standard error and exit."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print("[bold red]error:[/] ", end="")
    console.print(" ".join(message.split()), markup=False)
    sys.exit(code)
