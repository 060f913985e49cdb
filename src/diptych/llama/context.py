"""A context: the KV cache of several sequences, and the calls that decode batches into it."""

from __future__ import annotations

import ctypes
import os
from typing import TYPE_CHECKING

import llama_cpp.llama_cpp as lib
import numpy as np
import psutil
from numpy.typing import NDArray

from diptych.errors import EngineError
from diptych.llama import log
from diptych.llama.batch import BatchArrays
from diptych.llama.native import Native, Pointer
from diptych.options import Options
from diptych.types import Batch, Segment

if TYPE_CHECKING:
    from diptych.llama.model import TextModel

# name → ggml_type and bytes a value (ggml.h; quantised types hold 32 values a block)
CACHE_TYPES = {
    "f32": (0, 4.0),
    "f16": (1, 2.0),
    "bf16": (30, 2.0),
    "q8_0": (8, 34 / 32),
    "q4_0": (2, 18 / 32),
    "q4_1": (3, 20 / 32),
    "iq4_nl": (20, 18 / 32),
    "q5_0": (6, 22 / 32),
    "q5_1": (7, 24 / 32),
}
_FLASH_ATTENTION = {"auto": -1, "off": 0, "on": 1}  # llama_flash_attn_type
_UNQUANTISED = ("f32", "f16", "bf16")
_NO_SLOT = 1  # llama_decode: no room in the KV cache
_N_CTX_LIMIT = 2**31 - 1  # positions are int32


