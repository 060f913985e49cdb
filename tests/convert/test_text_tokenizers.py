"""The tokenizers of the families: llama.cpp makes the tokens that the tokenizer itself makes, specials included."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import TokenType
from test_vocab import AWKWARD

import tiny
import tiny_text
import tiny_tokenizer
from diptych.convert import read_checkpoint, text
from diptych.convert.vocab import vocabulary
from diptych.errors import FileError
from diptych.weights import write_gguf

pytestmark = pytest.mark.parity
MORE = [
    "1234567 12345 1,234.5", "हिन्दी में लिखा", "ខ្ញុំ", "e\u0301a\u0308 cafe\u0301", "in the inn  inn\n inn", "don'T I'LL",
    "[gMASK]<sop><|user|>\nthe<|assistant|>", "<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|> the user", "日本日本語",
    "  leading", "trailing  ", "theuser usersuse ins12", "</s><s> </s>", "<0x41> <unk>",
]  # fmt: skip
ARCHITECTURES = {
    "qwen2": "Qwen3VLForConditionalGeneration",
    "qwen35": "Qwen3_5ForConditionalGeneration",
    "glm4": "Glm4vForConditionalGeneration",
    "ernie": "PaddleOCRVLForConditionalGeneration",
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny checkpoint with each kind of tokenizer."""
    made = {kind: (tmp_path_factory.mktemp("tiny"), tiny_text.shape(name)) for kind, name in ARCHITECTURES.items()}
    return {kind: tiny_text.write(folder, shape) for kind, (folder, shape) in made.items()}


def with_tokenizer(folder: Path, tokenizer: Any, **settings: Any) -> Path:
    """The checkpoint with another tokenizer.json, and settings of tokenizer_config.json (`...` removes one)."""
    tokenizer.save(str(folder / "tokenizer.json"))
    path = folder / "tokenizer_config.json"
    whole = {**json.loads(path.read_text()), **settings}
    path.write_text(json.dumps({k: v for k, v in whole.items() if v is not ...}))
    return folder


def vocab(folder: Path, pre: str = "qwen2") -> dict[str, Any]:
    checkpoint = read_checkpoint(folder)
    return vocabulary(checkpoint, checkpoint.tensors["embed_tokens.weight"].shape[0], pre)


def different(folder: Path, tokenizer: Any, texts: list[str]) -> list[str]:
    """The texts of which llama.cpp makes other tokens."""
    from diptych.llama.model import TextModel

    write_gguf(folder / "text.gguf", text(read_checkpoint(folder), "f32"), force=True)
    with TextModel.load(folder / "text.gguf", tiny.EXACT) as model:
        return [t for t in texts if model.tokenize(t) != tokenizer.encode(t, add_special_tokens=False).ids]


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_llama_cpp_makes_the_tokens_that_the_tokenizer_makes(folders: dict[str, Path], kind: str) -> None:
    assert different(folders[kind], tiny_tokenizer.tokenizer(ARCHITECTURES[kind]), AWKWARD + MORE) == []


@pytest.mark.parametrize("kind", ["qwen2", "qwen35", "glm4"])
def test_another_split_makes_other_tokens(folders: dict[str, Path], kind: str) -> None:
    """So that the test before can fail."""
    others = [tiny_tokenizer.byte_level(k, ignore_merges=False) for k in ("qwen2", "qwen35", "glm4") if k != kind]
    ours = tiny_tokenizer.tokenizer(ARCHITECTURES[kind])
    for other in others:
        assert any(ours.encode(t).tokens != other.encode(t).tokens for t in MORE)


def test_how_text_is_split_is_told_by_the_file(folders: dict[str, Path], tmp_path: Path) -> None:
    def pre(tokenizer: Any) -> str:
        for name in ("tokenizer_config.json", "config.json", "model.safetensors"):
            (tmp_path / name).write_bytes((folders["glm4"] / name).read_bytes())
        return str(vocab(with_tokenizer(tmp_path, tokenizer))["tokenizer.ggml.pre"])

    found = {kind: pre(tiny_tokenizer.byte_level(kind)) for kind in ("qwen2", "qwen35", "glm4")}
    assert found == {kind: kind for kind in found}
    assert pre(tiny_tokenizer.byte_level("glm4", ignore_merges=False)) == "chatglm-bpe"


