"""Embeddings of texts and media: the hidden states of a prompt, pooled, out of a context of their own.

Rows are pooled here and not in llama.cpp, which computes logits for every row that it gives the hidden state of: a few
rows a call keep that small, and the last row alone is all that pooling `last` needs.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence as List
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from diptych.encoder.encoder import Encoder
from diptych.engine.encode import encoded
from diptych.engine.pool import Pool, normalized
from diptych.engine.prepare import Preparation
from diptych.engine.sequence import Sequence
from diptych.errors import ContextOverflow, EngineError, NotSupported, Unavailable
from diptych.llama.context import Context
from diptych.llama.model import TextModel
from diptych.options import Options, Pooling
from diptych.types import Batch, Request, Segment

EUCLIDEAN = 2
_N_SEQ = 16  # prompts in one call; each of a recurrent model takes memory for its state
_LOGITS_BYTES = 64 * 2**20  # of the rows whose hidden states one call gives
_POOLING: dict[str, Pooling] = {"0": "none", "1": "mean", "2": "cls", "3": "last"}  # llama_pooling_type; 4 ranks


@dataclass(frozen=True, eq=False)
class Embedding:
    """The (n, n_embd) rows of a prompt, one unless it is not pooled, and the tokens and media rows it had."""

    rows: NDArray[np.float32]
    n_tokens: int


class Embedder:
    """Embeds prompts, those of one call side by side. Any thread may call it; they take turns.

    `pooling` is which rows an embedding is made of: `none` leaves them as they are, as llama-server does where neither
    the options nor the model says.
    """

    def __init__(self, text: TextModel, encoder: Encoder | None, preparation: Preparation, options: Options) -> None:
        """Set the memory aside. Raises NotSupported for a model that ranks, EngineError where there is too little memory."""
        self.pooling = options.pooling or _own_pooling(text)
        self._text, self._encoder, self._preparation = text, encoder, preparation
        self._options = options.model_copy(update={"n_parallel": options.n_parallel if text.recurrent else _N_SEQ})
        self._lock = threading.Lock()
        self._closed = False
        most = 0 if self.pooling == "last" else _LOGITS_BYTES // (4 * text.n_vocab)
        self._context = self._opened(min(options.n_batch, max(_N_SEQ, most)))

    def embed(self, requests: List[Request], normalize: int = EUCLIDEAN, gone: threading.Event | None = None) -> list[Embedding]:
        """The embedding of each prompt; equal prompts are computed once. `normalize` is as in `normalized`.

        Raises what preparing and encoding raise, ContextOverflow for a prompt that is too long, EngineError when
        decoding fails, once closed, or once `gone` is set, when nobody waits for them any more.
        """
        sequences = []
        for request in requests:
            self._check_wanted(gone)
            sequences.append(self._prepared(request))
        self._encode(sequences, gone)
        names = [_name(sequence) for sequence in sequences]
        distinct = dict(zip(names, sequences, strict=True))
        found: list[NDArray[np.float32]] = []
        for group in self._grouped(list(distinct.values())):
            with self._lock:  # between two groups others have their turn
                self._check_wanted(gone)
                found += self._run(group)
        if self.pooling != "none":
            found = [normalized(rows, normalize) for rows in found]
        by_name = dict(zip(distinct, found, strict=True))
        return [Embedding(by_name[name], s.n_prompt) for name, s in zip(names, sequences, strict=True)]

    def close(self) -> None:
        """Free the memory behind the call that is served; a second time does nothing."""
        with self._lock:
            self._closed = True
            self._context.close()

    def _check_wanted(self, gone: threading.Event | None) -> None:
        if self._closed:
            raise Unavailable("the engine is closed; load it again before using it")
        if gone is not None and gone.is_set():
            raise EngineError("nobody waits for these embeddings any more")

    def _opened(self, n_outputs: int) -> Context:
        """A context that gives the hidden states of `n_outputs` rows in one call."""
        context = Context(self._text, self._options, unified=True, n_outputs=n_outputs)
        if context.has_memory and context.causal:
            return context
        context.close()
        n = min(self._options.n_ubatch, self._text.n_ctx_train)  # behind that there are no positions
        return Context(self._text, self._options.model_copy(update={"n_batch": n, "n_ubatch": n}), n_outputs=n)

    @property
    def _n_given(self) -> int:
        """The most rows whose hidden states one call gives."""
        return min(self._context.n_outputs, self._context.n_batch)

    @property
    def _whole(self) -> bool:
        """Whether a prompt is decoded in one call."""
        return not (self._context.has_memory and self._context.causal)

    def _prepared(self, request: Request) -> Sequence:
        """The sequence of a request; a prompt that begins with text ends as the vocabulary says."""
        if request.prompt is not None and not (request.prompt and isinstance(request.prompt[0], int)):
            request = replace(request, prompt=(*request.prompt, *self._text.suffix_tokens))
        try:
            sequence = self._preparation.sequence(request, lambda _: None, time.perf_counter())
        except ContextOverflow as error:
            raise self._too_large(error.n_prompt, error.n_ctx) from error
        if self._whole and sequence.n_prompt > self._context.n_ubatch:
            raise self._too_large(sequence.n_prompt, self._context.n_ctx)
        return sequence

    def _too_large(self, n: int, n_ctx: int) -> ContextOverflow:
        if not self._whole:
            return ContextOverflow(f"the input of {n} tokens is too large for n_ctx {n_ctx}; shorten it or set more", n, n_ctx)
        most = self._context.n_ubatch
        what = f"the input of {n} tokens is too large: the model reads it at once, and at most {most} tokens"
        return ContextOverflow(f"{what}; shorten it, or set a larger n_ubatch where the model has room for more", n, most)

    def _encode(self, sequences: List[Sequence], gone: threading.Event | None) -> None:
        """Give every media chunk its rows."""
        places = [(sequence, i, chunk) for sequence in sequences for i, _, chunk in sequence.media]
        chunks = encoded([chunk for _, _, chunk in places], self._encoder, gone)
        for (sequence, i, _), chunk in zip(places, chunks, strict=True):
            assert chunk.rows is not None
            sequence.rows[i] = chunk.rows

    def _grouped(self, sequences: List[Sequence]) -> list[list[Sequence]]:
        """Sequences that go side by side: as many as fit one call, so that each is as quick as alone."""
        most = self._n_given if self._whole else self._context.n_batch
        groups: list[list[Sequence]] = []
        for sequence in sequences:
            if not groups or len(groups[-1]) == self._options.n_parallel or _n_rows([*groups[-1], sequence]) > most:
                groups.append([])
            groups[-1].append(sequence)
        return groups

    def _run(self, group: List[Sequence]) -> list[NDArray[np.float32]]:
        """The pooled rows of each sequence."""
        self._make_room(group)
        self._context.clear()
        pools = [Pool(self.pooling) for _ in group]
        for slot, sequence in enumerate(group):
            sequence.slot, sequence.cursor = slot, 0
        while waiting := [s for s in group if s.cursor < s.n_prompt]:
            if not self._step(waiting, pools):
                if len(group) == 1:
                    raise EngineError(f"the KV cache has no room for {group[0].n_prompt} rows; set a larger n_ctx")
                return [rows for sequence in group for rows in self._run([sequence])]
        return [pool.rows() for pool in pools]

    def _make_room(self, group: List[Sequence]) -> None:
        """See that the hidden states of a picture whose rows all see each other can be given at once."""
        spans = [s for sequence in group for s in (sequence.spans[-1:] if self.pooling == "last" else sequence.spans)]
        n = max((span.chunk.n_tokens for span in spans if not span.causal), default=0)
        if n > self._n_given:
            self._context.close()
            self._context = self._opened(n)

    def _step(self, waiting: List[Sequence], pools: List[Pool]) -> bool:
        """Decode the next rows of the first and of those that can go with it; False where the cache has no room."""
        first, gives = waiting[0], self._gives(waiting[0])
        room = self._n_given if gives else self._context.n_batch
        going: list[tuple[Sequence, Segment]] = []
        for sequence in waiting if first.causal else [first]:
            alike = (sequence.kind, sequence.causal, self._gives(sequence)) == (first.kind, first.causal, gives)
            if alike and (n := min(self._n_next(sequence), room)):
                going.append((sequence, sequence.segment(n)))
                room -= n
        batch = Batch(tuple(segment for _, segment in going), first.causal)
        if gives:
            rows = self._context.embed(batch)
            done = rows is not None
        else:
            rows, done = None, self._context.decode(batch)
        start = 0
        for sequence, segment in going if done else ():
            sequence.cursor += segment.n_rows
            if rows is not None:
                pools[segment.seq_id].add(rows[start : start + segment.n_rows])
                start += segment.n_rows
        return done

    def _gives(self, sequence: Sequence) -> bool:
        """Whether the hidden states of the next rows are needed."""
        last = sequence.cursor == sequence.n_prompt - 1
        whole = not sequence.causal and sequence.cursor + sequence.n_ready == sequence.n_prompt
        return self.pooling != "last" or self._whole or last or whole

    def _n_next(self, sequence: Sequence) -> int:
        """The rows that can be decoded next: the last row waits for a call that gives its hidden state."""
        if self._gives(sequence) or not sequence.causal:
            return sequence.n_ready
        return min(sequence.n_ready, sequence.n_prompt - 1 - sequence.cursor)


def _own_pooling(text: TextModel) -> Pooling:
    number = text.metadata.get(f"{text.metadata.get('general.architecture')}.pooling_type", "0")
    if number not in _POOLING:
        raise NotSupported(f"{text.path} ranks documents (pooling_type {number}), and embeddings need another pooling; set one")
    return _POOLING[number]


def _name(sequence: Sequence) -> bytes:
    """What equal prompts have in common and others do not."""
    return sequence.ids.tobytes() + b"".join(chunk.key for _, _, chunk in sequence.media)


def _n_rows(sequences: List[Sequence]) -> int:
    return sum(sequence.n_prompt for sequence in sequences)
