"""A model as files that run elsewhere: the media half as ONNX, and whole deployments.

A folder gets `encoder.onnx`, or `encoder-504x504.onnx` and the like, and `encoder.data`, the weights of all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from diptych import convert, families
from diptych.export import graphs
from diptych.export.deployment import Source, deploy, open_source
from diptych.export.graphs import DATA, Size
from diptych.families.base import Family
from diptych.files import check_output, whole_folder
from diptych.weights import Progress

__all__ = ["Source", "deploy", "export", "open_source", "write"]


def export(
    source: Path, folder: Path, *, sizes: Sequence[Size] = (), force: bool = False, progress: Progress | None = None
) -> list[Path]:
    """Write the media half of an mmproj file or of a checkpoint's folder; weights keep their type. Returns the files.

    Raises FileError and UnknownModel when there is no such half, and as `write` does.
    """
    if source.is_dir():
        checkpoint = convert.read_checkpoint(source)
        family = families.for_architecture(checkpoint.architecture)(convert.mmproj(checkpoint))
        return write(family, folder, sizes=sizes, force=force, inputs=checkpoint.files, progress=progress)
    return write(families.open_family(source), folder, sizes=sizes, force=force, inputs=[source], progress=progress)


def write(
    family: Family,
    folder: Path,
    *,
    sizes: Sequence[Size] = (),
    force: bool = False,
    inputs: Iterable[Path] = (),
    progress: Progress | None = None,
) -> list[Path]:
    """Write a dynamic graph, or a static one for each size, over one file of weights. Returns the files written.

    Raises InputError when a size is not one the model takes as it is, OutputError when a file may not be written.
    """
    made = graphs.drawn(family, sizes)
    names = [*(d.name for d in made), DATA]
    for name in names:  # whole_folder looks when the work is done
        check_output(folder / name, force=force, inputs=inputs, parent=False)
    with whole_folder(folder, force=force, inputs=inputs) as part:
        graphs.write(family, part, made, progress)
    return [folder / name for name in names]
