"""Which backend runs a media half: graphs that Diptych writes, or libmtmd for every other mmproj."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from diptych import families
from diptych.deploy import Deployment, OnnxHalf
from diptych.errors import InputError, MismatchedHalves, UnsupportedMedia
from diptych.families.base import MediaHalf, projector_type
from diptych.options import MediaBackend, Options
from diptych.trace import OFF, Trace
from diptych.types import MediaKind
from diptych.weights import open_gguf

if TYPE_CHECKING:
    from diptych.llama.model import TextModel

log = logging.getLogger(__name__)


class Half(Protocol):
    """What has to fit the text half: a media half, or the family of one that is not open yet."""

    @property
    def n_embd(self) -> int: ...
    @property
    def n_pos(self) -> int: ...


def open_half(media: Path | Deployment, options: Options, text: TextModel | None = None, trace: Trace = OFF) -> MediaHalf:
    """The media half of an mmproj or a deployment in the backend the options ask for; `auto` takes ours where it can.

    A deployment's ONNX files go before its mmproj, which `mtmd` takes. Raises InputError where there is no media half for
    the backend, FileError, UnknownModel or EngineError when it cannot be had, MismatchedHalves when it does not fit the
    text half.
    """
    found = Deployment(None, media) if isinstance(media, Path) else media
    if found.onnx and options.media_backend != "mtmd":
        return _foreign(found.onnx, options, text, trace)
    if found.mmproj is None:
        what = "the media half as ONNX files alone, and mtmd needs an mmproj" if found.onnx else "no media half"
        raise InputError(f"the model has {what}; give an mmproj with --mmproj, or name another model")
    return _OPENERS[_chosen(found.mmproj, options)](found.mmproj, options, text, trace)


def check_fit(path: Path, half: Half, text: TextModel | None) -> None:
    """Raise MismatchedHalves where the media half at `path` gives other rows than the text half takes."""
    if text is None:
        return
    for what, theirs, ours in (
        ("rows of width {}", half.n_embd, text.n_embd_inp),
        ("{} positions a row", half.n_pos, text.n_pos),
    ):
        if theirs != ours:
            raise MismatchedHalves(
                f"the halves are not of one model: {path} gives {what.format(theirs)}, and {text.path} takes "
                f"{what.format(ours)}; load the media half that was made with this text half"
            )


def check_kinds(kinds: Iterable[MediaKind], half: MediaHalf) -> None:
    """Raise UnsupportedMedia for a kind of media that a media half does not take."""
    for kind in kinds:
        if kind not in half.placeholders:
            known = " and ".join(half.placeholders) or "none"
            hint = "" if half.backend == "mtmd" else ", or try --media-backend mtmd"
            raise UnsupportedMedia(f"{kind} is given, and the media half takes {known}; leave it out{hint}")


def _chosen(mmproj: Path, options: Options) -> MediaBackend:
    if options.media_backend != "auto":
        return options.media_backend
    return "onnx" if _known(mmproj) else "mtmd"


def _known(mmproj: Path) -> bool:
    """Whether there is a family for the pictures of an mmproj."""
    metadata = open_gguf(mmproj).metadata
    projectors = {p for family in families.all() for p in family.projectors.get("image", ())}
    return bool(metadata.get("clip.has_vision_encoder", True)) and projector_type(metadata) in projectors


def _foreign(onnx: OnnxHalf, options: Options, text: TextModel | None, trace: Trace) -> MediaHalf:
    from diptych.encoder import foreign  # what writes graphs takes half a second to import, and other backends need it not

    half = foreign.open_foreign(onnx, options, (lambda token: len(text.tokenize(token)) == 1) if text else None, trace)
    try:
        check_fit(onnx.config, half, text)
    except MismatchedHalves:
        half.close()
        raise
    return half


def _onnx(mmproj: Path, options: Options, text: TextModel | None, trace: Trace) -> MediaHalf:
    from diptych.encoder import half as encoder  # as above

    check_fit(mmproj, families.open_family(mmproj), text)  # looking is far quicker than opening
    return encoder.open_half(mmproj, options, trace)


def _mtmd(mmproj: Path, options: Options, text: TextModel | None, trace: Trace) -> MediaHalf:
    from diptych.llama.mtmd import MtmdHalf

    if trace.ops:
        log.warning("libmtmd tells no operators: --trace-ops adds nothing to the trace")
    if _known(mmproj):
        check_fit(mmproj, families.open_family(mmproj), text)
    return MtmdHalf(mmproj, options, text)


_OPENERS: Mapping[MediaBackend, Callable[[Path, Options, TextModel | None, Trace], MediaHalf]] = {
    "onnx": _onnx,
    "smt": _onnx,
    "mtmd": _mtmd,
}
