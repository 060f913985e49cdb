"""libmtmd, llama.cpp's own media half: an mmproj that is loaded, and what it makes of a picture or a sound.

Calls go through `guard`: libmtmd aborts over a tensor of the wrong shape as it does over a recording of one sample.
"""

from __future__ import annotations

import ctypes
import os
import re
import threading
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import llama_cpp.mtmd_cpp as lib
import numpy as np
from numpy.typing import NDArray

from diptych.errors import (
    DiptychError,
    EngineError,
    FileError,
    InputError,
    MediaError,
    MismatchedHalves,
    UnknownModel,
    UnusableMedia,
)
from diptych.families.base import Rows
from diptych.llama import log
from diptych.llama.context import default_threads
from diptych.llama.guard import guarded
from diptych.llama.model import TextModel
from diptych.llama.native import Native, Pointer
from diptych.options import Options
from diptych.positions import Positions

_FLASH_ATTENTION = {"auto": -1, "off": 0, "on": 1}  # llama_flash_attn_type
_WIDTHS = re.compile(r"text model \(n_embd = (\d+)\) and mmproj \(n_embd = (\d+)\)")
_LEAD = re.compile(r"^failed to load model '.*?': (?:\w+: )*")
Kind = Literal["image", "audio"]
_KINDS: dict[int, Kind] = {lib.MTMD_INPUT_CHUNK_TYPE_IMAGE: "image", lib.MTMD_INPUT_CHUNK_TYPE_AUDIO: "audio"}


class WrongWidth(MismatchedHalves):
    """An mmproj gives rows of width `n_embd`, and the text half takes others."""

    def __init__(self, message: str, n_embd: int) -> None:
        super().__init__(message)
        self.n_embd = n_embd


@dataclass(frozen=True)
class Limits:
    """The fewest and the most rows of a picture; None leaves it to libmtmd and the file."""

    min_tokens: int | None = None
    max_tokens: int | None = None


class Prepared(Native):
    """What libmtmd made of one media part: texts and media chunks as they follow each other, told by their index."""

    def __init__(self, pointer: Pointer) -> None:
        super().__init__("prepared media", pointer, lib.mtmd_input_chunks_free)

    def __len__(self) -> int:
        return int(lib.mtmd_input_chunks_size(self.pointer))

    def chunk(self, i: int) -> Pointer:
        """The C pointer of a chunk."""
        return lib.mtmd_input_chunks_get(self.pointer, i)

    def kind(self, i: int) -> Kind | None:
        """What a chunk is of; None for text."""
        return _KINDS.get(lib.mtmd_input_chunk_get_type(self.chunk(i)))

    def tokens(self, i: int) -> tuple[int, ...]:
        """The tokens of a text; -1 stands for one that the vocabulary lacks."""
        n = ctypes.c_size_t()
        tokens = lib.mtmd_input_chunk_get_tokens_text(self.chunk(i), ctypes.byref(n))
        return tuple(tokens[: n.value])

    def n_tokens(self, i: int) -> int:
        """The rows of a media chunk."""
        return int(lib.mtmd_input_chunk_get_n_tokens(self.chunk(i)))

    def grid(self, i: int) -> tuple[int, int]:
        """Columns and lines of a media chunk; all rows and 1 where its place in the picture plays no part."""
        image = lib.mtmd_input_chunk_get_tokens_image(self.chunk(i))
        if not image:
            return self.n_tokens(i), 1
        return int(lib.mtmd_image_tokens_get_nx(image)), int(lib.mtmd_image_tokens_get_ny(image))

    def positions(self, i: int, start: int) -> tuple[Positions, int]:
        """(4, n) planes t, y, x and z of a media chunk, and the position behind it."""
        n, chunk = self.n_tokens(i), self.chunk(i)
        end = start + int(lib.mtmd_input_chunk_get_n_pos(chunk))
        image = lib.mtmd_input_chunk_get_tokens_image(chunk)
        if not image:
            return np.tile(np.arange(start, start + n, dtype=np.int32), (4, 1)), end
        places = (lib.mtmd_decoder_pos * n)()
        lib.mtmd_helper_image_get_decoder_pos(image, start, places)
        txyz = np.frombuffer(places, np.uint32).reshape(n, 4).astype(np.int32)
        return np.ascontiguousarray(txyz[:, [0, 2, 1, 3]].T), end


