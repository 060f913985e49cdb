"""The text half: a GGUF in llama.cpp, its vocabulary and its metadata. A `Context` decodes with it."""

from __future__ import annotations

import ctypes
import os
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import llama_cpp.llama_cpp as lib

from diptych.errors import EngineError, FileError, InputError, UnknownModel
from diptych.llama import log
from diptych.llama.native import Native, Pointer
from diptych.options import Options
from diptych.weights.split import check_parts

_MAGIC = b"GGUF"
_NFC = ("qwen2", "qwen35")  # tokenizers that compose characters first, which llama.cpp leaves out


class TextModel(Native):
    """A text GGUF, loaded. `n_embd_inp` is the width of the rows it takes, `n_embd_out` that of its hidden states, `n_pos`
    its planes of positions (4: M-RoPE).

    `size` is that of its tensors in bytes, `description` llama.cpp's words for it. `recurrent` is whether it remembers a
    sequence as a state, at least in part, which takes memory for each. `chat_template`, `bos` and `eos` are what the
    file holds ("" where the vocabulary has no such token);
    `prefix_tokens` and `suffix_tokens` are what a text has to begin and end with; a chat does not end so.
    """

    def __init__(self, path: Path, pointer: Pointer) -> None:
        super().__init__("text model", pointer, lib.llama_model_free)
        self.path = path
        self.n_embd: int = lib.llama_model_n_embd(pointer)
        self.n_embd_inp: int = lib.llama_model_n_embd_inp(pointer)
        self.n_embd_out: int = lib.llama_model_n_embd_out(pointer)
        self.n_ctx_train: int = lib.llama_model_n_ctx_train(pointer)
        self.n_layer: int = lib.llama_model_n_layer(pointer)
        self.n_params: int = lib.llama_model_n_params(pointer)
        self.size: int = lib.llama_model_size(pointer)
        self.description = _described(pointer)
        self.recurrent = bool(lib.llama_model_is_recurrent(pointer) or lib.llama_model_is_hybrid(pointer))
        four = (lib.LLAMA_ROPE_TYPE_MROPE, lib.LLAMA_ROPE_TYPE_IMROPE)
        self.n_pos = 4 if lib.llama_model_rope_type(pointer) in four else 1
        self.metadata = _metadata(pointer)
        self.chat_template = self.metadata.get("tokenizer.chat_template")
        self.vocab: int = lib.llama_model_get_vocab(pointer)
        self.n_vocab: int = lib.llama_vocab_n_tokens(self.vocab)
        bos = lib.llama_vocab_bos(self.vocab)
        self.bos, self.eos = self._text("bos", bos), self._text("eos", lib.llama_vocab_eos(self.vocab))
        self.prefix_tokens: tuple[int, ...] = (bos,) if bos >= 0 and lib.llama_vocab_get_add_bos(self.vocab) else ()
        self.suffix_tokens = tuple(self._tokens(b"", True, True)[len(self.prefix_tokens) :])

    @classmethod
    def load(cls, path: Path, options: Options = Options()) -> Self:  # noqa: B008 - frozen
        """Load a text GGUF; of one in several parts the first is named, and llama.cpp finds the others beside it.

        Raises FileError when it or a part is missing, damaged, no GGUF, or the media half; UnknownModel when llama.cpp
        does not know its architecture.
        """
        check_gguf(path)
        check_parts(path)
        log.install()
        params = lib.llama_model_default_params()
        params.n_gpu_layers = options.n_gpu_layers
        params.load_mode = (lib.LLAMA_LOAD_MODE_MMAP if options.mmap else 0) | (lib.LLAMA_LOAD_MODE_MLOCK if options.mlock else 0)
        with log.watch() as errors:
            pointer = lib.llama_model_load_from_file(os.fsencode(path), params)
        if not pointer:
            raise _load_error(path, log.reason(errors))
        model = cls(path, pointer)
        model._check_deepstack()
        return model

    def tokenize(self, text: str, parse_special: bool = True) -> list[int]:
        """Text → tokens, nothing put before or behind; special tokens in it count as such unless told otherwise."""
        if self.metadata.get("tokenizer.ggml.pre") in _NFC:
            text = unicodedata.normalize("NFC", text)
        try:
            data = text.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"the text holds half a character at position {error.start} (a lone surrogate)") from error
        return self._tokens(data, False, parse_special)

    def _tokens(self, data: bytes, add_special: bool, parse_special: bool) -> list[int]:
        def call(buffer: Any, size: int) -> int:  # noqa: ANN401 - a ctypes array
            return int(lib.llama_tokenize(self._vocab, data, len(data), buffer, size, add_special, parse_special))

        return list(_grown(call, lib.llama_token, len(data) + 8))

    def piece(self, token: int, special: bool = False) -> bytes:
        """The bytes of a token, which may be part of a character; of a special token only if `special`."""
        if not 0 <= token < self.n_vocab:
            raise EngineError(f"token {token} is out of range; the vocabulary has {self.n_vocab}")

        def call(buffer: Any, size: int) -> int:  # noqa: ANN401 - a ctypes array
            return int(lib.llama_token_to_piece(self._vocab, token, buffer, size, 0, special))

        return bytes(_grown(call, ctypes.c_char, 32))

    def is_end(self, token: int) -> bool:
        """Whether a token ends the answer."""
        return bool(lib.llama_vocab_is_eog(self._vocab, token))

    def _check_deepstack(self) -> None:
        """Where rows reach the last layer, llama.cpp aborts the process: it has dropped those without logits by then."""
        n = int(self.metadata.get(f"{self.metadata.get('general.architecture')}.n_deepstack_layers", 0))
        if n and n >= self.n_layer:
            self.close()
            raise FileError(
                f"{self.path} takes rows in {n} of its {self.n_layer} layers (deepstack), and llama.cpp needs one more layer "
                "than that; get or convert the model again"
            )

    @property
    def _vocab(self) -> int:
        """The vocabulary, which lives and dies with the model."""
        self.pointer  # noqa: B018 - raises when closed
        return self.vocab

    def _text(self, name: str, token: int) -> str:
        """The text of a special token; where the file names none, llama.cpp takes GPT-2's number, whatever that is here."""
        named = f"tokenizer.ggml.{name}_token_id" in self.metadata
        return self.piece(token, special=True).decode(errors="replace") if named and token >= 0 else ""


