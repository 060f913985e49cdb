"""A request → a sequence: fetch and preprocess media, render the template, tokenise, and see whether it all fits."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence as List
from concurrent.futures import Executor
from dataclasses import replace
from typing import TypeVar

from diptych import prompt
from diptych.engine import wire
from diptych.engine.ahead import Ahead
from diptych.engine.answer import Answer, Clock, Emit
from diptych.engine.catalogue import Catalogue, Known
from diptych.engine.sequence import Sequence, Span, place
from diptych.errors import ContextOverflow, FileError, InputError
from diptych.families.base import MediaHalf
from diptych.llama.context import Context
from diptych.llama.model import TextModel
from diptych.llama.sampler import Sampler
from diptych.media import budget
from diptych.media.access import Access
from diptych.media.load import decoded, is_remote, read
from diptych.options import Options
from diptych.trace import OFF, Trace
from diptych.types import Chunk, MediaChunk, MediaSettings, Request, Source, TextChunk

T = TypeVar("T")
_CHARACTERS = 64  # a token of text has fewer
_LEAST_CHARACTERS = 2**16
_NAME = re.compile(r"[\w.-]+")  # of a template, where its text was to be


class Vocabulary:
    """Tokenises texts of at most as many characters as a context of `n_ctx` tokens can hold."""

    def __init__(self, text: TextModel, n_ctx: int) -> None:
        self.n_vocab, self.prefix_tokens = text.n_vocab, text.prefix_tokens
        self._text, self._n_ctx = text, n_ctx

    def tokenize(self, text: str) -> List[int]:
        """Text → tokens. Raises ContextOverflow before it would take long to find that they are too many."""
        if len(text) > max(_LEAST_CHARACTERS, _CHARACTERS * self._n_ctx):
            raise ContextOverflow(
                f"the prompt has {len(text):,} characters, more than the context of n_ctx {self._n_ctx} tokens can hold; "
                "shorten it, or set a larger n_ctx",
                n_ctx=self._n_ctx,
            )
        return self._text.tokenize(text)


class Preparation:
    """All that making sequences takes. Its methods run on worker threads, and read the vocabulary only."""

    def __init__(
        self,
        text: TextModel,
        half: MediaHalf | None,
        context: Context,
        options: Options,
        access: Access | None = None,
        known: Known = lambda _: None,
        trace: Trace = OFF,
        *,
        workers: Executor,
        n_ahead: int,
    ) -> None:
        """`access` is what media parts may name, by default whatever this process may read; `known` gives rows that are
        cached; `workers` prepare up to `n_ahead` pictures of a request beside the one its own thread prepares. Without a
        chat template in the options or the text half it is ChatML. Raises FileError for a template's file that cannot be
        read."""
        self.template = prompt.ChatTemplate(_template(options) or text.chat_template, text.bos, text.eos)
        self._text, self._half, self._options = text, half, options
        self._vocabulary = Vocabulary(text, context.n_ctx_slot)
        self._access, self._catalogue, self._trace = access or Access.local(options), Catalogue(known), trace
        self._n_ctx, self._n_ubatch = context.n_ctx_slot, context.n_ubatch
        self._workers, self._n_ahead = workers, n_ahead

    def sequence(self, request: Request, emit: Emit, came: float, fetch_ms: float = 0.0) -> Sequence:
        """The sequence of a request that came at `came`, and whose media were fetched in `fetch_ms`.

        Raises InputError for what cannot be served, MediaError for media that cannot be used, ContextOverflow for a
        prompt that is too long.
        """
        begun = time.perf_counter()
        _check_request(request)
        spans, end = place(self.chunks(request), self._half)
        self._check_fit(spans)
        sampler = self._sampler(request, spans)
        now = time.perf_counter()
        self._trace.complete("preprocess", "", begun, now, request=request.id)
        self._trace.flow(request.id, "start", "", begun)
        clock = Clock(came, preprocess_ms=fetch_ms + 1e3 * (now - begun))
        return Sequence(request, spans, end, self._text.n_pos, Answer(emit, request.stop, clock), sampler=sampler)

    def _sampler(self, request: Request, spans: tuple[Span, ...]) -> Sampler:
        """The sampler of a request, which has seen its prompt. A grammar takes its time, and here only the request's."""
        sampler = Sampler(self._text, request.sampling, request.stop_tokens)
        for span in spans:
            if isinstance(span.chunk, TextChunk):
                sampler.feed(span.chunk.tokens)
        return sampler

    def fetched(self, request: Request) -> Request:
        """The request with the bytes of media that stand at remote addresses, save of those whose ids are known.

        Raises MediaError and its kinds.
        """

        def part(given: T) -> T | Source:
            if not isinstance(given, Source) or not is_remote(given) or self._catalogue.is_bound(request.scope, given):
                return given
            return replace(given, data=read(given, self._access))

        messages = tuple(replace(m, parts=tuple(map(part, m.parts))) for m in request.messages)
        return replace(request, messages=messages, prompt=request.prompt and tuple(map(part, request.prompt)))

    def chunks(self, request: Request) -> list[Chunk]:
        """The prompt of a request. Raises as `sequence` does; no more media are looked at than the context holds, but for
        those begun ahead."""
        settings, n = self.settings(request.media), 0

        def prepared(source: Source) -> list[MediaChunk]:
            with self._trace.span("picture" if source.kind == "image" else source.kind, request=request.id):
                return self.media_chunks(source, settings, request.scope)

        def chunks_of(source: Source) -> list[MediaChunk]:
            nonlocal n
            found = side_by_side(source)
            n += sum(chunk.n_tokens for chunk in found)
            if n > self._n_ctx:
                raise self._overflow(n, n)
            return found

        with Ahead(prepared, _at_hand(request), self._workers, self._n_ahead) as side_by_side:
            chunks = prompt.build(request, self.template, self._vocabulary, self._half, chunks_of)
        return [chunk for chunk in chunks if chunk.n_tokens]

    def pieces(self, request: Request) -> List[str | int | Source]:
        """The prompt of a request cut at its media, which are not looked at. Raises InputError as `sequence` does."""
        return prompt.pieces(request, self.template, self._text, self._half)

    def media_chunks(self, source: Source, settings: MediaSettings, scope: str = "") -> list[MediaChunk]:
        """Fetch, decode and preprocess a media part, as far as that was not done before: chunks whose rows are still there
        come with them. Raises MediaError and its kinds."""
        assert self._half is not None  # a prompt with media is refused where nothing can see them
        if source.encoded is not None:
            return list(wire.source(source.encoded, self._half, self._n_ctx).chunks)
        if (chunks := self._catalogue.by_id(scope, source, settings)) is not None:
            return chunks
        data = read(source, self._access)
        digest = self._catalogue.bind(scope, source, data)
        if (chunks := self._catalogue.by_digest(digest, settings)) is None:
            chunks = self._half.preprocess(decoded(source, data, self._access), settings)
            self._catalogue.keep(digest, settings, chunks)
        return chunks

    def settings(self, asked: MediaSettings) -> MediaSettings:
        """What a request asks of preprocessing, and the options where it says nothing."""
        return budget.merged(asked, self._options.media)

    def _overflow(self, n: int, n_media: int) -> ContextOverflow:
        return ContextOverflow(
            # clients know this case by llama-server's words, which stand in the middle
            f"the prompt has n_tokens {n}, {n_media} of them of pictures, and exceeds the available context size, "
            f"n_ctx {self._n_ctx}; shorten it, lower max_pixels, or set a larger n_ctx",
            n,
            self._n_ctx,
        )

    def _check_fit(self, spans: tuple[Span, ...]) -> None:
        n = sum(span.chunk.n_tokens for span in spans)
        if not n:
            raise InputError("the prompt is empty; say something")
        if n > self._n_ctx:
            raise self._overflow(n, sum(span.chunk.n_tokens for span in spans if isinstance(span.chunk, MediaChunk)))
        for span in spans:
            if not span.causal and span.chunk.n_tokens > self._n_ubatch:
                raise InputError(
                    f"a picture of {span.chunk.n_tokens} tokens has to be decoded at once, and n_ubatch is {self._n_ubatch}; "
                    "set a larger n_ubatch and n_batch, or lower max_pixels"
                )


