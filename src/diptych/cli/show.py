"""`diptych show`: what a model consists of and whether its halves fit, by the headers of its files alone."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from diptych import families
from diptych.cli import console, model
from diptych.cli.flags import with_options
from diptych.deploy import Deployment, OnnxHalf
from diptych.deploy.check import misfit
from diptych.deploy.deployment import Smt
from diptych.deploy.hashes import FileInfo, changed, recorded
from diptych.deploy.text import text_facts
from diptych.encoder.plan import Graph, plan
from diptych.errors import FileError, InputError, MismatchedHalves, UnknownModel
from diptych.families.base import Family, projector_type
from diptych.options import Options
from diptych.weights import open_gguf


@with_options("allow_absolute_paths")
def command(
    deployment: model.Name = None,
    text: model.Text = None,
    mmproj: model.Mmproj = None,
    smt_config_dir: model.Smt = None,
    hf: model.Hf = None,
    check: Annotated[bool, typer.Option("--check", help="Compare the files with the hashes they had when exported.")] = False,
    as_json: console.Json = False,
    *,
    options: Options,
) -> None:
    """Show what a model consists of, and whether its halves fit.

    The model is a deployment, the files of its halves, or one of the hub that is downloaded. Only the headers of files are
    read. It fails when the halves do not fit, and with --check when a file is not as it was.
    """
    found = _found(deployment, text, mmproj, smt_config_dir, hf, options)
    folder = _folder(found)
    files = recorded(folder)
    if check and not files:
        raise InputError(f"{folder} has no hashes to check; diptych export writes them")
    wrong: dict[str, str] = {}
    if check:
        with console.bytes_progress("checking") as progress:
            wrong = changed(folder, files, progress)
    facts = gather(found)
    facts |= {"files": {name: asdict(info) for name, info in files.items()}} if files else {}
    facts |= {"changed": wrong} if check else {}
    if as_json:
        console.print_json(facts)
    else:
        tell(facts, files, wrong, check)
    if wrong:
        name, what = next(iter(wrong.items()))
        raise FileError(f"{folder / name} is not as it was exported: {what}; get it again, or export the model again")
    if facts["misfit"]:
        raise MismatchedHalves(f"the halves are not of one model: the media half {facts['misfit']}")


def gather(found: Deployment) -> dict[str, Any]:
    """Everything about a deployment as one JSON object. Raises FileError for files that are not what they should be."""
    out: dict[str, Any] = {"text": None, "media": None, "misfit": None, "notes": list(found.notes)}
    half = None
    if found.onnx:
        out["media"], half = _onnx(found.onnx)
    elif found.mmproj:
        out["media"], half = _mmproj(found.mmproj)
    if found.text:
        try:
            facts = text_facts(open_gguf(found.text))
        except FileError as error:
            raise FileError(f"{found.text}: {error}" if str(found.text) not in str(error) else str(error)) from error
        out["text"] = {"file": str(found.text), "bytes": found.text.stat().st_size, **asdict(facts)}
        misfitting = misfit(half, facts) if half else None
        out["misfit"] = misfitting.format("the text half") if misfitting else None
    return out


def tell(facts: dict[str, Any], files: dict[str, FileInfo], wrong: dict[str, str], checked: bool) -> None:
    """The same for people."""
    for title, half in (("Text half", facts["text"]), ("Media half", facts["media"])):
        if half is None:
            console.facts(title, {"": "none"})
            continue
        shown = {_LABELS.get(k, k): _shown(k, v) for k, v in half.items() if k != "graphs" and v not in (None, "", {}, 0)}
        console.facts(title, shown)
    if graphs := (facts["media"] or {}).get("graphs"):
        rows = [(g["file"], g["pictures"], g["tokens"] or "any", g["input"], g["output"]) for g in graphs]
        console.table(None, ("graph", "pictures", "tokens", "input", "output"), rows)
    if files:
        state = {name: wrong.get(name, "as exported" if checked else "") for name in files}
        console.table(
            None, ("file", "MB", "SHA-256", ""), [(n, i.bytes / 1e6, f"{i.sha256[:16]}…", state[n]) for n, i in files.items()]
        )
    if facts["text"] and facts["media"]:
        said = f"the halves do not fit: the media half {facts['misfit']}" if facts["misfit"] else "the halves fit"
        console.out.print(said, soft_wrap=True)
    for note in facts["notes"]:
        console.out.print(note, soft_wrap=True, markup=False)


_LABELS = {
    "n_embd": "row width", "n_pos": "positions a row", "n_layer": "layers", "n_ctx": "trained context", "n_vocab": "vocabulary",
    "patch_size": "patch", "bytes": "size",
}  # fmt: skip


def _found(
    name: str | None, text: Path | None, mmproj: Path | None, smt: Path | None, hf: str | None, options: Options
) -> Deployment:
    """What the flags name; of the hub only what is downloaded."""
    if name and name.count("/") == 1 and not Path(name).exists() and Path(name).parent.name not in (".", ".."):
        name, hf = None, name
    absolute = options.allow_absolute_paths
    return model.chosen(
        name, model=text, mmproj=mmproj, smt=smt, hf=hf, offline=True, absolute=absolute, text_needed=False,
    )  # fmt: skip


def _folder(found: Deployment) -> Path:
    """Where a deployment's config.json would be."""
    files = (*found.media_files, *([found.text] if found.text else []))
    return files[0].parent


