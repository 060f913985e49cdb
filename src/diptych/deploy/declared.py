"""A family built from what a deployment says of it: metadata, and the names and shapes of tensors, without their weights."""

from __future__ import annotations

from diptych import families
from diptych.deploy.deployment import Declared, OnnxHalf
from diptych.errors import FileError, UnknownModel
from diptych.families.base import Family, projector_type
from diptych.types import MediaKind
from diptych.weights import Weights, open_gguf
from diptych.weights.tensor import elsewhere

_KINDS: tuple[MediaKind, ...] = ("image", "audio")


def family_of(half: OnnxHalf, model: Declared) -> Family:
    """The family that a media half of ONNX files is of. Raises FileError and UnknownModel as for an mmproj."""
    learned = open_gguf(model.learned).tensors if model.learned else {}
    tensors = {name: elsewhere(name, shape) for name, shape in model.tensors.items()}
    weights = Weights(model.metadata, {**tensors, **learned})
    for kind in _KINDS:
        if projector := projector_type(model.metadata, kind):
            try:
                return families.for_projector(projector, kind)(weights, kind)
            except UnknownModel:
                raise
            except (FileError, KeyError, TypeError, ValueError, AttributeError) as error:
                raise FileError(f"{half.config}: diptych.metadata is not that of {projector}: {error}") from error
    raise FileError(f"{half.config}: diptych.metadata has no clip.projector_type; export the model again")
