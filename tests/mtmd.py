"""libmtmd, llama.cpp's own media half, as an independent reference. Nothing of Diptych's is used here."""

from __future__ import annotations

import ctypes
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import gguf
import llama_cpp.llama_cpp as llama
import llama_cpp.mtmd_cpp as mtmd
import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.float32]
Grid = tuple[int, int]

_log: list[str] = []


@llama.llama_log_callback
def _keep(level: int, text: bytes, user_data: object) -> None:
    _log.append(text.decode(errors="replace"))
    del _log[:-50]


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep llama.cpp's lines for the time of a call; its callback is the process's, and goes back to who set it."""
    callback, data = llama.llama_log_callback(), ctypes.c_void_p()
    llama.llama_log_get(ctypes.byref(callback), ctypes.byref(data))
    llama.llama_log_set(_keep, None)
    try:
        yield
    finally:
        llama.llama_log_set(callback, data)


class Mtmd:
    """An mmproj in libmtmd. Without a text model a stand-in of a few tokens is made, which it asks for but does not run.

    `min_tokens` and `max_tokens` bound the rows of an image (None: as the file says). `n_embd` is the width of a row
    where it is not the file's projection_dim. `n_threads` None takes 2.
    """

    def __init__(
        self,
        mmproj: Path,
        text: Path | None = None,
        *,
        min_tokens: int | None = None,
        max_tokens: int | None = None,
        n_threads: int = 2,
        n_embd: int | None = None,
        architecture: str = "qwen2vl",
        flash_attn: bool | None = None,
    ) -> None:
        self._model = self._ctx = None
        mtmd.mtmd_helper_log_set(_keep, None)
        self._model = _vocabulary(text, architecture)
        self.n_embd = n_embd or _projection_dim(mmproj)
        params = mtmd.mtmd_context_params_default()
        params.use_gpu = params.print_timings = params.warmup = False
        params.n_threads = n_threads
        params.image_min_tokens = -1 if min_tokens is None else min_tokens
        params.image_max_tokens = -1 if max_tokens is None else max_tokens
        if flash_attn is not None:
            params.flash_attn_type = int(flash_attn)
        with _quiet():
            self._ctx = mtmd.mtmd_init_from_file(str(mmproj).encode(), self._model, params)
        if not self._ctx:
            raise RuntimeError("libmtmd: " + "".join(_log[-5:]))

    def encode(self, image: NDArray[np.uint8]) -> tuple[Rows, Grid]:
        """(h, w, 3) RGB → the (n, n_embd) rows of an image that becomes one chunk, and its (nx, ny) grid."""
        (chunk,) = self.chunks(image)
        return chunk

    def chunks(self, image: NDArray[np.uint8]) -> list[tuple[Rows, Grid]]:
        """(h, w, 3) RGB → rows and grid of every media chunk it becomes, in order."""
        with self._tokenized(mtmd.mtmd_default_marker().decode(), [image]) as (_, made):
            return [self._run(c) for c in made if mtmd.mtmd_input_chunk_get_type(c) == mtmd.MTMD_INPUT_CHUNK_TYPE_IMAGE]

    def planes(self, images: Sequence[NDArray[np.uint8]], start: int) -> list[tuple[NDArray[np.int32], int]]:
        """The (4, n) planes t, y, x and z of pictures prepared in one call, all as from `start` on, and the next positions."""
        out = []
        with self._tokenized(mtmd.mtmd_default_marker().decode() * len(images), images) as (_, made):
            for chunk in made:
                if tokens := mtmd.mtmd_input_chunk_get_tokens_image(chunk):
                    n = mtmd.mtmd_input_chunk_get_n_tokens(chunk)
                    at = [mtmd.mtmd_image_tokens_get_decoder_pos(tokens, start, i) for i in range(n)]
                    planes = np.array([[p.t, p.y, p.x, p.z] for p in at], np.int32).T
                    out.append((planes, start + mtmd.mtmd_input_chunk_get_n_pos(chunk)))
        return out

    def greedy(self, prompt: str, media: Sequence[NDArray[np.uint8]], n: int) -> list[int]:
        """`n` greedy tokens behind a prompt with a marker for each picture (pixels) or recording (the bytes of a WAV), as
        libmtmd's own helper evaluates it. Needs the whole text model."""
        params = llama.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch, params.n_threads, params.n_threads_batch = 2048, 1024, 1024, 1, 1
        params.type_k = params.type_v = params.flash_attn_type = 0
        with _quiet(), self._tokenized(prompt, media) as (chunks, _):
            context = llama.llama_init_from_model(self._model, params)
            try:
                past = llama.llama_pos(0)
                if mtmd.mtmd_helper_eval_chunks(self._ctx, context, chunks, 0, 0, 1024, True, ctypes.byref(past)):
                    raise RuntimeError("mtmd_helper_eval_chunks: " + "".join(_log[-5:]))
                return [self._greedy(context) for _ in range(n)]
            finally:
                llama.llama_free(context)

    def _greedy(self, context: int) -> int:
        """The likeliest next token, which is decoded in turn."""
        n_vocab = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(self._model))
        token = int(np.ctypeslib.as_array(llama.llama_get_logits_ith(context, -1), (n_vocab,)).argmax())
        llama.llama_decode(context, llama.llama_batch_get_one((llama.llama_token * 1)(token), 1))
        return token

    @contextmanager
    def _tokenized(self, prompt: str, media: Sequence[NDArray[np.uint8]]) -> Iterator[tuple[int, list[int]]]:
        """The chunks of a prompt, and the pointer of each: pictures are pixels, recordings the bytes of a file."""
        bitmaps = [self._picture(m) if m.ndim == 3 else self._recording(m) for m in media]
        chunks, data = mtmd.mtmd_input_chunks_init(), prompt.encode()
        try:
            text = mtmd.mtmd_input_text(data, len(data), False, True)
            given = (ctypes.c_void_p * len(bitmaps))(*bitmaps)
            if code := mtmd.mtmd_tokenize(self._ctx, chunks, ctypes.byref(text), given, len(bitmaps)):
                raise RuntimeError(f"mtmd_tokenize: {code}: " + "".join(_log[-5:]))
            yield chunks, [mtmd.mtmd_input_chunks_get(chunks, i) for i in range(mtmd.mtmd_input_chunks_size(chunks))]
        finally:
            mtmd.mtmd_input_chunks_free(chunks)
            for bitmap in bitmaps:
                mtmd.mtmd_bitmap_free(bitmap)

    def _picture(self, image: NDArray[np.uint8]) -> int:
        image = np.ascontiguousarray(image, np.uint8)
        height, width, _ = image.shape
        return mtmd.mtmd_bitmap_init(width, height, image.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8)))

    def _recording(self, data: NDArray[np.uint8]) -> int:
        pointer = data.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        return mtmd.mtmd_helper_bitmap_init_from_buf(self._ctx, pointer, data.size, False)

    def _run(self, chunk: int) -> tuple[Rows, Grid]:
        tokens = mtmd.mtmd_input_chunk_get_tokens_image(chunk)
        grid = mtmd.mtmd_image_tokens_get_nx(tokens), mtmd.mtmd_image_tokens_get_ny(tokens)
        if code := mtmd.mtmd_encode_chunk(self._ctx, chunk):
            raise RuntimeError(f"mtmd_encode_chunk: {code}: " + "".join(_log[-5:]))
        shape = mtmd.mtmd_input_chunk_get_n_tokens(chunk), self.n_embd
        return np.ctypeslib.as_array(mtmd.mtmd_get_output_embd(self._ctx), shape).copy(), grid

    def close(self) -> None:
        """Free both models."""
        if self._ctx:
            mtmd.mtmd_free(self._ctx)
        if self._model:
            llama.llama_model_free(self._model)
        self._ctx = self._model = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


def _projection_dim(mmproj: Path) -> int:
    reader = gguf.GGUFReader(mmproj)
    for side in "vision", "audio":
        if field := reader.get_field(f"clip.{side}.projection_dim"):
            return int(field.contents())
    raise RuntimeError(f"{mmproj} has no projection_dim")


def _vocabulary(text: Path | None, architecture: str) -> int:
    """A text model; the vocabulary of a stand-in of four tokens where there is none."""
    params = llama.llama_model_default_params()
    params.vocab_only = text is None
    params.n_gpu_layers = 0
    with _quiet(), tempfile.TemporaryDirectory() as folder:
        path = text or _stand_in(Path(folder) / "stand-in.gguf", architecture)
        model = llama.llama_model_load_from_file(str(path).encode(), params)
    if not model:
        raise RuntimeError(f"{text}: " + "".join(_log[-5:]))
    return model


def _stand_in(path: Path, architecture: str) -> Path:
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(["a", "b", "ab", "<|end|>"])
    writer.add_token_merges(["a b"])
    writer.add_token_types([gguf.TokenType.NORMAL] * 3 + [gguf.TokenType.CONTROL])
    writer.add_eos_token_id(3)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path
