"""What is measured: the jobs that are given to processes, each with one side, one picture and one kind of measure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar, cast, get_args

from diptych.deploy import Deployment
from diptych.encoder.precision import choose
from diptych.errors import InputError
from diptych.options import MediaBackend, Options

Measure = Literal["encode", "text", "first-token"]
Size = tuple[int, int]  # (width, height) in pixels
MEASURES: tuple[Measure, ...] = get_args(Measure)
T = TypeVar("T", bound=str)


@dataclass(frozen=True)
class Side:
    """One of those that are compared: a media backend and a precision, as they were asked for; libmtmd has no choice of the
    latter."""

    media_backend: MediaBackend
    precision: str

    @property
    def name(self) -> str:
        named = (self.media_backend,) if self.media_backend == "mtmd" else (self.media_backend, self.precision)
        return " ".join(dict.fromkeys(named))


@dataclass(frozen=True)
class Picture:
    """A file, or noise of a size. An `exact` one is to be seen by the model at its size, to the pixel."""

    name: str
    size: Size = (0, 0)
    path: Path | None = None
    exact: bool = False


@dataclass(frozen=True)
class Amounts:
    """How much is measured: processes of each side, timed runs in each, tokens of a prompt, tokens decoded."""

    rounds: int = 2
    runs: int = 3
    prompt_tokens: int = 512
    tokens: int = 64


@dataclass(frozen=True)
class Job:
    """What one process measures, after a run to warm up. `side` is None where only the text half is measured."""

    measure: Measure
    deployment: Deployment
    options: Options
    amounts: Amounts
    side: Side | None = None
    picture: Picture | None = None

    @property
    def title(self) -> str:
        return ", ".join([self.measure, *([self.picture.name] if self.picture else [])])


def jobs(
    measures: Iterable[Measure],
    deployment: Deployment,
    options: Options,
    amounts: Amounts,
    sides: list[Side],
    pictures: list[Picture],
) -> list[list[Job]]:
    """What is compared, as lists of jobs that differ in their sides alone."""
    out: list[list[Job]] = []
    for measure in measures:
        if measure == "text":
            out.append([Job(measure, deployment, options, amounts)])
            continue
        for picture in pictures:
            out.append([Job(measure, deployment, _for(options, s, picture), amounts, s, picture) for s in sides])
    return out


def sides_of(backends: str, precisions: str, options: Options) -> list[Side]:
    """A side for each combination of names between commas. Raises InputError for a name that is none, EngineError for a
    precision that this machine has not."""
    named = _named("--precision", precisions, get_args(Options.model_fields["precision"].annotation))
    found: dict[Side, None] = {}
    for backend in _named("--media-backend", backends, cast("tuple[MediaBackend, ...]", get_args(MediaBackend))):
        for precision in ("auto",) if backend == "mtmd" else named:
            found[Side(backend, precision)] = None
            if backend != "mtmd":
                choose(options.model_copy(update={"precision": precision}))
    return list(found)


def measures_of(names: str | None, deployment: Deployment) -> list[Measure]:
    """The measures named between commas, by default all that the halves allow. Raises InputError for one that is none, or
    that needs a half that is not there."""
    media, text = bool(deployment.mmproj or deployment.onnx), deployment.text is not None
    possible = {"encode": media, "text": text, "first-token": media and text}
    if names is None:
        return [name for name in MEASURES if possible[name]]
    found = _named("--measure", names, MEASURES)
    if lacking := next((name for name in found if not possible[name]), None):
        raise InputError(f"--measure {lacking} needs the {'text' if media else 'media'} half too, which was not named; name both")
    return found


def size_of(text: str) -> Size:
    """`504` → (504, 504), `1008x504` → (1008, 504), as (width, height). Raises InputError for what is no size."""
    match = re.fullmatch(r"([1-9]\d{0,5})(?:[x×]([1-9]\d{0,5}))?", text.strip().lower())
    if match is None:
        raise InputError(f"--size {text!r} is not a size; give pixels such as 504, or WIDTHxHEIGHT such as 1008x504")
    return int(match[1]), int(match[2] or match[1])


def _for(options: Options, side: Side, picture: Picture) -> Options:
    """The options of a side, with limits that leave a picture of an exact size as it is, where the user set none."""
    update: dict[str, object] = {"media_backend": side.media_backend, "precision": side.precision}
    if picture.exact:
        area = picture.size[0] * picture.size[1]
        if options.min_pixels is None and options.image_min_tokens is None:
            update["min_pixels"] = area
        if options.max_pixels is None and options.image_max_tokens is None:
            update["max_pixels"] = area
    return options.model_copy(update=update)


def _named(flag: str, text: str, known: tuple[T, ...]) -> list[T]:
    """Names between commas, each of them once. Raises InputError for one that is not known."""
    return list(dict.fromkeys(_each(flag, text, known)))


def _each(flag: str, text: str, known: tuple[T, ...]) -> Iterator[T]:
    for word in text.split(","):
        name = next((name for name in known if name == word.strip()), None)
        if name is None:
            raise InputError(f"{flag}: {word.strip()!r} is none of {', '.join(known)}; give one or several, between commas")
        yield name