class Mtmd(Native):
    """An mmproj in libmtmd, for one text model, which is used until this is closed. `kinds` is what it has towers for."""

    def __init__(self, mmproj: Path, text: TextModel, options: Options, limits: Limits) -> None:
        """Load a file. Raises UnknownModel, MismatchedHalves or FileError where libmtmd refuses it."""
        _take_log()
        params = _params(options, limits)
        try:
            pointer, errors = guarded(lambda: lib.mtmd_init_from_file(os.fsencode(mmproj), text.pointer, params))
        except EngineError as error:
            raise FileError(f"libmtmd cannot load {mmproj}: {error}; get or convert it again") from error
        if not pointer:
            raise _load_error(mmproj, text, log.reason(errors))
        super().__init__("libmtmd context", pointer, lib.mtmd_free, text)
        self.n_embd = text.n_embd_inp  # libmtmd refuses any other
        vision, audio = lib.mtmd_support_vision(pointer), lib.mtmd_support_audio(pointer)
        self.kinds: tuple[Kind, ...] = (*(("image",) if vision else ()), *(("audio",) if audio else ()))
        self._lock = threading.Lock()  # libmtmd prepares on any thread, and encodes on one at a time

    def picture(self, pixels: NDArray[np.uint8]) -> Prepared:
        """Prepare (h, w, 3) RGB pixels. Raises UnusableMedia where libmtmd cannot take them."""
        height, width, _ = pixels.shape
        bitmap = lib.mtmd_bitmap_init(width, height, _bytes(np.ascontiguousarray(pixels)))
        return self._prepare(bitmap, f"the picture of {width}×{height} pixels")

    def sound(self, data: NDArray[np.uint8]) -> Prepared:
        """Prepare the bytes of a WAV, MP3 or FLAC file. Raises MediaError where libmtmd cannot decode it, UnusableMedia where it
        cannot take it."""
        pointer = self.pointer
        bitmap, errors = guarded(lambda: lib.mtmd_helper_bitmap_init_from_buf(pointer, _bytes(data), data.size, False))
        if not bitmap:
            raise MediaError(f"libmtmd cannot decode the recording: {log.reason(errors)}; give a WAV, MP3 or FLAC file")
        return self._prepare(bitmap, "the recording")

    def encode(self, prepared: Prepared, i: int) -> Rows:
        """The (n_tokens, n_embd) rows of a media chunk. Raises EngineError when that fails, and ever after where llama.cpp
        gave up."""
        chunk, n = prepared.chunk(i), prepared.n_tokens(i)
        with self._lock:
            pointer = self.pointer
            try:
                code, errors = guarded(lambda: lib.mtmd_encode_chunk(pointer, chunk))
            except EngineError:
                self._free.detach()  # a thread is stuck in there: neither run nor free it again
                raise
            if code:
                raise EngineError(f"libmtmd could not encode ({code}): {log.reason(errors)}")
            return np.ctypeslib.as_array(lib.mtmd_get_output_embd(pointer), (n, self.n_embd)).copy()

    def causal(self, prepared: Prepared, i: int) -> bool:
        """Whether the rows of a media chunk see only the rows before them."""
        return not lib.mtmd_decode_use_non_causal(self.pointer, prepared.chunk(i))

    def _prepare(self, bitmap: Pointer, what: str) -> Prepared:
        """Cut a bitmap, which is freed, into chunks."""
        pointer, out, part = self.pointer, Prepared(lib.mtmd_input_chunks_init()), lib.mtmd_input_part(None, bitmap)
        parts = (ctypes.POINTER(lib.mtmd_input_part) * 1)(ctypes.pointer(part))
        try:
            code, errors = guarded(lambda: lib.mtmd_tokenize_from_parts(pointer, out.pointer, parts, 1, False))
        except EngineError as error:
            raise UnusableMedia(f"libmtmd cannot take {what}: {error}; give another") from error
        finally:
            lib.mtmd_bitmap_free(bitmap)
        if code:
            raise UnusableMedia(f"libmtmd cannot take {what}: {log.reason(errors)}; give another")
        return out


def _params(options: Options, limits: Limits) -> lib.mtmd_context_params:
    params = lib.mtmd_context_params_default()
    params.use_gpu = options.n_gpu_layers != 0
    params.print_timings = False
    params.n_threads = options.threads or default_threads()
    params.flash_attn_type = _FLASH_ATTENTION[options.flash_attn]
    params.warmup = options.warmup
    params.image_min_tokens = -1 if limits.min_tokens is None else limits.min_tokens
    params.image_max_tokens = -1 if limits.max_tokens is None else limits.max_tokens
    return params


def _load_error(mmproj: Path, text: TextModel, reason: str) -> DiptychError:
    reason = _LEAD.sub("", reason)
    if found := _WIDTHS.search(reason):
        message = (
            f"the halves are not of one model: {mmproj} gives rows of width {found[2]}, and {text.path} takes rows of width "
            f"{found[1]}; load the mmproj that was made with this text half"
        )
        return WrongWidth(message, int(found[2]))
    if "less than image_min_pixels" in reason:
        return InputError(f"no size is left for pictures: {reason}; set min_pixels or image_min_tokens as well, and lower")
    if "projector type" in reason:
        return UnknownModel(f"libmtmd cannot run {mmproj}: {reason}; a newer llama-cpp-python may know it")
    return FileError(f"libmtmd cannot load {mmproj}: {reason}; the file may be damaged, get or convert it again")


def _bytes(array: NDArray[np.uint8]) -> Any:  # noqa: ANN401 - ctypes pointer types are made at run time
    return array.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))


def _hear(level: int, text: bytes, data: object) -> None:
    """Its warnings give advice about flags of llama.cpp's programs; they are details here."""
    log.take(2 if level == 3 else level, text, data)


_callback = lib.llama_cpp.llama_log_callback(_hear)  # kept: libmtmd has its address
_installed: list[weakref.finalize[..., object]] = []


def _take_log() -> None:
    """Take over libmtmd's log, which is apart from llama.cpp's; it gets its own back when Python exits."""
    log.install()
    lib.mtmd_helper_log_set(_callback, None)
    if not _installed:
        _installed.append(weakref.finalize(_hear, lib.mtmd_helper_log_set, lib.llama_cpp.llama_log_callback(), None))
