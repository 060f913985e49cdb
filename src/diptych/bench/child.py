"""One measurement, in a process of its own: `python -m diptych.bench.child` takes a pickled `Job` on standard input.

It prints one JSON object, the `Told` of `measured` or an error, and ends at once when whoever started it does.
"""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import psutil

from diptych.bench.job import Job, Measure, Picture
from diptych.errors import DiptychError, EngineError, FileError, InputError
from diptych.families.base import MediaHalf
from diptych.media.access import Access
from diptych.media.draw import png
from diptych.media.load import content_key, load
from diptych.media.rgb import Pixels
from diptych.options import Options
from diptych.types import Media, MediaChunk, Message, Output, Request, Sampling, Source

QUESTIONS = ("What does it show?", "Which letters are in it?")  # asked of each picture, the second when its rows are there
_GREEDY = Sampling(temperature=0.0, ignore_eos=True)


@dataclass(frozen=True)
class Figure:
    """What was timed: seconds of each run, and the tokens made or taken in one."""

    name: str
    seconds: list[float]
    tokens: int
    origin: str | None = None


@dataclass(frozen=True)
class Told:
    """What a process measured, the media half it did so with, seconds it took to load, and the most memory it had, in bytes."""

    figures: list[Figure]
    load_s: float
    backend: str | None = None
    precision: str | None = None
    peak_bytes: int = 0


def measured(job: Job) -> Told:
    """Do what a job says. Raises InputError, FileError and EngineError and their kinds as loading, encoding and answering do."""
    return replace(_MEASURES[job.measure](job), peak_bytes=peak_memory())


def encode(job: Job) -> Told:
    """The media half alone: rows of a picture that is prepared already."""
    from diptych.backend import open_half
    from diptych.encoder.half import encoded

    start = time.perf_counter()
    with closing(open_half(job.deployment, job.options)) as half:
        load_s = time.perf_counter() - start
        chunks = half.preprocess(_media(_pixels(_picture(job), job.options)), job.options.media)
        check_seen(chunks, _picture(job))
        seconds = _timed(lambda: encoded(half, chunks), job.amounts.runs)
        return _told([Figure("encode", seconds, sum(chunk.n_tokens for chunk in chunks))], load_s, half)


def text(job: Job) -> Told:
    """The text half alone: a prompt of tokens, and tokens behind it."""
    from diptych.engine import Engine

    amounts, outputs = job.amounts, []
    alone = replace(job.deployment, mmproj=None, onnx=None)
    with Engine.load(alone, options=job.options) as engine:
        words = tuple(engine.tokenize("The quick brown fox jumps over the lazy dog. "))
        prompt = (words * -(-amounts.prompt_tokens // len(words)))[: amounts.prompt_tokens]
        request = Request(prompt=prompt, sampling=_GREEDY, max_tokens=amounts.tokens + 1, cache_prompt=False)
        for _ in range(amounts.runs + 1):
            outputs.append(_answer(engine.generate(request)))
        times = [output.timings for output in outputs[1:]]
        figures = [
            Figure("prefill", [t.prefill_ms / 1e3 for t in times], outputs[0].usage.prompt_tokens),
            Figure("decode", [t.decode_ms / 1e3 for t in times], outputs[0].usage.completion_tokens - 1),
        ]
        return Told(figures, engine.load_ms / 1e3)


def first_token(job: Job) -> Told:
    """From a request with a picture to its first token: of a picture that is new, and of the same in a new conversation."""
    from diptych.engine import Engine

    pixels, found = _pixels(_picture(job), job.options), []
    with Engine.load(job.deployment, options=job.options) as engine:
        for _ in range(job.amounts.runs + 1):
            shown = Source("image", data=png(_another(pixels)))
            found.append([_answer(engine.generate(_asking(shown, question, job.options))) for question in QUESTIONS])
        figures = [
            Figure(
                name,
                [pair[i].timings.time_to_first_token_ms / 1e3 for pair in found[1:]],
                found[0][i].usage.media_tokens,
                ", ".join(sorted({use.origin for pair in found[1:] for use in pair[i].media})),
            )
            for i, name in enumerate(("first token", "first token, cached"))
        ]
        return Told(figures, engine.load_ms / 1e3, engine.media_backend, engine.about.media.get("precision"))


_MEASURES: Mapping[Measure, Callable[[Job], Told]] = {"encode": encode, "text": text, "first-token": first_token}


def peak_memory() -> int:
    """The most memory this process has had, in bytes. What `getrusage` tells counts the process that started it too."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024
    except (OSError, StopIteration):
        info = psutil.Process().memory_info()
        if hasattr(info, "peak_wset"):
            return int(info.peak_wset)
        import resource

        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024


def check_seen(chunks: list[MediaChunk], picture: Picture) -> None:
    """Raise InputError where the model sees a picture at another size than it was to be measured at."""
    used = chunks[0].used
    if picture.exact and len(chunks) == 1 and any(used) and used != picture.size:
        raise InputError(
            f"--size {picture.name.replace('×', 'x')}: the model would see it at {used[0]}×{used[1]}; "
            f"give --size {used[0]}x{used[1]}, or other limits of pixels"
        )


def _timed(work: Callable[[], object], runs: int) -> list[float]:
    """Seconds of each run, after one to warm up."""
    work()
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return seconds


def _told(figures: list[Figure], load_s: float, half: MediaHalf) -> Told:
    return Told(figures, load_s, half.backend, half.arithmetic.get("precision"))


def _picture(job: Job) -> Picture:
    assert job.picture, "what encodes has a picture"
    return job.picture


def _pixels(picture: Picture, options: Options) -> Pixels:
    """(height, width, 3): those of a file, or noise."""
    if picture.path:
        return load(Source("image", url=str(picture.path)), Access.local(options)).data
    width, height = picture.size
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def _another(pixels: Pixels) -> Pixels:
    """The same picture with a few other pixels, which no run before this had, so that no cache has it."""
    out = pixels.copy()
    corner = out[:8, :8]
    corner[:] = np.random.default_rng().integers(0, 256, corner.shape, np.uint8)
    return out


def _media(pixels: Pixels) -> Media:
    return Media("image", pixels, content_key(pixels))


def _asking(shown: Source, question: str, options: Options) -> Request:
    """A request that no KV cache helps."""
    message = Message("user", (shown, question))
    return Request((message,), _GREEDY, max_tokens=1, media=options.media, cache_prompt=False)


def _answer(outputs: AsyncGenerator[Output, None]) -> Output:
    """The last output, which has the timings of the whole."""

    async def last() -> Output:
        return [output async for output in outputs][-1]

    return asyncio.run(last())


def _end_with_parent() -> None:
    """Wait for the end of standard input, which whoever started this process holds open, and end."""
    while os.read(0, 4096):
        pass
    os._exit(1)


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who started this process ends it
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # libraries may print
    job = pickle.load(sys.stdin.buffer)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        told: Mapping[str, object] = asdict(measured(job))
    except (DiptychError, OSError, MemoryError) as error:
        fatal = isinstance(error, InputError | FileError) and not isinstance(error, EngineError)
        told = {"error": " ".join(str(error).split()) or "out of memory", "fatal": fatal}
    json.dump(told, out)
    out.close()


if __name__ == "__main__":
    main()