class Context(Native):
    """A context of a text model. `n_ctx`, `n_batch` and `n_ubatch` are what llama.cpp made of what was asked.

    `n_ctx` is shared by all sequences (`unified`, by default as the options say), or divided among them: `n_ctx_slot` is
    what one may have. `n_outputs` is the most rows of logits a
    batch may ask for, by default one a sequence, or rows that `embed` takes: memory for logits is set aside for each.
    `has_memory` is whether there is a KV cache, which models that only embed have not; `causal` whether rows see only
    those before them. Where either is not so a sequence is decoded whole, in one call of at most `n_ubatch`.
    """

    def __init__(
        self,
        model: TextModel,
        options: Options = Options(),  # noqa: B008 - frozen
        *,
        unified: bool | None = None,
        n_outputs: int | None = None,
    ) -> None:
        self.n_outputs = max(n_outputs or 0, options.n_parallel)
        _check(model, options)
        params = _params(options, self.n_outputs)
        params.kv_unified = self.unified = options.kv_unified if unified is None else unified
        with log.watch() as errors:
            pointer = lib.llama_init_from_model(model.pointer, params)
        if not pointer:
            raise EngineError(f"cannot make a context of {_asked(model, options)}: {log.reason(errors)}")
        super().__init__("context", pointer, lib.llama_free, model)
        self.model = model
        self.n_ctx: int = lib.llama_n_ctx(pointer)
        self.n_ctx_slot: int = lib.llama_n_ctx_seq(pointer)
        self.n_batch: int = lib.llama_n_batch(pointer)
        self.n_ubatch: int = lib.llama_n_ubatch(pointer)
        self._memory: int | None = lib.llama_get_memory(pointer)
        self.has_memory = bool(self._memory)
        self.causal = bool(lib.llama_get_causal_attn(pointer))
        self._arrays = BatchArrays(
            self.n_batch, model.n_pos, model.n_embd_inp, model.n_vocab, n_seq=options.n_parallel, n_outputs=self.n_outputs
        )
        self._outputs: list[int] = []

    def decode(self, batch: Batch) -> bool:
        """Compute a batch and keep it in the KV cache; False where the cache has no room for it.

        Raises InputError for rows that would spoil the cache, EngineError for a batch that is not sound or that
        llama.cpp refuses.
        """
        self._outputs = []
        if not self.has_memory:  # llama.cpp would make every row an output, and abort where there are too many
            raise EngineError(f"{self.model.path} has no KV cache, so that it only embeds; load a model that generates")
        struct, outputs = self._arrays.fill(batch)
        if not self._run(struct, batch.causal):
            return False
        self._outputs = outputs
        return True

    def embed(self, batch: Batch) -> NDArray[np.float32] | None:
        """As `decode`, for the (n, n_embd) hidden states of all rows, at most `n_outputs`; None where there is no room.

        They are those behind the last norm. llama.cpp computes and keeps the logits of every one of these rows as well.
        """
        pointer = self.pointer
        self._outputs = []
        struct, _ = self._arrays.fill(batch, every=True)
        lib.llama_set_embeddings(pointer, True)
        try:
            if not self._run(struct, batch.causal):
                return None
            rows = lib.llama_get_embeddings(pointer)
            if not rows:
                raise EngineError(f"llama.cpp gives no embeddings for {self.model.path}; load a model that has them")
            return np.ctypeslib.as_array(rows, (struct.n_tokens, self.model.n_embd_out)).copy()
        finally:
            lib.llama_set_embeddings(pointer, False)

    def _run(self, struct: lib.llama_batch, causal: bool) -> bool:
        """One call; False where the cache has no room."""
        pointer = self.pointer
        if not (causal and self.causal) and struct.n_tokens > self.n_ubatch:
            # llama.cpp aborts the whole process over this
            raise EngineError(
                f"a batch of {struct.n_tokens} rows that all see each other needs n_ubatch of as many; it is {self.n_ubatch}"
            )
        with log.watch() as errors:
            code = self._decode(pointer, struct, causal)
        if code and code != _NO_SLOT:
            raise EngineError(f"llama.cpp could not decode a batch of {struct.n_tokens} rows ({code}): {log.reason(errors)}")
        return not code

    def _decode(self, pointer: Pointer, struct: lib.llama_batch, causal: bool) -> int:
        """Whether attention is causal is a switch of the whole context, put back whatever happens."""
        if causal or not self.causal:
            return int(lib.llama_decode(pointer, struct))
        lib.llama_set_causal_attn(pointer, False)
        try:
            return int(lib.llama_decode(pointer, struct))
        finally:
            lib.llama_set_causal_attn(pointer, True)

    def use_threads(self, n: int) -> None:
        """Compute with `n` threads from the next batch on."""
        if n != self.n_threads:
            lib.llama_set_n_threads(self.pointer, n, n)

    @property
    def n_threads(self) -> int:
        """Threads that compute."""
        return int(lib.llama_n_threads(self.pointer))

    def logits(self, i: int) -> NDArray[np.float32]:
        """(n_vocab,) logits of the `i`-th segment of the last batch that wanted them, a copy."""
        return self.logits_view(i).copy()

    def logits_view(self, i: int) -> NDArray[np.float32]:
        """As `logits`, in llama.cpp's own memory: valid until the next batch."""
        pointer = self.pointer
        if not 0 <= i < len(self._outputs):
            raise EngineError(f"logits {i} were asked for; the last batch gave {len(self._outputs)}")
        row = lib.llama_get_logits_ith(pointer, self._outputs[i])
        if not row:
            raise EngineError("llama.cpp has no logits for a row that asked for them")
        return np.ctypeslib.as_array(row, (self.model.n_vocab,))

    def remove(self, seq_id: int, start: int, end: int = -1) -> bool:
        """Forget positions `start` to `end` (-1: all behind) of a sequence; False where the model cannot (then `clear`)."""
        self.pointer  # noqa: B018 - raises when closed
        return bool(lib.llama_memory_seq_rm(self._memory, seq_id, start, end))

    def warm_up(self) -> None:
        """Decode one token and forget it, so that weights are in memory and buffers made when the first request comes."""
        if self.has_memory:
            zeros = np.zeros((1, 1), np.int32)
            self.decode(Batch((Segment(0, zeros, tokens=zeros[0], wants_logits=True),)))
            self.clear()

    def copy(self, source: int, target: int, end: int) -> bool:
        """Let one sequence have the positions up to `end` of another, without computing or storing them again; False
        where each has a cache of its own."""
        self.pointer  # noqa: B018 - raises when closed
        if self.unified:
            lib.llama_memory_seq_cp(self._memory, source, target, 0, end)
        return self.unified

    def state(self, seq_id: int) -> NDArray[np.uint8]:
        """What the cache holds of a sequence, in bytes for `set_state`."""
        pointer = self.pointer
        data = np.empty(lib.llama_state_seq_get_size(pointer, seq_id), np.uint8)
        if lib.llama_state_seq_get_data(pointer, _octets(data), data.size, seq_id) != data.size:
            raise EngineError(f"llama.cpp could not give the {data.size:,} bytes that it holds of a sequence")
        return data

    def set_state(self, seq_id: int, data: NDArray[np.uint8]) -> bool:
        """Let the cache hold this of a sequence, and nothing else; False where there is no room, or `data` is not of this
        model with this cache. Then it holds nothing of it."""
        pointer = self.pointer
        with log.watch():
            taken = bool(lib.llama_state_seq_set_data(pointer, _octets(data), data.size, seq_id) == data.size)
        if not taken:
            self.remove(seq_id, 0)
        return taken

    def last(self, seq_id: int) -> int:
        """The largest position a sequence holds, -1 when empty."""
        self.pointer  # noqa: B018 - raises when closed
        return int(lib.llama_memory_seq_pos_max(self._memory, seq_id))

    def clear(self) -> None:
        """Forget every sequence."""
        self.pointer  # noqa: B018 - raises when closed
        lib.llama_memory_clear(self._memory, True)


