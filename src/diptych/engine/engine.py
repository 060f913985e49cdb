"""The engine as its users see it: load two halves, ask, stream, close."""

from __future__ import annotations

import asyncio
import atexit
import queue
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from collections.abc import Sequence as List
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any, ParamSpec, Self, TypeVar

from diptych import deploy
from diptych.backend import open_half
from diptych.encoder.disk import Disk
from diptych.encoder.encoder import Counters, Encoder
from diptych.encoder.limits import Limits
from diptych.engine.about import About, SlotState, about
from diptych.engine.answer import Emit
from diptych.engine.embed import EUCLIDEAN, Embedder, Embedding
from diptych.engine.encode import Encoded, encode
from diptych.engine.gate import Gate
from diptych.engine.locate import locate
from diptych.engine.loop import Loop
from diptych.engine.prepare import Preparation
from diptych.engine.preview import Preview, preview
from diptych.engine.sequence import Sequence
from diptych.engine.stats import Stats
from diptych.engine.store import Store
from diptych.errors import DiptychError, InputError, NotSupported, Unavailable
from diptych.families.base import MediaHalf, Rows
from diptych.llama.adjust import ends
from diptych.llama.context import Context, default_threads
from diptych.llama.model import TextModel
from diptych.llama.sampler import default_sampling, warm_up
from diptych.media.access import Access
from diptych.media.load import is_remote
from diptych.options import Options, Pooling
from diptych.prompt import ChatTemplate
from diptych.trace import Trace, open_trace
from diptych.types import MediaSettings, Message, Output, Request, Sampling, Source

P = ParamSpec("P")
T = TypeVar("T")
Image = str | Path | bytes | Source
_N_FETCHERS = 16  # threads that wait for other machines, so that a slow one does not hold up who needs none
_MAX_WORKERS = 4  # threads that decode pictures and render templates; more would only take cores from the halves
_N_ASIDE = 4  # threads that embed and encode without generating; most of the time they wait for others


