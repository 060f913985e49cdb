"""The ways to name a model on the command line, the same for every command that takes one."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from diptych.cli import console
from diptych.deploy import Deployment, find
from diptych.errors import FileError, InputError

Name = Annotated[str | None, typer.Argument(help="A deployment: a directory, or `reader`, the shipped one.")]
Text = Annotated[
    Path | None, typer.Option("-m", "--model", help="The text half, a GGUF; of one in parts the first, -00001-of-….")
]
Mmproj = Annotated[Path | None, typer.Option("--mmproj", help="The media half, an mmproj GGUF.")]
Smt = Annotated[
    Path | None, typer.Option("--smt-config-dir", help="A deployment by another name of the flag; -m may go with it.")
]
Hf = Annotated[
    str | None,
    typer.Option(
        "-hf",
        "--hf-repo",
        metavar="USER/REPO[:QUANT]",
        help="A model of the Hugging Face hub, USER/REPO or USER/REPO:QUANT; both halves are downloaded once. QUANT is Q4_K_M.",
    ),
]
Revision = Annotated[
    str | None, typer.Option("--hf-revision", help="Branch, tag or commit of -hf. A branch asks for its newest.")
]
Offline = Annotated[bool, typer.Option("--offline", help="Take what is downloaded, and ask no network; also DIPTYCH_OFFLINE=1.")]


@dataclass(frozen=True)
class Named:
    """A model as the flags of a command name it."""

    deployment: str | None = None
    text: Path | None = None
    mmproj: Path | None = None
    smt_config_dir: Path | None = None
    hf: str | None = None
    hf_revision: str | None = None
    offline: bool = False

    @property
    def any(self) -> str | Path | None:
        """What names it, if anything does."""
        return self.deployment or self.text or self.mmproj or self.smt_config_dir or self.hf

    def find(self, *, absolute: bool = False, text_needed: bool = True) -> Deployment:
        """The deployment it names, as `chosen` has it."""
        return chosen(
            self.deployment, model=self.text, mmproj=self.mmproj, smt=self.smt_config_dir, hf=self.hf,
            revision=self.hf_revision, offline=self.offline, absolute=absolute, text_needed=text_needed,
        )  # fmt: skip


_FLAGS: dict[str, Any] = {
    "deployment": Name, "text": Text, "mmproj": Mmproj, "smt_config_dir": Smt, "hf": Hf, "hf_revision": Revision,
    "offline": Offline,
}  # fmt: skip


def with_model(function: Callable[..., None]) -> Callable[..., None]:
    """Replace the parameter `named: Named` of a command by the flags that name a model, before all others."""
    signature = inspect.signature(function, eval_str=True)
    flags = [
        inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=_FLAGS[f.name])
        for f in fields(Named)
    ]
    own = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in signature.parameters.values() if p.name != "named"]

    def command(**given: Any) -> None:  # noqa: ANN401
        function(named=Named(**{flag.name: given.pop(flag.name) for flag in flags}), **given)

    command.__doc__ = function.__doc__
    command.__name__ = function.__name__
    command.__signature__ = signature.replace(parameters=[*flags, *own])  # type: ignore[attr-defined]
    return command


def chosen(
    name: str | None = None,
    *,
    model: Path | None = None,
    mmproj: Path | None = None,
    smt: Path | None = None,
    hf: str | None = None,
    revision: str | None = None,
    offline: bool = False,
    absolute: bool = False,
    text_needed: bool = True,
) -> Deployment:
    """The deployment that the flags name in one of three ways; one of the hub is downloaded, with a progress bar.

    Where no text half is needed `mmproj` may be named alone. Raises InputError when not exactly one way is taken, and
    FileError or OutputError as `find` and `hub.fetch` do.
    """
    if mmproj is not None and not text_needed and not (name or model or smt or hf):
        return Deployment(None, _existing(mmproj))
    if hf is None:
        if revision is not None:
            raise InputError("--hf-revision goes with -hf USER/REPO, and there is none")
        return _noted(find(name, model=model, mmproj=mmproj, smt=smt, absolute=absolute))
    if other := name or model or smt:
        raise InputError(f"both -hf {hf} and {other} name a model; name one of them")
    if mmproj is not None:
        _existing(mmproj)
    from diptych.hub import download as hub

    with console.bytes_progress(hf) as progress:
        found = hub.fetch(hf, offline=offline, revision=revision, progress=progress, tell=_tell)
    return _noted(found if mmproj is None else replace(found, mmproj=mmproj, onnx=None))


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise FileError(f"there is no file {path}; check the path")
    return path


def _noted(found: Deployment) -> Deployment:
    """Tell what a deployment's configuration holds and is not used."""
    for note in found.notes:
        _tell(note)
    return found


def _tell(line: str) -> None:
    console.err.print(line, soft_wrap=True, markup=False)
