"""Our two halves against libmtmd on the same file, and against transformers on the checkpoint they came from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from diptych.backend import open_half
from diptych.deploy import Deployment
from diptych.encoder.half import encoded
from diptych.errors import InputError
from diptych.families.base import MediaHalf
from diptych.llama.model import TextModel
from diptych.media.image import resize
from diptych.media.load import content_key
from diptych.options import Options
from diptych.types import Media, MediaChunk, MediaSettings
from diptych.verify.checkpoint import Checkpoint
from diptych.verify.lines import LEADS, LIBMTMD, ROWS, Line, compared
from diptych.verify.ours import Ours, positions_of
from diptych.verify.side import MEDIA, Side
from diptych.weights import open_gguf

_ARITHMETIC = {"f16": "F16", "bf16": "BF16", "int8": "Q8_0"}
QUESTION = "What does it say?"
ANY_SIZE = {"min_pixels": 1, "max_pixels": 1 << 30}  # libmtmd is to take a picture at the size it comes in
SIZES = ((448, 224), (230, 410), (640, 480))  # of the pictures made when none is named


@dataclass(frozen=True)
class Bounds:
    """How far the embeddings may lie from each reference's, and what lead a token of the answer may have lost."""

    transformers: float
    libmtmd: float
    lead: float | None


def verify(
    deployment: Deployment,
    pictures: Mapping[str, Media],
    options: Options,
    *,
    checkpoint: Path | None = None,
    question: str = QUESTION,
) -> Iterator[Line]:
    """One line for each picture, reference and thing compared, as they are found.

    libmtmd reads the same mmproj, and gets each picture at the size our half sees it at: it stretches pictures in
    another way than the processors of Hugging Face do. transformers reads the checkpoint and prepares pictures itself.
    Our half computes in f32 unless another precision is asked for, which `auto` is not.
    Raises InputError when there is nothing to compare with, FileError and its kind for files that cannot be used,
    MediaError for pictures.
    """
    if options.precision == "auto":
        options = options.model_copy(update={"precision": "f32"})
    bounds = bounds_of(deployment.mmproj, deployment.text, options.precision)
    with ExitStack() as stack:
        text = stack.enter_context(TextModel.load(deployment.text, options)) if deployment.text else None
        half = stack.enter_context(closing(open_half(deployment, options, text)))
        ours = stack.enter_context(closing(Ours(half, text, options)))
        other = None
        if deployment.mmproj and half.backend != "mtmd":
            given = options.model_copy(update={"media_backend": "mtmd", **ANY_SIZE})
            other = stack.enter_context(closing(open_half(deployment, given, text)))
        reference = Checkpoint(checkpoint) if checkpoint else None
        if not other and not reference:
            why = "no mmproj that libmtmd could read" if half.backend != "mtmd" else "libmtmd as its media half already"
            raise InputError(f"the model has {why}, so there is nothing to compare with; give its checkpoint (--checkpoint)")
        for name, picture in pictures.items():
            if other:
                yield from _against_libmtmd(name, picture, ours, other, bounds, question)
            if reference:
                sides = ours.see(picture, question), reference.see(picture, question)
                yield from compared(name, "transformers", *sides, bounds.transformers, bounds.lead)


def bounds_of(mmproj: Path | None, text: Path | None, precision: str = "f32") -> Bounds:
    """The bounds by the types of both halves, f16 where there is no mmproj to tell; the coarser counts for the answer.

    Arithmetic of a `precision` is as coarse as a file of its type, int8 as Q8_0.
    """
    media, words = _type(mmproj) if mmproj else "F16", _type(text) if text else "F32"
    order = list(ROWS)
    if media in order:
        media = max(media, _ARITHMETIC.get(precision, "F32"), key=order.index)
    known = media in order and words in order
    return Bounds(
        ROWS.get(media, ROWS["Q8_0"]),
        LIBMTMD.get(media, LIBMTMD["Q8_0"]),
        LEADS[max(media, words, key=order.index)] if known else None,
    )


def made_pictures() -> dict[str, Media]:
    """Pictures to compare by when none is named: coarse random squares over a gradient, of three shapes."""
    rng = np.random.default_rng(0)
    out = {}
    for width, height in SIZES:
        squares = rng.integers(0, 160, (height // 16 + 1, width // 16 + 1, 3)).astype(np.uint8)
        large = squares.repeat(16, 0).repeat(16, 1)[:height, :width]
        pixels = large + np.linspace(0, 95, width, dtype=np.uint8)[None, :, None]
        out[f"made {width}×{height}"] = Media("image", pixels, content_key(pixels))
    return out


def _against_libmtmd(name: str, picture: Media, ours: Ours, other: MediaHalf, bounds: Bounds, question: str) -> Iterator[Line]:
    used = ours.half.preprocess(picture, ours.settings)[0].used
    pixels = resize(picture.data, *used)
    same = Media(picture.kind, pixels, content_key(pixels))
    chunks = other.preprocess(same, MediaSettings(ANY_SIZE["min_pixels"], ANY_SIZE["max_pixels"]))
    rows = encoded(other, chunks)
    seen = ours.see(same, question)
    yield from compared(
        name, "libmtmd", seen, _theirs(seen, ours, same, question, chunks, rows, other), bounds.libmtmd, bounds.lead
    )


def _theirs(
    seen: Side, ours: Ours, picture: Media, question: str, chunks: list[MediaChunk], rows: list[np.ndarray], other: MediaHalf
) -> Side:
    """libmtmd's rows in our prompt: what it puts around a picture is not compared, but how many tokens it makes of it."""
    n = sum(len(r) for r in rows)
    same = [len(r) for r in rows] == [len(seen.rows)]
    first = seen.tokens.index(MEDIA) if MEDIA in seen.tokens else 0
    last = len(seen.tokens) - seen.tokens[::-1].index(MEDIA) if MEDIA in seen.tokens else 0
    tokens = (*seen.tokens[:first], *[MEDIA] * n, *seen.tokens[last:])
    positions = positions_of(other, [first, *chunks, len(seen.tokens) - last])
    answer = ours.see(picture, question, rows).answer if same else None
    return Side(np.concatenate(rows), tokens, positions, None, answer)


def _type(path: Path) -> str:
    """The type of the largest tensor of a file."""
    largest = max(open_gguf(path).tensors.values(), key=lambda t: t.nbytes)
    return str(largest.type.name)
