"""The engine as its users see it: load two halves, ask, stream, close."""

from __future__ import annotations

import asyncio
import atexit
import queue
import time
from collections.abc import AsyncGenerator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from diptych import deploy
from diptych.backend import open_half
from diptych.encoder.encoder import Encoder
from diptych.engine.about import About, SlotState, about
from diptych.engine.answer import Emit
from diptych.engine.loop import Loop
from diptych.engine.prepare import Preparation
from diptych.engine.sequence import Sequence
from diptych.engine.stats import Stats
from diptych.errors import DiptychError, EngineError, InputError
from diptych.families.base import MediaHalf
from diptych.llama.context import Context
from diptych.llama.model import TextModel
from diptych.llama.sampler import default_sampling
from diptych.options import Options
from diptych.types import Message, Output, Request, Sampling, Source

Image = str | Path | bytes | Source
_N_WORKERS = 2  # threads that decode pictures and render templates; more would only take cores from the halves


class Engine:
    """Both halves of a model, ready to answer. `load` makes one; close it, or use it in a `with` statement.

    `load_ms` is the time loading took; `default_sampling` llama.cpp's defaults with those of the model on top;
    `media_backend` what runs the media half, `onnx` or `mtmd`; `about` what both halves are.
    """

    def __init__(self, text: TextModel, half: MediaHalf | None, options: Options) -> None:
        """Take over both halves, which must fit each other; closing the engine closes them."""
        self.options = options
        self.load_ms = 0.0
        self.media_backend = half.backend if half else None
        self._text, self._half = text, half
        fields: dict[str, Any] = dict(default_sampling(text.metadata))
        self.default_sampling = replace(Sampling(), **fields)
        with ExitStack() as stack:
            self._context = stack.enter_context(Context(text, options))
            self._preparation = Preparation(text, half, self._context, options)
            self.about: About = about(text, half, self._context, options, self._preparation.template_source)
            self._encoder = Encoder(half, options.encode_max_patches) if half else None
            if self._encoder:
                stack.callback(self._encoder.close)
            self._loop = Loop(text, self._context, self._encoder, options.n_parallel)
            stack.callback(self._loop.close)
            self._workers = ThreadPoolExecutor(_N_WORKERS, "diptych-worker")
            stack.callback(self._workers.shutdown)
            self._resources = stack.pop_all()
        self._closed = False
        # threads that still decode while Python takes itself apart would crash it
        atexit.register(self.close)

    @classmethod
    def load(
        cls,
        deployment: str | Path | deploy.Deployment | None = None,
        *,
        model: Path | None = None,
        mmproj: Path | None = None,
        hf: str | None = None,
        options: Options | None = None,
    ) -> Self:
        """Load a deployment (a directory, or `reader`, the shipped one), or the files of both halves; text alone works.

        `hf` is `user/repo[:quant]` of the Hugging Face hub, downloaded once.

        Raises InputError, FileError, UnknownModel or MismatchedHalves for files that cannot be used, EngineError for
        options that cannot be met.
        """
        start, options = time.perf_counter(), options or Options()
        files = _files(deployment, model, mmproj, hf, options.allow_absolute_paths)
        with ExitStack() as stack:
            text = stack.enter_context(TextModel.load(files.text_half, options))
            half = open_half(files, options, text) if files.mmproj or files.onnx else None
            if half:
                stack.callback(half.close)
            out = cls(text, half, options)
            stack.pop_all()
        out.load_ms = 1e3 * (time.perf_counter() - start)
        return out

    async def generate(self, request: Request) -> AsyncGenerator[Output, None]:
        """Answer a request piece by piece; closing the iterator or cancelling its task aborts.

        Raises InputError and its kind for a request that cannot be served, EngineError when serving fails.
        """
        loop, items = asyncio.get_running_loop(), asyncio.Queue[Output | DiptychError]()

        def emit(item: Output | DiptychError) -> None:
            with suppress(RuntimeError):  # the event loop was closed, so nobody listens
                loop.call_soon_threadsafe(items.put_nowait, item)

        sequence = await asyncio.wrap_future(self._submit(request, emit))
        self._loop.add(sequence)
        try:
            last = False
            while not last:
                output = _raised(await items.get())
                last = output.finish_reason is not None
                yield output
        finally:
            self._loop.abort(sequence)

    def ask(
        self,
        text: str,
        images: Iterable[Image] = (),
        *,
        max_tokens: int | None = None,
        stop: Iterable[str] = (),
        **sampling: Any,  # noqa: ANN401 - checked by Sampling
    ) -> str:
        """The answer to a question about pictures (paths, URLs, bytes), which stand before it.

        `sampling` are fields of `Sampling` to set apart from the model's own. Raises as `generate` does. It waits for
        the whole answer, so that in an event loop `generate` is the better choice.
        """
        return self.answer(text, images, max_tokens=max_tokens, stop=stop, **sampling)[0]

    def answer(
        self,
        text: str,
        images: Iterable[Image] = (),
        *,
        max_tokens: int | None = None,
        stop: Iterable[str] = (),
        **sampling: Any,  # noqa: ANN401 - checked by Sampling
    ) -> tuple[str, Output]:
        """As `ask`, with the last output, which has finish reason, usage and timings."""
        message = Message("user", (*map(_source, images), text))
        request = Request((message,), replace(self.default_sampling, **sampling), max_tokens, tuple(stop))
        outputs = list(self._stream(request))
        return "".join(output.text for output in outputs), outputs[-1]

    def piece(self, token: int) -> bytes:
        """The bytes of a token, those of special tokens too. Raises EngineError for a number that is none."""
        return self._text.piece(token, special=True)

    def slots(self) -> list[SlotState]:
        """What each slot does just now."""
        return self._loop.slots()

    def stats(self) -> Stats:
        """What is going on now, and the counts since loading."""
        return self._loop.stats()

    def close(self) -> None:
        """End the threads, with an EngineError for who still waits, and free both halves; a second call does nothing."""
        self._closed = True
        atexit.unregister(self.close)
        self._resources.close()
        if self._half:
            self._half.close()
            self._half = None
        self._text.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def _stream(self, request: Request) -> Iterator[Output]:
        """As `generate`, without an event loop."""
        items = queue.SimpleQueue[Output | DiptychError]()
        sequence = self._submit(request, items.put).result()
        self._loop.add(sequence)
        try:
            last = False
            while not last:
                output = _raised(items.get())
                last = output.finish_reason is not None
                yield output
        finally:
            self._loop.abort(sequence)

    def _submit(self, request: Request, emit: Emit) -> Future[Sequence]:
        """Let a worker make a sequence of a request."""
        if self._closed:
            raise EngineError("the engine is closed; load it again before using it")
        return self._workers.submit(self._preparation.sequence, request, emit, time.perf_counter())


def _files(
    deployment: str | Path | deploy.Deployment | None, model: Path | None, mmproj: Path | None, hf: str | None, absolute: bool
) -> deploy.Deployment:
    """The files that are named in one way or another."""
    if hf is None and not isinstance(deployment, deploy.Deployment):
        return deploy.find(deployment, model=model, mmproj=mmproj, absolute=absolute)
    if model or mmproj or (hf and deployment):
        raise InputError("a deployment, the files of its halves, and hf are three ways to name a model; name it in one")
    if isinstance(deployment, deploy.Deployment):
        return deployment
    from diptych.hub import download as hub

    return hub.fetch(str(hf))


def _source(image: Image) -> Source:
    if isinstance(image, Source):
        return image
    return Source("image", data=image) if isinstance(image, bytes) else Source("image", url=str(image))


def _raised(item: Output | DiptychError) -> Output:
    """An output; an error is raised."""
    if isinstance(item, DiptychError):
        raise item
    return item