class Engine:
    """Both halves of a model, ready to answer. `load` makes one; close it, or use it in a `with` statement.

    `load_ms` is the time loading took; `default_sampling` llama.cpp's defaults with those of the model on top;
    `media_backend` what runs the media half, `onnx` or `mtmd`; `about` what both halves are; `store` keeps slots in files.
    """

    def __init__(
        self,
        text: TextModel,
        half: MediaHalf | None,
        options: Options,
        access: Access | None = None,
        trace: Trace | None = None,
    ) -> None:
        """Take over both halves, which must fit each other, and the trace they were loaded with; closing the engine closes them.

        `access` is what requests may name as media, by default whatever this process may read.
        """
        self.options = options
        self.load_ms = 0.0
        self.media_backend = half.backend if half else None
        self._text, self._half = text, half
        self._trace = trace or open_trace(options.trace, ops=options.trace_ops)
        self._access = access or Access.local(options)
        fields: dict[str, Any] = dict(default_sampling(text.metadata))
        self.default_sampling = replace(Sampling(), **fields)
        with ExitStack() as stack:
            self._context = stack.enter_context(Context(text, options))
            self._encoder = self._open_encoder(half, stack)
            n_workers = min(max(2, default_threads() // 2), _MAX_WORKERS)
            self._workers = ThreadPoolExecutor(n_workers, "diptych-worker")
            stack.callback(self._workers.shutdown)
            self._preparation = Preparation(
                text, half, self._context, options, self._access, self._known, self._trace,
                workers=self._workers, n_ahead=n_workers - 1,
            )  # fmt: skip
            self.about: About = about(text, half, self._context, self._preparation.template.source)
            self._loop = Loop(text, self._context, self._encoder, options, self._trace)
            stack.callback(self._loop.close)
            if options.warmup:
                # Not here: OpenMP keeps threads for each thread that computes, and where these are more than cores they all
                # sleep at every barrier instead of spinning. A token then takes half as long again.
                self._loop.between(lambda _: self._context.warm_up()).result()
                warm_up(text)
            self.store = Store(self._loop, text, self.media_backend, options)
            self._aside = ThreadPoolExecutor(_N_ASIDE, "diptych-aside")
            stack.callback(self._aside.shutdown)
            self._embedder = Embedder(text, self._encoder, self._preparation, options) if options.embeddings else None
            if self._embedder:
                stack.callback(self._embedder.close)
            self._gate = Gate(options.n_parallel, options.max_queue)
            self._fetchers = ThreadPoolExecutor(_N_FETCHERS, "diptych-fetch")
            stack.callback(self._fetchers.shutdown)
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
        access: Access | None = None,
    ) -> Self:
        """Load a deployment (a directory, or `reader`, the shipped one), or the files of both halves; text alone works.

        `hf` is `user/repo[:quant]` of the Hugging Face hub, downloaded once.

        Raises InputError, FileError, UnknownModel or MismatchedHalves for files that cannot be used, EngineError for
        options that cannot be met.
        """
        start, options = time.perf_counter(), options or Options()
        files = locate(deployment, model, mmproj, hf, options.allow_absolute_paths)
        with ExitStack() as stack:
            text = stack.enter_context(TextModel.load(files.text_half, options))
            trace = open_trace(options.trace, ops=options.trace_ops)
            stack.callback(trace.close)
            half = open_half(files, options, text, trace) if files.mmproj or files.onnx else None
            if half:
                stack.callback(half.close)
            out = cls(text, half, options, access, trace)
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

        with self._gate.inside():
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

    async def preview(self, source: Source, settings: MediaSettings) -> Preview:
        """How the model sees a picture; nothing is encoded for it.

        Raises InputError where no half takes pictures, MediaError and its kinds for one that cannot be used, Overloaded.
        """
        self._check_open()
        with self._gate.inside():
            wanted = self._preparation.settings(settings)
            work = self._workers.submit(preview, self._half, source, self._access, wanted, self._known)
            return await asyncio.wrap_future(work)

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

    @property
    def pooling(self) -> Pooling | None:
        """Which rows an embedding is made of; None where the options do not ask for embeddings."""
        return self._embedder.pooling if self._embedder else None

    async def embed(self, requests: List[Request], normalize: int = EUCLIDEAN) -> list[Embedding]:
        """The embeddings of prompts, see `Embedder.embed`. Raises NotSupported where the options do not ask for them."""
        if self._embedder is None:
            raise NotSupported("this engine gives no embeddings; start it with --embeddings")
        embedder = self._embedder
        return await self._beside(lambda gone: embedder.embed(requests, normalize, gone))

    async def encode(self, source: Source, settings: MediaSettings, scope: str = "") -> Encoded:
        """The rows of a media part; the text half has no part in it. Raises as `generate`."""
        return await self._beside(lambda gone: encode(source, settings, self._preparation, self._encoder, scope, gone))

    @property
    def template(self) -> ChatTemplate:
        """The chat template that messages are rendered with."""
        return self._preparation.template

    def piece(self, token: int) -> bytes:
        """The bytes of a token, those of special tokens too. Raises EngineError for a number that is none."""
        return self._text.piece(token, special=True)

    @property
    def end_tokens(self) -> list[int]:
        """The tokens that end an answer."""
        return [int(token) for token in ends(self._text)]

    def tokenize(self, text: str, add_special: bool = False, parse_special: bool = True) -> list[int]:
        """The tokens of a text; `add_special` adds what the vocabulary puts before and behind one, without `parse_special`
        special tokens in it count as text. Raises InputError for what is no text."""
        tokens = self._text.tokenize(text, parse_special)
        return [*self._text.prefix_tokens, *tokens, *self._text.suffix_tokens] if add_special else tokens

    def detokenize(self, tokens: Iterable[int]) -> bytes:
        """The bytes of tokens one behind the other. Raises InputError for a number that is none."""
        found = list(tokens)
        if bad := next((token for token in found if not 0 <= token < self._text.n_vocab), None):
            raise InputError(f"there is no token {str(bad)[:20]}; the vocabulary has {self._text.n_vocab}, from 0 on")
        known = {token: self.piece(token) for token in set(found)}
        return b"".join(known[token] for token in found)

    def render(self, request: Request, marker: str = "") -> str:
        """The prompt of a request as text, with `marker` in the place of each media part. Raises InputError as `generate`."""
        pieces = self._given(self._preparation.pieces, request).result()
        texts = (self.piece(p).decode(errors="replace") if isinstance(p, int) else p for p in pieces)
        return "".join(text if isinstance(text, str) else marker for text in texts)

    def ids(self, request: Request) -> list[int]:
        """The prompt of a request in tokens, and stand-ins, which are negative, for media rows; nothing is encoded.

        Raises what preparing raises, save that a prompt may be of any length.
        """
        chunks = self._given(self._preparation.chunks, request).result()
        return [int(number) for chunk in chunks for number in chunk.ids]

    def count(self, request: Request) -> int:
        """The tokens and media rows of a prompt, as `Usage.prompt_tokens` counts them. Raises as `ids` does, and Overloaded."""
        with self._gate.inside():
            return len(self.ids(request))

    def slots(self) -> list[SlotState]:
        """What each slot does just now."""
        return self._loop.slots()

    def stats(self) -> Stats:
        """What is going on now, and the counts since loading."""
        loop = self._loop
        return Stats(
            running=loop.n_running,
            waiting=loop.n_waiting,
            preparing=max(0, self._gate.n_inside - loop.n_running - loop.n_waiting),
            refused=self._gate.n_refused,
            n_slots=self.options.n_parallel,
            n_ctx=self._context.n_ctx,
            kv_rows=loop.kv_rows,
            n_reused=loop.n_reused,
            encoder=self._encoder.counters if self._encoder else Counters(),
            **vars(loop.work),
        )

    def close(self) -> None:
        """End the threads, with an EngineError for who still waits, and free both halves; a second call does nothing."""
        self._closed = True
        atexit.unregister(self.close)
        self._loop.close()  # before the threads that only prepare, so that who is being answered is told at once
        if self._encoder:
            self._encoder.close()
        self._resources.close()
        if self._half:
            self._half.close()
            self._half = None
        self._text.close()
        self._trace.close()  # behind the media half, which has its operators to tell

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def _stream(self, request: Request) -> Iterator[Output]:
        """As `generate`, without an event loop."""
        items = queue.SimpleQueue[Output | DiptychError]()
        with self._gate.inside():
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

    def _open_encoder(self, half: MediaHalf | None, stack: ExitStack) -> Encoder | None:
        if half is None:
            return None
        disk = Disk(half, self.options.encode_disk_mib * 2**20) if self.options.encode_disk_mib else None
        encoder = Encoder(half, Limits.of(half, self.options), self.options.encode_cache_mib * 2**20, self._trace, disk)
        stack.callback(encoder.close)
        return encoder

    def _known(self, key: bytes) -> Rows | None:
        return self._encoder.known(key) if self._encoder else None

    def _check_open(self) -> None:
        if self._closed:
            raise Unavailable("the engine is closed; load it again before using it")

    async def _beside(self, work: Callable[[Event], T]) -> T:
        """Do something that waits for long without keeping the workers from their work; it is told when nobody waits."""
        self._check_open()
        gone = Event()
        try:
            with self._gate.inside():
                return await asyncio.wrap_future(self._aside.submit(self._if_open, partial(work, gone)))
        finally:
            gone.set()

    def _submit(self, request: Request, emit: Emit) -> Future[Sequence]:
        """Let a worker make a sequence of a request."""
        if not self._context.has_memory:
            raise NotSupported("this model only embeds; ask for embeddings, or load one that generates text")
        came, parts = time.perf_counter(), [*(request.prompt or ()), *(part for m in request.messages for part in m.parts)]
        if not any(isinstance(part, Source) and is_remote(part) for part in parts):
            return self._given(self._preparation.sequence, request, emit, came)
        self._check_open()
        return self._fetchers.submit(self._fetched, request, emit, came)

    def _fetched(self, request: Request, emit: Emit, came: float) -> Sequence:
        """On a thread for slow addresses: fetch the media of a request, and let a worker do the rest."""
        start = time.perf_counter()
        fetched = self._preparation.fetched(request)
        fetch_ms = 1e3 * (time.perf_counter() - start)
        return self._given(self._preparation.sequence, fetched, emit, came, fetch_ms).result()

    def _given(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Let a worker do it."""
        self._check_open()
        return self._workers.submit(self._if_open, partial(work, *args, **kwargs))

    def _if_open(self, work: Callable[[], T]) -> T:
        """On another thread: what was asked for a while ago."""
        self._check_open()
        return work()


def _source(image: Image) -> Source:
    if isinstance(image, Source):
        return image
    return Source("image", data=image) if isinstance(image, bytes) else Source("image", url=str(image))


def _raised(item: Output | DiptychError) -> Output:
    """An output; an error is raised."""
    if isinstance(item, DiptychError):
        raise item
    return item