def test_a_split_of_glm_that_asks_the_merges_first_makes_their_tokens(folders: dict[str, Path], tmp_path: Path) -> None:
    for path in folders["glm4"].glob("*.*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    asking, taking = (tiny_tokenizer.byte_level("glm4", ignore_merges=alone) for alone in (False, True))
    assert different(with_tokenizer(tmp_path, asking), asking, AWKWARD + MORE) == []
    assert different(with_tokenizer(tmp_path, asking), taking, MORE) != []


@pytest.mark.parametrize("prefix", [False, True])
@pytest.mark.parametrize("said", [False, True])
def test_a_space_before_the_text_is_put_where_the_tokenizer_puts_one(
    folders: dict[str, Path], tmp_path: Path, prefix: bool, said: bool
) -> None:
    for path in folders["ernie"].glob("*.*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    tokenizer = tiny_tokenizer.sentencepiece_like(prefix=prefix)
    folder = with_tokenizer(tmp_path, tokenizer, add_prefix_space=prefix if said else ...)
    assert vocab(folder)["tokenizer.ggml.add_space_prefix"] is prefix
    plain = [t for t in AWKWARD + MORE if t and "<|" not in t and "<s>" not in t and "<unk>" not in t]
    assert different(folder, tokenizer, plain) == []


def test_characters_have_the_scores_that_sentencepiece_gives(folders: dict[str, Path]) -> None:
    """0, -1, -2, … over the pieces and then the single characters; checked by hand with a trained sentencepiece model."""
    found, tokenizer = vocab(folders["ernie"]), tiny_tokenizer.sentencepiece_like()
    scores, types, tokens = (found[f"tokenizer.ggml.{k}"] for k in ("scores", "token_type", "tokens"))
    assert scores.dtype == np.float32
    special = [tokenizer.token_to_id(s) for s in tiny_tokenizer.SPECIAL["ernie"]]
    assert set(scores[special]) == {-1000.0}
    assert set(types[special]) == {TokenType.CONTROL}
    assert [tokens[i] for i in np.flatnonzero(types == TokenType.BYTE)] == [f"<0x{b:02X}>" for b in range(256)]
    normal = np.flatnonzero(types == TokenType.NORMAL)
    assert normal[0] == 3 + 256
    assert scores[normal].tolist() == [-i for i in range(len(normal))]
    assert set(scores[types == TokenType.BYTE]) == {0.0}
    assert set(scores[types == TokenType.UNUSED]) == {-10000.0}
    assert "tokenizer.ggml.merges" not in found


def test_scores_follow_the_merges_where_the_numbers_do_not(folders: dict[str, Path], tmp_path: Path) -> None:
    for path in folders["ernie"].glob("*.*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    path = tmp_path / "tokenizer.json"
    whole = json.loads(path.read_text())
    ids = whole["model"]["vocab"]
    ids["the"], ids["user"] = ids["user"], ids["the"]
    path.write_text(json.dumps(whole))
    from tokenizers import Tokenizer

    assert different(tmp_path, Tokenizer.from_file(str(path)), AWKWARD + MORE) == []
    found = vocab(tmp_path)["tokenizer.ggml.scores"]
    assert found[ids["the"]] > found[ids["user"]]


@pytest.mark.parametrize(
    ("architecture", "expected"),
    [
        ("Glm4vForConditionalGeneration", {"bos": "<|endoftext|>", "eos": "<|endoftext|>", "eom": "<|observation|>"}),
        ("Glm4vMoeForConditionalGeneration", {"bos": "[gMASK]", "eot": "<|user|>", "eom": "<|observation|>"}),
    ],
)
def test_an_answer_of_glm_ends_where_the_next_turn_begins(tmp_path: Path, architecture: str, expected: dict[str, str]) -> None:
    from diptych.llama.model import TextModel

    weights = text(read_checkpoint(tiny_text.write(tmp_path, tiny_text.shape(architecture))), "f32")
    ids = tiny_tokenizer.byte_level("glm4").token_to_id
    assert {k: weights.metadata[f"tokenizer.ggml.{k}_token_id"] for k in expected} == {k: ids(v) for k, v in expected.items()}
    write_gguf(tmp_path / "text.gguf", weights)
    with TextModel.load(tmp_path / "text.gguf", tiny.EXACT) as model:
        assert model.prefix_tokens == ()
        assert model.is_end(ids("<|user|>"))
        assert model.is_end(ids("<|endoftext|>"))


def test_what_ends_an_answer_by_generation_config_alone_ends_it_here(tmp_path: Path) -> None:
    from diptych.llama.model import TextModel

    folder = tiny_text.write(tmp_path, tiny_text.shape("Qwen2ForCausalLM"))
    for number, end in enumerate((3, [4, 5], [4, 5, 6])):
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": end}))
        write_gguf(folder / f"{number}.gguf", text(read_checkpoint(folder), "f32"))
        with TextModel.load(folder / f"{number}.gguf", tiny.EXACT) as model:
            ends = {i for i in range(3, 7) if model.is_end(i)}
        assert ends == {0: {3}, 1: {4, 5}, 2: {4, 5}}[number]  # a GGUF has room for two more


@pytest.mark.parametrize("end", [None, "x", -1, 2**70, [], {}, [None], [[1]], True, 10**9])
def test_an_end_that_is_no_token_is_none(tmp_path: Path, end: Any) -> None:
    folder = tiny_text.write(tmp_path, tiny_text.shape("Qwen2ForCausalLM"))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": end}))
    assert "tokenizer.ggml.eot_token_id" not in text(read_checkpoint(folder), "f32").metadata


@pytest.mark.parametrize("value", [None, "x", -1, 2**70, [], {}, [None], [["a"]], {"a": 1}, True])
@pytest.mark.parametrize("kind", ["glm4", "ernie"])
def test_no_file_of_a_tokenizer_leads_to_another_error(folders: dict[str, Path], tmp_path: Path, kind: str, value: Any) -> None:
    """Each value of tokenizer.json in turn, two deep."""
    for path in folders[kind].glob("*.json"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    path = tmp_path / "tokenizer.json"
    whole = json.loads(path.read_text())
    checkpoint = read_checkpoint(folders[kind])
    checkpoint = type(checkpoint)(tmp_path, checkpoint.config, checkpoint.processor, checkpoint.tensors)
    deep = [(whole[k], n) for k in whole if isinstance(whole[k], dict) for n in whole[k]]
    for at, key in [*((whole, k) for k in whole), *deep]:
        kept, at[key] = at[key], value
        path.write_text(json.dumps(whole))
        try:
            vocabulary(checkpoint, 600, "glm4")
        except FileError as error:
            assert "\n" not in str(error)  # noqa: PT017
        at[key] = kept