def _octets(data: NDArray[np.uint8]) -> Pointer:
    return data.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))


def default_threads() -> int:
    """The physical cores this process may use: hyperthreads only get in each other's way here."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(psutil.cpu_count(logical=False) or allowed, allowed))


def _params(options: Options, n_outputs: int) -> lib.llama_context_params:
    params = lib.llama_context_default_params()
    params.n_ctx = options.n_ctx
    params.n_batch = options.n_batch
    params.n_ubatch = min(options.n_ubatch, options.n_batch)
    params.n_seq_max = options.n_parallel
    params.n_outputs_max = n_outputs
    params.pooling_type = lib.LLAMA_POOLING_TYPE_NONE  # rows are pooled here, over as many batches as they come in
    params.n_threads = params.n_threads_batch = options.threads or default_threads()
    params.type_k = CACHE_TYPES[options.cache_type_k][0]
    params.type_v = CACHE_TYPES[options.cache_type_v][0]
    params.flash_attn_type = _FLASH_ATTENTION[options.flash_attn]
    params.no_perf = True
    return params


def _check(model: TextModel, options: Options) -> None:
    """Raise EngineError for what llama.cpp would abort over, or get the process killed for."""
    if options.cache_type_v not in _UNQUANTISED and options.flash_attn == "off":
        raise EngineError(
            f"a V cache of type {options.cache_type_v} needs flash attention, which is off; set it to on or auto, "
            "or the V cache to f16"
        )
    if max(options.n_ctx, options.n_batch, options.n_ubatch) > _N_CTX_LIMIT:
        raise EngineError(f"n_ctx, n_batch and n_ubatch end at {_N_CTX_LIMIT}; n_ctx {options.n_ctx} was asked")
    if lib.llama_supports_gpu_offload() and options.n_gpu_layers:
        return  # the cache may lie on the GPU, and there llama.cpp finds out by itself
    need = _cache_bytes(model, options)
    free = psutil.virtual_memory().available + psutil.swap_memory().free
    if need > free:
        raise EngineError(
            f"cannot make a context of {_asked(model, options)}: its KV cache takes {need / 2**30:.1f} GiB and "
            f"{free / 2**30:.1f} GiB of memory are free; ask for a smaller n_ctx or a smaller cache type"
        )


def _cache_bytes(model: TextModel, options: Options) -> float:
    """Size of the KV cache. Memory that is asked for is written to at once, so too much of it is not refused but kills."""
    pointer = model.pointer
    shared: float = lib.llama_model_n_head_kv(pointer) / max(lib.llama_model_n_head(pointer), 1)
    values = (options.n_ctx or model.n_ctx_train) * model.n_layer * model.n_embd * shared
    return values * (CACHE_TYPES[options.cache_type_k][1] + CACHE_TYPES[options.cache_type_v][1])


def _asked(model: TextModel, options: Options) -> str:
    return (
        f"{options.n_ctx or model.n_ctx_train} tokens (n_ctx) for {options.n_parallel} sequences, batches of {options.n_batch}, "
        f"cache {options.cache_type_k}/{options.cache_type_v}"
    )