def check_gguf(path: Path) -> None:
    """Raise FileError, in words a user understands, for what is not a GGUF file."""
    if path.is_dir():
        raise FileError(f"{path} is a folder, and a GGUF file is needed; name the file in it")
    try:
        with path.open("rb") as file:
            start = file.read(len(_MAGIC))
    except FileNotFoundError:
        raise FileError(f"there is no file {path}; check the path") from None
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror}") from error
    if start != _MAGIC:
        found = "is empty" if not start else f"begins with {start!r}"
        raise FileError(f"{path} is not a GGUF file: it {found} where {_MAGIC!r} should stand; convert the model first")


def _load_error(path: Path, reason: str) -> FileError:
    if "CLIP" in reason:
        return FileError(
            f"{path} is a media half (mmproj), and a text half is needed; give it as --mmproj and the text GGUF as -m"
        )
    if "split file" in reason:
        return FileError(f"{path} is a part of a split model under another name; call the first part …-00001-of-….gguf again")
    if "unknown model architecture" in reason:
        return UnknownModel(f"llama.cpp cannot run {path}: {reason}; a newer llama-cpp-python may know it")
    return FileError(f"cannot load {path}: {reason}; the file may be damaged or cut short, get or convert it again")


def _described(pointer: Pointer) -> str:
    """Architecture, size and types of the weights in llama.cpp's words."""
    data: bytes = _grown(lambda buffer, size: _snprintf(lib.llama_model_desc(pointer, buffer, size), size), ctypes.c_char, 128)
    return data.decode(errors="replace")


def _metadata(pointer: Pointer) -> dict[str, str]:
    """All metadata but arrays, as text."""

    def text(get: Callable[..., int], i: int) -> str:
        data: bytes = _grown(lambda buffer, size: _snprintf(get(pointer, i, buffer, size), size), ctypes.c_char, 256)
        return data.decode(errors="replace")

    count = lib.llama_model_meta_count(pointer)
    return {text(lib.llama_model_meta_key_by_index, i): text(lib.llama_model_meta_val_str_by_index, i) for i in range(count)}


def _snprintf(length: int, size: int) -> int:
    """C's snprintf gives the length it wanted; turn it into llama.cpp's other convention, minus the size that is needed."""
    return length if length < size else -length - 1


def _grown(call: Callable[[Any, int], int], kind: Any, size: int) -> Any:  # noqa: ANN401 - ctypes types are made at run time
    """What `call` writes into an array, which is made larger once if it answers minus the size it needs."""
    buffer = (kind * size)()
    n = call(buffer, size)
    if n < 0:
        buffer = (kind * -n)()
        n = call(buffer, -n)
    return buffer[:n]
