"""The side that is to be trusted: our media half, and the text half through llama.cpp."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from diptych import prompt
from diptych.encoder.half import encoded
from diptych.engine.sequence import Span, place
from diptych.errors import ContextOverflow, EngineError
from diptych.families.base import MediaHalf, Rows
from diptych.llama.context import Context
from diptych.llama.model import TextModel
from diptych.options import Options
from diptych.positions import Positions
from diptych.positions import text as text_positions
from diptych.types import Batch, Media, MediaChunk, Message, Request, Segment, Source, TextChunk
from diptych.verify.side import MEDIA, Answer, Side, lead

N_ANSWER = 16  # greedy tokens compared


class Ours:
    """Both halves, looked into step by step. `text` is None for a media half alone."""

    def __init__(self, half: MediaHalf, text: TextModel | None, options: Options) -> None:
        self.half, self.text = half, text
        self.settings = options.media
        self._greedy = Greedy(text, options) if text else None

    def close(self) -> None:
        """Free what answers; the halves are the caller's."""
        if self._greedy:
            self._greedy.close()

    def see(self, picture: Media, question: str, rows: Sequence[Rows] | None = None) -> Side:
        """The whole of a prompt with one picture, and the greedy answer where there is a text half.

        `rows` stand in the place of those of the media half, a chunk each. Raises MediaError for a picture that the
        model cannot take, ContextOverflow for one that is too large.
        """
        spans, end = self._spans(picture, question)
        chunks = [span.chunk for span in spans if isinstance(span.chunk, MediaChunk)]
        rows = encoded(self.half, chunks) if rows is None else rows
        tokens = [t for s in spans for t in (s.chunk.tokens if isinstance(s.chunk, TextChunk) else [MEDIA] * s.chunk.n_tokens)]
        parts = [s.chunk if isinstance(s.chunk, MediaChunk) else s.chunk.n_tokens for s in spans]
        fed = [array.ravel() for chunk in chunks for piece in chunk.pieces for array in piece.inputs.values()]
        return Side(
            rows=np.concatenate(rows),
            tokens=tuple(tokens),
            positions=positions_of(self.half, parts),
            pixels=np.concatenate(fed) if fed else None,
            answer=self._greedy.answer(spans, end, rows) if self._greedy else None,
        )

    def _spans(self, picture: Media, question: str) -> tuple[tuple[Span, ...], int]:
        if self.text is None:
            return place(self.half.preprocess(picture, self.settings), self.half)
        request = Request((Message("user", (Source(picture.kind), question)),), media=self.settings)
        template = prompt.ChatTemplate(self.text.chat_template, self.text.bos, self.text.eos)
        chunks = self.half.preprocess(picture, self.settings)
        return place(prompt.build(request, template, self.text, self.half, lambda _: chunks), self.half)


class Greedy:
    """A text half that says the likeliest token, again and again."""

    def __init__(self, text: TextModel, options: Options) -> None:
        self._text = text
        self._context = Context(text, options)

    def close(self) -> None:
        """Free the context."""
        self._context.close()

    def answer(self, spans: Sequence[Span], end: int, rows: Sequence[Rows]) -> Answer:
        """Up to N_ANSWER tokens behind a prompt whose media rows are `rows`, a chunk each. Raises ContextOverflow."""
        n = sum(span.chunk.n_tokens for span in spans)
        if n + N_ANSWER > self._context.n_ctx:
            raise ContextOverflow(
                f"the prompt has {n} tokens and the context holds {self._context.n_ctx}; set a larger n_ctx (-c)"
            )
        self._context.clear()
        left = iter(rows)
        for span in spans:
            self._prefill(span, next(left) if isinstance(span.chunk, MediaChunk) else None, span is spans[-1])
        tokens: list[int] = []
        leads: list[float] = []
        while True:
            logits = self._context.logits_view(0)
            tokens.append(int(logits.argmax()))
            leads.append(lead(logits))
            if self._text.is_end(tokens[-1]) or len(tokens) == N_ANSWER:
                return Answer(tuple(tokens), tuple(leads))
            self._decode(self._tokens(tokens[-1:], end + len(tokens) - 1, True))

    def _prefill(self, span: Span, rows: Rows | None, last: bool) -> None:
        """Decode a chunk, in parts of at most n_batch rows where its rows see only those before them."""
        n = span.chunk.n_tokens
        step = self._context.n_batch if span.causal else n
        for start in range(0, n, step):
            part, wants = slice(start, min(start + step, n)), last and start + step >= n
            if rows is not None and span.planes is not None:
                self._decode(Segment(0, span.planes[:, part], embeddings=rows[part], wants_logits=wants), span.causal)
            elif isinstance(span.chunk, TextChunk):
                self._decode(self._tokens(span.chunk.tokens[part], span.position + start, wants))

    def _tokens(self, tokens: Sequence[int], start: int, wants_logits: bool) -> Segment:
        planes, _ = text_positions(len(tokens), start, self._text.n_pos)
        return Segment(0, planes, tokens=np.array(tokens, np.int32), wants_logits=wants_logits)

    def _decode(self, segment: Segment, causal: bool = True) -> None:
        if not self._context.decode(Batch((segment,), causal)):
            raise EngineError("the KV cache has no room for the prompt; set a larger n_ctx (-c)")


def positions_of(half: MediaHalf, parts: Sequence[int | MediaChunk]) -> Positions:
    """(n_pos, n) planes of a prompt: so many text tokens, or the rows of a media chunk, one behind the other."""
    planes, start = [], 0
    for part in parts:
        made, start = text_positions(part, start, half.n_pos) if isinstance(part, int) else half.positions(part, start)
        planes.append(made)
    return np.concatenate(planes, axis=1)
