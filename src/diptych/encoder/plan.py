"""What a media half of ONNX files is, before it is loaded: which graph takes which pictures, and whether all fits together."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from diptych.deploy.contract import Form, form
from diptych.deploy.declared import family_of
from diptych.deploy.deployment import Declared, Encoder, OnnxHalf, Size, Smt
from diptych.deploy.header import Header, read_header
from diptych.deploy.rules import rule_for
from diptych.encoder.smt import SmtPictures
from diptych.errors import FileError
from diptych.families.base import Family
from diptych.families.packed import Packed
from diptych.types import Media, MediaSettings

log = logging.getLogger(__name__)

_RGB = 3

Lattice = tuple[int, ...] | None  # of the pieces a graph takes; None for any
Pictures = Family | SmtPictures


@dataclass(frozen=True, eq=False)
class Graph:
    """An ONNX file and how it is fed; without a form it takes what the family feeds. `size` is the pictures' it is for."""

    encoder: Encoder
    header: Header
    form: Form | None
    size: Size | None
    joined: bool


@dataclass(frozen=True, eq=False)
class Plan:
    """A media half before it is loaded: what makes pieces of pictures, and the graphs by kind and lattice of the pieces."""

    pictures: Pictures
    graphs: Mapping[tuple[str, Lattice], Graph]

    @property
    def sizes(self) -> tuple[Size, ...]:
        """The sizes pictures are stretched to, none where a graph takes any."""
        return () if any(g.size is None for g in self.graphs.values()) else tuple(g.size for g in self.graphs.values() if g.size)


def plan(half: OnnxHalf, is_token: Callable[[str], bool] | None = None) -> Plan:
    """Read the headers of a media half's files and see that they fit what is said of them; no weight is read.

    Raises FileError, in one line, for a file that is missing, damaged, or of another form, width or size.
    """
    headers = {encoder: read_header(encoder.path) for encoder in half.encoders}
    if isinstance(half.model, Smt):
        return _smt_plan(half, half.model, headers, is_token)
    return _family_plan(half, half.model, headers)


def _smt_plan(half: OnnxHalf, model: Smt, headers: Mapping[Encoder, Header], is_token: Callable[[str], bool] | None) -> Plan:
    forms = {encoder: form(encoder, header) for encoder, header in headers.items()}
    pictures = SmtPictures(half, model, tuple(forms.values()), is_token)
    deepstack = rule_for(model.architecture).deepstack
    graphs: dict[tuple[str, Lattice], Graph] = {}
    for encoder, made in forms.items():
        joined = deepstack and len(made.outputs) > 1
        if len(made.outputs) > 1 and not joined:
            log.warning("%s has %d outputs; %s uses the first", encoder.path, len(made.outputs), model.architecture)
        _check_width(half, made, joined, pictures.n_embd)
        size, lattice = pictures.place(made)
        _add(half, graphs, (encoder.kind, lattice), Graph(encoder, headers[encoder], made, size, joined))
    return Plan(pictures, graphs)


def _family_plan(half: OnnxHalf, model: Declared, headers: Mapping[Encoder, Header]) -> Plan:
    family = family_of(half, model)
    graphs: dict[tuple[str, Lattice], Graph] = {}
    for encoder, header in headers.items():
        if encoder.kind not in family.piece_kinds:
            kinds = " and ".join(family.piece_kinds)
            raise FileError(f"{half.config} has {encoder.path.name} for {encoder.kind}, and {type(family).__name__} has {kinds}")
        if len(header.inputs) > 1:
            _check_fed(encoder, header, family)
            graph, lattice = Graph(encoder, header, None, None, False), None
        else:
            graph, lattice = _family_graph(half, encoder, header, family)
        _add(half, graphs, (encoder.kind, lattice), graph)
    return Plan(family, graphs)


def _family_graph(half: OnnxHalf, encoder: Encoder, header: Header, family: Family) -> tuple[Graph, Lattice]:
    """A graph of one input over a family's pictures, and the lattice of the patches it takes."""
    made, patch = form(encoder, header), family.hp.patch_size
    joined = len(made.outputs) > 1 and (made.n_embd or 0) * len(made.outputs) == family.n_embd
    _check_width(half, made, joined, family.n_embd)
    if made.row is not None and isinstance(family, Packed) and made.row != (row := _RGB * family.n_frames * patch**2):
        raise FileError(f"{encoder.path} takes rows of {made.row}, and {type(family).__name__} has patches of {row}")
    if made.size is None:
        return Graph(encoder, header, made, None, joined), None
    width, height = made.size
    unit = patch * family.hp.n_merge
    if width % unit or height % unit:
        raise FileError(f"{encoder.path}: {width}x{height} pixels are no multiple of {unit}, patch × merge")
    lattice = (1, height // patch, width // patch)
    n_rows, n_tokens = lattice[1] * lattice[2], width * height // unit**2
    for what, found, wanted in (("takes {} patches", made.n_rows, n_rows), ("gives {} tokens", made.n_tokens, n_tokens)):
        if found not in (None, wanted):
            raise FileError(f"{encoder.path} {what.format(found)}, and {width}x{height} pixels have {wanted}; correct its size")
    return Graph(encoder, header, made, made.size, joined), lattice


def _check_fed(encoder: Encoder, header: Header, family: Family) -> None:
    """See that a graph of several inputs takes what a family feeds, and gives rows of its width."""
    blank = Media("image", np.zeros((1, 1, 3), np.uint8), b"")
    fed = family.feed(family.preprocess(blank, MediaSettings())[0].pieces[:1])
    names = [port.name for port in header.inputs]
    if unknown := [name for name in names if name not in fed]:
        raise FileError(
            f"{encoder.path} takes {', '.join(names)}, and {type(family).__name__} feeds {', '.join(fed)}; export it again, or "
            f"with one input ({unknown[0]} is not known)"
        )
    width = header.outputs[0].shape[-1] if header.outputs[0].shape else None
    if isinstance(width, int) and width != family.n_embd:
        raise FileError(
            f"{encoder.path} gives rows of width {width}, and {type(family).__name__} is said to give {family.n_embd}"
        )


def _check_width(half: OnnxHalf, made: Form, joined: bool, n_embd: int) -> None:
    width = made.n_embd and made.n_embd * (len(made.outputs) if joined else 1)
    if width not in (None, n_embd):
        raise FileError(
            f"{made.encoder.path} gives rows of width {width}, and {half.config} says {n_embd}; correct text_model.hidden_size, "
            "or take the encoder that was made for this text half"
        )


def _add(half: OnnxHalf, graphs: dict[tuple[str, Lattice], Graph], key: tuple[str, Lattice], graph: Graph) -> None:
    if key in graphs:
        raise FileError(f"{half.config} has {graphs[key].encoder.path.name} and {graph.encoder.path.name} for the same pictures")
    graphs[key] = graph
