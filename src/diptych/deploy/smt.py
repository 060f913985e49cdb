"""SMT configurations: the keys of the format that boards with split deployments use, as a media half of ours.

architectures[0]                          which rule holds, see rules.py
vision_model.model_path                   the ONNX file; input_size, or input_width and input_height, in pixels
vision_model.models                       ours: several such objects, for a ladder of sizes
vision_preprocess                         rescale_factor, image_mean, image_std
text_model.hidden_size                    the width of the rows
vision_model.ep_config, ep_config         options of the execution provider; the inner ones go first
vision_model.spacemit_ep_intra_thread_num, …_inter_thread_num, …_intra_thread_affinity   the same, as once spelt
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from diptych.deploy.deployment import Encoder, OnnxHalf, Provider, Size, Smt
from diptych.deploy.jsonc import Section

SPACEMIT = "SpaceMITExecutionProvider"  # as its package spacemit_ort registers it
_INTRA, _INTER, _AFFINITY = (f"SPACEMIT_EP_{n}" for n in ("INTRA_THREAD_NUM", "INTER_THREAD_NUM", "INTRA_THREAD_AFFINITY"))
_OLD = {
    "spacemit_ep_intra_thread_num": _INTRA,
    "spacemit_ep_inter_thread_num": _INTER,
    "spacemit_ep_intra_thread_affinity": _AFFINITY,
}
_DEFAULTS = {_INTRA: "4", _INTER: "1"}  # SMT's, where nothing is said of threads

Resolve = Callable[[Section, str], Path]  # a section and the key of a path in it → the file


def read_smt(config: Section, resolve: Resolve) -> OnnxHalf:
    """The media half of an SMT configuration. Raises FileError with key and line for what is missing or wrong."""
    vision, text = config.section("vision_model"), config.section("text_model")
    n_embd = text.get("hidden_size", int)
    if n_embd < 1:
        raise text.wrong("hidden_size", "the width of the rows is expected")
    return OnnxHalf(config.path, encoders(vision, resolve), _model(config), n_embd, providers(config, vision))


def encoders(vision: Section, resolve: Resolve) -> tuple[Encoder, ...]:
    """The graphs that a vision_model names: one, or those of its `models`."""
    several = vision.sections("models")
    if not several or vision.has("model_path"):
        several = [vision, *(s for s in several if s.get("model_path", str) != vision.get("model_path", str))]
    return tuple(Encoder(resolve(s, "model_path"), _size(s), s.get("piece", str, "image")) for s in several)


def providers(config: Section, vision: Section) -> tuple[Provider, ...]:
    """The execution providers of a configuration. An object in ep_config has the options of the provider it is named by."""
    flat = {new: str(vision.values[old]) for old, new in _OLD.items() if vision.has(old)}
    others: dict[str, dict[str, str]] = {}
    for section in (config, vision):  # the inner one last: it goes before
        inner = section.section("ep_config") if section.has("ep_config") else None
        for name, value in inner.values.items() if inner else ():
            if inner and isinstance(value, dict):
                others.setdefault(name, {}).update(_strings(inner.section(name)))
        if inner and section is config:
            flat = {**_strings(inner), **flat}
        elif inner:
            flat.update(_strings(inner))
    own = (Provider(name, options) for name, options in others.items() if name != SPACEMIT)
    flat.update(others.get(SPACEMIT, {}))
    return (*own, Provider(SPACEMIT, {**_DEFAULTS, **flat}, named=bool(flat)))


def _strings(section: Section) -> dict[str, str]:
    """Options as ONNX Runtime takes them, strings; numbers are written so often enough."""
    out = {}
    for name, value in section.values.items():
        if isinstance(value, dict):
            continue
        if not isinstance(value, str | int | float):
            raise section.wrong(name, "a string is expected")
        out[name] = ("1" if value else "0") if isinstance(value, bool) else str(value)
    return out


def _size(section: Section) -> Size | None:
    """input_width and input_height, or input_size for both."""
    square = section.get("input_size", int, 0)
    size = section.get("input_width", int, 0), section.get("input_height", int, 0)
    for name, value in zip(("input_size", "input_width", "input_height"), (square, *size), strict=True):
        if value < 0 or value > 1 << 16:
            raise section.wrong(name, "a number of pixels is expected")
    if bool(size[0]) != bool(size[1]):
        raise section.error("vision_model has one of input_width and input_height; give both, or input_size")
    return size if all(size) else (square, square) if square else None


def _model(config: Section) -> Smt:
    block = config.section("vision_preprocess") if config.has("vision_preprocess") else None
    if block is None:
        return Smt(architecture(config))
    mean, std = block.numbers("image_mean"), block.numbers("image_std")
    return Smt(architecture(config), block.get("rescale_factor", float, 1.0), mean, std)


def architecture(config: Section) -> str:
    """The first of a configuration's architectures, which may stand alone."""
    value = config.values.get("architectures")
    first = value[0] if isinstance(value, list) and value else value
    if isinstance(first, str) and first:
        return first
    if value is None:
        raise config.error('there is no architectures; add it, such as "architectures": ["Qwen2VLForConditionalGeneration"]')
    raise config.wrong("architectures", "an array with the name of the architecture is expected")
