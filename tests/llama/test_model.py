"""Loading a text half, its vocabulary and metadata; and every kind of bad file."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import gguf
import pytest

import tiny
import tiny_text
from diptych import convert
from diptych.errors import EngineError, FileError, InputError, UnknownModel
from diptych.llama.context import Context
from diptych.llama.model import TextModel
from diptych.options import Options
from diptych.weights import write_gguf


def test_a_model_says_what_its_file_holds(text: TextModel) -> None:
    assert (text.n_embd, text.n_embd_inp, text.n_vocab, text.n_ctx_train, text.n_pos) == (128, 128, 284, 8192, 4)
    assert text.metadata["general.architecture"] == "qwen2vl"
    assert text.chat_template == tiny.CHAT_TEMPLATE, "longer than any first guess of a buffer"
    assert (text.bos, text.eos, text.prefix_tokens) == ("", "<|im_end|>", ())


@pytest.mark.parity
@pytest.mark.parametrize(
    "string", ["", "the user says", "<|im_start|>user\nthe 12 hé<|im_end|>", "日本語 🙂\r\n\r\n", "a" * 5000, "\0x", "cafe\u0301"]
)
def test_tokens_equal_the_tokenizer_library(text: TextModel, string: str) -> None:
    assert text.tokenize(string) == tiny.tokenizer().encode(string, add_special_tokens=False).ids


@pytest.mark.parity
def test_characters_are_composed_and_split_as_in_qwen35(tmp_path: Path) -> None:
    name = "Qwen3_5ForConditionalGeneration"
    folder = tiny_text.write(tmp_path / "c", tiny_text.shape(name))
    write_gguf(tmp_path / "text.gguf", convert.text(convert.read_checkpoint(folder), "f32"))
    with TextModel.load(tmp_path / "text.gguf") as text:
        for string in ("cafe\u0301", "नमस्ते in 12", "the user\r\n"):
            assert text.tokenize(string) == tiny_text.tokenizer(name).encode(string, add_special_tokens=False).ids


def test_special_tokens_can_be_read_as_plain_text(text: TextModel) -> None:
    assert len(text.tokenize("<|im_end|>")) == 1
    plain = text.tokenize("<|im_end|>", parse_special=False)
    assert len(plain) > 1
    assert b"".join(map(text.piece, plain)) == b"<|im_end|>"


def test_pieces_are_bytes_and_join_to_the_text(text: TextModel) -> None:
    tokens = text.tokenize("hé 🙂")
    assert b"".join(map(text.piece, tokens)).decode() == "hé 🙂"
    assert any(len(text.piece(t)) == 1 and text.piece(t) > b"\x7f" for t in tokens), "a character split over tokens"


def test_special_tokens_are_silent_unless_asked_for_and_end_tokens_are_known(text: TextModel) -> None:
    (end,) = text.tokenize("<|im_end|>")
    assert (text.piece(end), text.piece(end, special=True)) == (b"", b"<|im_end|>")
    assert text.is_end(end)
    assert not text.is_end(text.tokenize("a")[0])


def test_half_a_character_and_a_token_out_of_range_are_refused(text: TextModel) -> None:
    with pytest.raises(InputError, match="surrogate"):
        text.tokenize("a\ud800")
    for token in -1, text.n_vocab:
        with pytest.raises(EngineError, match="out of range"):
            text.piece(token)


def test_a_closed_model_says_so_and_closes_its_contexts_first(text: TextModel) -> None:
    model = TextModel.load(text.path)
    context = Context(model, Options(n_ctx=256))
    model.close()
    model.close()
    for use in lambda: model.tokenize("a"), lambda: model.is_end(0), lambda: context.clear(), lambda: context.remove(0, 0):
        with pytest.raises(EngineError, match="closed"):
            use()


@pytest.mark.parametrize("left_open", ["", "del m", "m.close()", "c.close(); m.close()"])
def test_python_exits_cleanly_whatever_was_left_open(text: TextModel, left_open: str) -> None:
    code = f"""
from pathlib import Path
from diptych.llama.context import Context
from diptych.llama.model import TextModel
from diptych.llama.sampler import Sampler
from diptych.options import Options
from diptych.weights import write_gguf
from diptych.types import Sampling
m = TextModel.load(Path({str(text.path)!r})); c = Context(m, Options(n_ctx=256)); s = Sampler(m, Sampling(grammar='root ::= "a"'))
{left_open}
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert (done.stdout, done.stderr) == ("", "")


def bad_files(good: Path, folder: Path) -> dict[str, tuple[Path, type[FileError], str]]:
    data, noise = good.read_bytes(), random.Random(0).randbytes(1000)

    def write(name: str, content: bytes) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    architecture = data.replace(b"\x07\0\0\0\0\0\0\0qwen2vl", b"\x07\0\0\0\0\0\0\0qwen9xx", 1)
    cut = {
        f"cut at {n}": (write(f"cut{n}", data[:n]), FileError, "damaged|not a GGUF")
        for n in (2, 8, 30, 1000, 20000, len(data) - 1)
    }
    return cut | {
        "missing": (folder / "none.gguf", FileError, "there is no file"),
        "a folder": (folder, FileError, "is a folder"),
        "empty": (write("empty", b""), FileError, "it is empty"),
        "random bytes": (write("random", noise), FileError, "not a GGUF file"),
        "random behind the magic": (write("magic", b"GGUF" + noise), FileError, "version"),
        "an mmproj": (mmproj(folder / "mmproj.gguf"), FileError, "--mmproj"),
        "unknown architecture": (write("unknown", architecture), UnknownModel, "qwen9xx"),
    }


def mmproj(path: Path) -> Path:
    writer = gguf.GGUFWriter(path, "clip")
    writer.add_clip_has_vision_encoder(True)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def test_every_bad_file_is_refused_in_one_line_that_names_it(
    text: TextModel, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, (path, error, words) in bad_files(text.path, tmp_path).items():
        with pytest.raises(error, match=words) as caught:
            TextModel.load(path)
        assert str(path) in str(caught.value), name
        assert "\n" not in str(caught.value), name
    assert capfd.readouterr() == ("", ""), "llama.cpp's log goes to the logger"


def test_mmap_and_mlock_are_passed_on(text: TextModel) -> None:
    for options in Options(mmap=False), Options(mmap=True, mlock=True):
        with TextModel.load(text.path, options) as model:
            assert model.n_vocab == text.n_vocab
