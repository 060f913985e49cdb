"""Hugging Face checkpoints to GGUF: the text half for llama.cpp, and the media half (mmproj) as its family declares it."""

from __future__ import annotations

from pathlib import Path

from diptych.convert.checkpoint import Checkpoint, read_checkpoint
from diptych.convert.media_half import mmproj
from diptych.convert.text_half import text
from diptych.files import check_output, whole_folder
from diptych.weights import Progress, Weights, write_gguf

__all__ = ["Checkpoint", "convert", "mmproj", "read_checkpoint", "text"]


def convert(folder: Path, out: Path, *, outtype: str = "f16", force: bool = False, progress: Progress | None = None) -> None:
    """Write `text.gguf` and `mmproj.gguf` of a checkpoint into the folder `out`, both or neither.

    Raises FileError and UnknownModel as `text` and `mmproj` do, and OutputError when a file may not be written.
    """
    checkpoint = read_checkpoint(folder)
    halves = {"text.gguf": text(checkpoint, outtype), "mmproj.gguf": mmproj(checkpoint, outtype)}
    for name in halves:  # whole_folder looks when the work is done
        check_output(out / name, force=force, inputs=checkpoint.files, parent=False)
    total, done = sum(map(_nbytes, halves.values())), 0
    with whole_folder(out, force=force, inputs=checkpoint.files) as part:
        for name, half in halves.items():
            write_gguf(part / name, half, progress=_from(done, total, progress))
            done += _nbytes(half)


def _nbytes(weights: Weights) -> int:
    return sum(t.nbytes for t in weights.tensors.values())


def _from(start: int, total: int, progress: Progress | None) -> Progress | None:
    """Progress of a part, as that of the whole."""
    return progress and (lambda done, _total: progress(start + done, total))
