"""The rotary settings of a text half, in the spellings that config.json has had."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diptych.convert.checkpoint import part, setting
from diptych.errors import FileError

_YARN = {
    "extrapolation_factor": "yarn_ext_factor",
    "attention_factor": "yarn_attn_factor",
    "beta_fast": "yarn_beta_fast",
    "beta_slow": "yarn_beta_slow",
}


def rope(name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """`rope_parameters` (new), or `rope_scaling` with `rope_theta` beside it (old) → the `rope.*` metadata of `name`.

    Raises FileError for a kind of scaling that llama.cpp has no place for.
    """
    given = part(config, "rope_parameters") or part(config, "rope_scaling")
    base = setting(config if given.get("rope_theta") is None else given, "rope_theta", float)
    out: dict[str, Any] = {f"{name}.rope.freq_base": base}
    match given.get("mrope_section", config.get("mrope_section")):
        case None:
            pass
        case [int(t), int(y), int(x), *_]:
            out[f"{name}.rope.dimension_sections"] = [t, y, x, 0]
        case other:
            raise FileError(f"config.json has {other!r} for mrope_section, and three integers are expected")
    kind = given.get("rope_type", given.get("type", "default"))
    if kind in ("default", "mrope"):
        return out
    if kind not in ("linear", "yarn"):
        raise FileError(f"config.json has the rope type {kind!r}, and default, mrope, linear and yarn can be converted")
    out |= {f"{name}.rope.scaling.type": kind, f"{name}.rope.scaling.factor": setting(given, "factor", float)}
    if kind == "yarn":
        out[f"{name}.rope.scaling.original_context_length"] = setting(given, "original_max_position_embeddings", int)
        out |= {f"{name}.rope.scaling.{key}": float(given[n]) for n, key in _YARN.items() if given.get(n) is not None}
    return out