def _mmproj(path: Path) -> tuple[dict[str, Any], Family | None]:
    weights = open_gguf(path)
    out: dict[str, Any] = {"file": str(path), "bytes": path.stat().st_size}
    try:
        family: Family | None = families.open_family(path)
    except UnknownModel:
        family = None
        out |= {"family": "none of ours; libmtmd may run it", "projector": projector_type(weights.metadata)}
    out |= _family(family) if family else {}
    return {**out, "types": dict(Counter(t.type.name for t in weights.tensors.values()))}, family


def _onnx(half: OnnxHalf) -> tuple[dict[str, Any], Any]:
    made = plan(half)
    of_family = _family(made.pictures) if isinstance(made.pictures, Family) else _smt(half, made.pictures.n_pos)
    types = next(iter(made.graphs.values())).header.types  # the others have the same weights
    data = {graph.encoder.path.parent / name for graph in made.graphs.values() for name in graph.header.files}
    size = sum(p.stat().st_size for p in {*data, *(g.encoder.path for g in made.graphs.values())})
    graphs = [_graph(graph) for graph in made.graphs.values()]
    named = {p.name: dict(p.options) for p in half.providers if p.named}
    out = {"file": str(half.config), "bytes": size, **of_family, "types": dict(types), "providers": named, "graphs": graphs}
    return out, made.pictures


def _family(family: Family) -> dict[str, Any]:
    return {
        "family": type(family).__name__, "projector": family.hp.projector, "n_embd": family.n_embd, "n_pos": family.n_pos,
        "patch_size": family.hp.patch_size, "merge": family.hp.n_merge,
    }  # fmt: skip


def _smt(half: OnnxHalf, n_pos: int) -> dict[str, Any]:
    assert isinstance(half.model, Smt)
    return {"family": f"SMT, {half.model.architecture}", "n_embd": half.n_embd, "n_pos": n_pos}


def _graph(graph: Graph) -> dict[str, Any]:
    first, output = graph.header.inputs[0], graph.header.outputs
    more = f" and {len(graph.header.inputs) - 1} more" if len(graph.header.inputs) > 1 else ""
    several = f" × {len(output)}" if graph.joined else ""
    return {
        "file": graph.encoder.path.name,
        "pictures": "×".join(map(str, graph.size)) if graph.size else "any size",
        "size": graph.size,
        "tokens": graph.form and graph.form.n_tokens,
        "input": f"{first}{more}",
        "output": f"{output[0]}{several}",
    }


def _shown(name: str, value: Any) -> str:  # noqa: ANN401
    """A value in a column: counts by name, sizes in megabytes."""
    if isinstance(value, dict):
        return ", ".join(f"{key} ({_shown(key, v)})" if isinstance(v, dict) else f"{key} {v}" for key, v in value.items())
    if name == "bytes":
        return f"{value / 1e6:,.1f} MB"
    return str(value)
