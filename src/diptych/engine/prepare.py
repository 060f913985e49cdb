"""A request → a sequence: fetch and preprocess media, render the template, tokenise, and see whether it all fits."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial

from diptych import prompt
from diptych.engine.answer import Answer, Emit
from diptych.engine.sequence import Sequence, Span, place
from diptych.errors import ContextOverflow, InputError
from diptych.families.base import MediaHalf
from diptych.llama.context import Context
from diptych.llama.model import TextModel
from diptych.media.load import load
from diptych.options import Options
from diptych.types import MediaChunk, MediaSettings, Request, Source


class Preparation:
    """All that making sequences takes. Its one method runs on worker threads and reads the vocabulary only."""

    def __init__(self, text: TextModel, half: MediaHalf | None, context: Context, options: Options) -> None:
        """A text half without a chat template gets ChatML."""
        self._template = prompt.ChatTemplate(text.chat_template, text.bos, text.eos)
        self.template_source = self._template.source
        self._text, self._half, self._options = text, half, options
        self._n_ctx, self._n_ubatch = context.n_ctx, context.n_ubatch

    def sequence(self, request: Request, emit: Emit, started: float) -> Sequence:
        """The sequence of a request that came at `started`.

        Raises InputError for what cannot be served, MediaError for media that cannot be used, ContextOverflow for a
        prompt that is too long.
        """
        begun = time.perf_counter()
        _check_request(request)
        request = replace(request, media=self._settings(request))
        chunks = prompt.build(request, self._template, self._text, self._half, partial(self._chunks, request.media))
        spans, end = place([chunk for chunk in chunks if chunk.n_tokens], self._half)
        self._check_fit(spans)
        answer = Answer(emit, request.stop, started, 1e3 * (time.perf_counter() - begun))
        return Sequence(request, spans, end, self._text.n_pos, answer)

    def _chunks(self, settings: MediaSettings, source: Source) -> list[MediaChunk]:
        """Fetch, decode and preprocess a media part."""
        assert self._half is not None  # a prompt with media is refused where nothing can see them
        return self._half.preprocess(load(source, max_pixels=self._options.media_max_pixels), settings)

    def _settings(self, request: Request) -> MediaSettings:
        """What the request asks of preprocessing, and the options where it says nothing."""
        asked, options = request.media, self._options
        return replace(
            asked,
            min_pixels=options.min_pixels if asked.min_pixels is None else asked.min_pixels,
            max_pixels=options.max_pixels if asked.max_pixels is None else asked.max_pixels,
        )

    def _check_fit(self, spans: tuple[Span, ...]) -> None:
        n = sum(span.chunk.n_tokens for span in spans)
        if not n:
            raise InputError("the prompt is empty; say something")
        if n > self._n_ctx:
            n_media = sum(span.chunk.n_tokens for span in spans if isinstance(span.chunk, MediaChunk))
            raise ContextOverflow(
                f"the prompt has n_tokens {n}, {n_media} of them of pictures, and the context holds n_ctx {self._n_ctx}; "
                "shorten it, lower max_pixels, or set a larger n_ctx"
            )
        for span in spans:
            if not span.causal and span.chunk.n_tokens > self._n_ubatch:
                raise InputError(
                    f"a picture of {span.chunk.n_tokens} tokens has to be decoded at once, and n_ubatch is {self._n_ubatch}; "
                    "set a larger n_ubatch and n_batch, or lower max_pixels"
                )


def _check_request(request: Request) -> None:
    if not request.messages and request.prompt is None:
        raise InputError("the request has no messages; send at least one")
    if request.max_tokens is not None and request.max_tokens < 1:
        raise InputError(f"max_tokens is {request.max_tokens}; it must be 1 or more")
    if "" in request.stop:
        raise InputError("a stop string is empty, and would end every answer at once; leave it out")
