"""The model families: one file each, found by looking into this folder and by the entry point `diptych.families`."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from inspect import isabstract
from pathlib import Path
from pkgutil import iter_modules

from diptych.errors import FileError, UnknownModel
from diptych.families.base import Family, projector_type
from diptych.types import MediaKind
from diptych.weights import open_gguf


@cache
def all() -> tuple[type[Family], ...]:
    """Every family, by name. Raises ValueError when two claim the same projector or architecture."""
    names = sorted(m.name for m in iter_modules(__path__) if m.name != "base")
    modules = [import_module(f"{__name__}.{name}") for name in names]
    found = [v for m in modules for v in vars(m).values() if _is_family(v) and v.__module__ == m.__name__]
    found += [entry.load() for entry in entry_points(group="diptych.families")]
    _check(found)
    return tuple(found)


def for_projector(projector: str, kind: MediaKind = "image") -> type[Family]:
    """The family of a projector as an mmproj names it. Raises UnknownModel listing the known ones."""
    known = {p: f for f in all() for p in f.projectors.get(kind, ())}
    if projector in known:
        return known[projector]
    raise UnknownModel(f"the mmproj has the {kind} projector {projector!r}, and none of the known ones: {_list(known)}")


def for_architecture(name: str) -> type[Family]:
    """The family of an architecture as config.json names it. Raises UnknownModel listing the known ones."""
    known = {a: f for f in all() for a in f.architectures}
    if name in known:
        return known[name]
    raise UnknownModel(f"config.json names the architecture {name!r}, and none of the known ones: {_list(known)}")


def open_family(mmproj: Path, kind: MediaKind = "image") -> Family:
    """The family of an mmproj file, over its weights. Raises FileError when it is none, or has no such encoder."""
    weights = open_gguf(mmproj)
    projector = projector_type(weights.metadata, kind)
    if projector is None:
        found = weights.metadata.get("general.architecture", "nothing known")
        raise FileError(f"{mmproj} has no {kind} encoder (it holds {found!r}); name an mmproj file, such as convert writes")
    return for_projector(projector, kind)(weights, kind)


def _is_family(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, Family) and not isabstract(value)


def _check(found: list[type[Family]]) -> None:
    owner: dict[tuple[str, str], type[Family]] = {}
    for family in found:
        claims = [(f"{kind} projector", p) for kind, names in family.projectors.items() for p in names]
        for what, name in [*claims, *(("architecture", a) for a in family.architectures)]:
            if other := owner.get((what, name)):
                raise ValueError(f"{family.__name__} and {other.__name__} both claim the {what} {name!r}")
            owner[what, name] = family


def _list(known: dict[str, type[Family]]) -> str:
    return ", ".join(sorted(known)) or "there are none"
