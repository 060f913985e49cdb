"""The media half of a checkpoint as an mmproj: tensors and metadata are what its family declares."""

from __future__ import annotations

from gguf import GGMLQuantizationType, LlamaFileType

from diptych import families
from diptych.convert.checkpoint import Checkpoint, read_by_family
from diptych.convert.general import general
from diptych.convert.tensor import (
    OUTTYPES,
    check_used,
    expanded,
    media_table,
    media_tensors,
    outtype_of,
    renamed,
    retyped,
    stored_type,
)
from diptych.weights import Tensor, Weights


def mmproj(checkpoint: Checkpoint, outtype: str | None = None) -> Weights:
    """The media half, its tensors converted when they are read; without an outtype they stay as the checkpoint has them.

    Raises UnknownModel listing the known architectures, and FileError when a tensor is missing, left over, or not as
    config.json says.
    """
    family = families.for_architecture(checkpoint.architecture)
    with read_by_family(checkpoint):
        declared = family.metadata(checkpoint.config, checkpoint.processor)
    table = media_table(checkpoint)
    names = expanded(checkpoint, table, int(declared["clip.vision.block_count"]))
    left_out = tuple(name for name in table if name.endswith("."))
    check_used(checkpoint, [n for n in media_tensors(checkpoint) if not n.startswith(left_out)], names)
    tensors = renamed(checkpoint, names)
    if outtype is None:
        file_type = _file_type(tensors)
    else:
        type, file_type = outtype_of(outtype)
        tensors = {n: retyped(t, stored_type(n, t.shape, type)) for n, t in tensors.items()}
    return Weights({**general(checkpoint, "clip", "mmproj", tensors, file_type), **declared}, tensors)


def _file_type(tensors: dict[str, Tensor]) -> LlamaFileType:
    """The file type of the tensors as stored: that of the largest."""
    largest: GGMLQuantizationType = max(tensors.values(), key=lambda t: t.nbytes).type
    return next(file_type for type, file_type in OUTTYPES.values() if type == largest)
