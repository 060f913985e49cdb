"""The rotary settings of a text half, in the spellings that config.json has had."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diptych.convert.checkpoint import setting
from diptych.errors import FileError

_YARN = {
    "extrapolation_factor": "yarn_ext_factor",
    "attention_factor": "yarn_attn_factor",
    "beta_fast": "yarn_beta_fast",
    "beta_slow": "yarn_beta_slow",
}


def rope(name: str, config: Mapping[str, Any], theta: float) -> dict[str, Any]:
    """`rope_parameters` (new), or `rope_scaling` with `rope_theta` beside it (old) → the `rope.*` metadata of `name`.

    `theta` is the base where neither gives one. Raises FileError for a kind of scaling that llama.cpp has no place for.
    """
    given = config.get("rope_parameters") or config.get("rope_scaling") or {}
    base = setting(given, "rope_theta", float, setting(config, "rope_theta", float, theta))
    out: dict[str, Any] = {f"{name}.rope.freq_base": base}
    if sections := given.get("mrope_section"):
        out[f"{name}.rope.dimension_sections"] = ([int(n) for n in sections] + [0] * 4)[:4]
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