def _at_hand(request: Request) -> List[Source]:
    """The media parts of a request that can be prepared in any order: what is named by an id may have to be bound first,
    and what stands at a remote address takes as long as it pleases."""
    parts = request.prompt if request.prompt is not None else [part for m in request.messages for part in m.parts]
    sources = [part for part in parts if isinstance(part, Source)]
    return [s for s in sources if (s.data is not None or s.url) and s.id is None and not is_remote(s)]


def _check_request(request: Request) -> None:
    if request.prompt is None and not request.messages:
        raise InputError("the request has no messages; send at least one")
    if request.max_tokens is not None and request.max_tokens < 1:
        raise InputError(f"max_tokens is {request.max_tokens}; it must be 1 or more")
    if "" in request.stop:
        raise InputError("a stop string is empty, and would end every answer at once; leave it out")


def _template(options: Options) -> str | None:
    """The chat template that the options give in the place of the model's own."""
    if options.chat_template_file is None:
        given = options.chat_template
        if given and given != "chatml" and _NAME.fullmatch(given):
            raise InputError(
                f"--chat-template is {given!r}, and its Jinja text is expected, or chatml; llama.cpp's other built-in templates "
                "are not here: most models bring their own, and --chat-template-file takes one from a file"
            )
        return given
    try:
        return options.chat_template_file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(f"cannot read the chat template {options.chat_template_file}: {error}") from error
