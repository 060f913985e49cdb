"""`diptych serve`: the model over HTTP."""

from __future__ import annotations

from diptych.cli import console, flags, model
from diptych.cli.flags import with_options
from diptych.engine import Engine
from diptych.media.access import Access
from diptych.options import ServerOptions


@with_options(*flags.SERVER, *flags.TEXT, *flags.SHARED, *flags.TRACE, *flags.MEDIA)
def command(
    deployment: model.Name = None,
    text: model.Text = None,
    mmproj: model.Mmproj = None,
    smt_config_dir: model.Smt = None,
    hf: model.Hf = None,
    hf_revision: model.Revision = None,
    offline: model.Offline = False,
    *,
    options: ServerOptions,
) -> None:
    """Serve a model: the API of OpenAI, Anthropic and llama-server clients, and a chat page.

    The model is named as for `run`: a deployment (`diptych serve reader`), two halves (-m and --mmproj), or -hf.
    """
    from diptych.server import run

    files = model.chosen(
        deployment, model=text, mmproj=mmproj, smt=smt_config_dir, hf=hf, revision=hf_revision, offline=offline,
        absolute=options.allow_absolute_paths,
    )  # fmt: skip
    run.log_to_stderr(options)

    name = _name(deployment, hf, str(files.text_half))

    def load() -> Engine:
        engine = Engine.load(files, options=options, access=Access.server(options))
        console.tell_backend(options, engine.media_backend)
        seconds = engine.load_ms / 1e3
        console.err.print(f"[bold]{options.alias or name}[/] is ready after {seconds:.1f} s; Ctrl-C ends it.", soft_wrap=True)
        return engine

    run.serve(name, options, load, _listening)


def _name(deployment: str | None, hf: str | None, path: str) -> str:
    """What answers call the model: the repository, the directory's name, or the file's."""
    from pathlib import Path

    return hf or (Path(deployment).resolve().name if deployment else Path(path).stem)


def _listening(address: str) -> None:
    console.err.print(f"Loading; listening on [bold]{address}[/]", soft_wrap=True)
