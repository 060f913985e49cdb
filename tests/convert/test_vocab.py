import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import TokenType

import tiny
from diptych.convert import convert, read_checkpoint
from diptych.convert.vocab import vocabulary
from diptych.errors import FileError

N_VOCAB = 284  # rows of the tiny models' embedding tables
AWKWARD = [
    "", " ", "  ", "\n", "\n\n\n", " \n \t x", "The user's in the inn", "it'S IT'S we'LL  don’t", "1234 12.5e-3",
    "日本語と 한국어 и русский", "🙂👩‍👩‍👧", "naïve café ÅÆØ", "\u200b\u00a0\u3000", "a\r\nb\rc",
    "<|im_start|>user\nhi<|im_end|>\n",
    "<|im_start |> <|vision_start|><|image_pad|><|vision_end|>", "[PAD280]<|endoftext|><|", "\x00\x01\x7f", "```py\n  x = 1\n```",
    "$%^&*()_+-=~ ,./;:'\"\\|", "x" * 300, "the the  the",
]  # fmt: skip


def vocab(folder: Path, n_vocab: int = N_VOCAB) -> dict[str, Any]:
    return vocabulary(read_checkpoint(folder), n_vocab, "qwen2")


@pytest.mark.parity
@pytest.mark.parametrize("which", ["plain", "flat"])
def test_llama_cpp_makes_the_tokens_that_the_tokenizer_makes(request: pytest.FixtureRequest, which: str, tmp_path: Path) -> None:
    from diptych.llama.model import TextModel

    convert(request.getfixturevalue(which), tmp_path / "out", outtype="f32")
    tokenizer = tiny.tokenizer()
    with TextModel.load(tmp_path / "out" / "text.gguf") as model:
        assert model.n_vocab == N_VOCAB
        assert model.prefix_tokens == ()
        assert model.chat_template == tiny.CHAT_TEMPLATE
        assert model.eos == "<|im_end|>"
        assert model.is_end(tokenizer.token_to_id("<|im_end|>"))
        for text in AWKWARD:
            assert model.tokenize(text) == tokenizer.encode(text, add_special_tokens=False).ids, text


def test_rows_without_a_token_are_unused(plain: Path) -> None:
    found = vocab(plain)
    tokens, types = found["tokenizer.ggml.tokens"], found["tokenizer.ggml.token_type"]
    n_used = tiny.tokenizer().get_vocab_size()
    assert tokens[n_used:] == [f"[PAD{i}]" for i in range(n_used, N_VOCAB)]
    assert set(types[n_used:]) == {TokenType.UNUSED}
    special = [i for i, kind in enumerate(types) if kind == TokenType.CONTROL]
    assert [tokens[i] for i in special] == list(tiny.SPECIAL)
    assert set(np.delete(types[:n_used], special)) == {TokenType.NORMAL}


def test_a_vocabulary_larger_than_the_table_is_refused(plain: Path) -> None:
    with pytest.raises(FileError, match="has the token 273, and the embedding table 273 rows"):
        vocab(plain, 273)


def test_old_files_give_what_tokenizer_json_gives(plain: Path, flat: Path) -> None:
    assert not (flat / "tokenizer.json").exists()
    old, new = vocab(flat), vocab(plain)
    assert old.keys() == new.keys()
    for key, value in new.items():
        assert np.array_equal(old[key], value), key


def test_old_files_stand_in_for_a_tokenizer_of_an_unknown_class(plain: Path, flat: Path, changed: Callable[..., Path]) -> None:
    folder = changed("tokenizer.json", model__type="Tekken", model__vocab=[])
    with pytest.raises(FileError, match=r"has a Tekken model, there is no vocab.json with merges.txt"):
        vocab(folder)
    for name in ("vocab.json", "merges.txt"):
        (folder / name).write_bytes((flat / name).read_bytes())
    assert vocab(folder)["tokenizer.ggml.merges"] == vocab(plain)["tokenizer.ggml.merges"]
    changed("tokenizer_config.json", tokenizer_class="NoSuchTokenizer")
    assert vocab(folder)["tokenizer.ggml.tokens"] == vocab(plain)["tokenizer.ggml.tokens"]


def test_a_folder_without_a_tokenizer_is_refused(changed: Callable[..., Path]) -> None:
    folder = changed("config.json")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(FileError, match=r"tokenizer.json is missing, there is no vocab.json"):
        vocab(folder)


def test_text_split_in_another_way_is_refused(changed: Callable[..., Path]) -> None:
    split = {"type": "Split", "pattern": {"Regex": r"\p{N}{1,3}"}, "behavior": "Isolated", "invert": False}
    with pytest.raises(FileError, match=r"splits text with .*1,3.*, and the way of qwen2, .*glm4.* is expected"):
        vocab(changed("tokenizer.json", pre_tokenizer=split))
    with pytest.raises(FileError, match="splits text with 'Whitespace'"):
        vocab(changed("tokenizer.json", pre_tokenizer={"type": "Whitespace"}))


def test_tokens_added_beside_the_tokenizer_are_taken(changed: Callable[..., Path]) -> None:
    folder = changed("tokenizer_config.json", additional_special_tokens=["[X]"])
    added = {"274": {"content": "<ref>", "special": False}, "275": {"content": "<|box|>", "special": False}}
    changed("tokenizer_config.json", added_tokens_decoder=added)
    (folder / "added_tokens.json").write_text(json.dumps({"[X]": 276, "[Y]": 277, "<|im_end|>": 268}))
    found = vocab(folder)
    assert found["tokenizer.ggml.tokens"][274:279] == ["<ref>", "<|box|>", "[X]", "[Y]", "[PAD278]"]
    user, control = TokenType.USER_DEFINED, TokenType.CONTROL
    assert found["tokenizer.ggml.token_type"][274:279].tolist() == [user, control, control, user, TokenType.UNUSED]


def test_merges_of_strings_and_of_pairs_are_the_same(plain: Path, changed: Callable[..., Path]) -> None:
    merges = json.loads((plain / "tokenizer.json").read_text())["model"]["merges"]
    pairs = [m if isinstance(m, list) else m.split(" ") for m in merges]
    for given in (pairs, [" ".join(p) for p in pairs]):
        assert vocab(changed("tokenizer.json", model__merges=given))["tokenizer.ggml.merges"] == [" ".join(p) for p in pairs]


def test_special_tokens_are_found_by_text_and_by_number(changed: Callable[..., Path]) -> None:
    changed("tokenizer_config.json", eos_token={"content": "<|endoftext|>"}, pad_token=None)
    folder = changed("config.json", bos_token_id=267, pad_token_id=[268, 266], text_config__eos_token_id=268, mask_token_id=9999)
    found = vocab(folder)
    numbers = {k.removeprefix("tokenizer.ggml.").removesuffix("_token_id"): v for k, v in found.items() if k.endswith("_id")}
    assert numbers == {"bos": 267, "eos": 266, "padding": 268}


@pytest.mark.parametrize(
    ("post", "said", "expected"),
    [
        (None, None, False),
        ({"type": "ByteLevel"}, None, False),
        ({"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<|endoftext|>"}}, {"Sequence": {}}]}, None, True),
        ({"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<|endoftext|>"}}, {"Sequence": {}}]}, False, False),
        ({"type": "ByteLevel"}, True, True),
    ],
)
def test_a_begin_token_is_added_where_the_tokenizer_adds_one(
    changed: Callable[..., Path], post: dict[str, Any] | None, said: bool | None, expected: bool
) -> None:
    changed("tokenizer_config.json", add_bos_token=said)
    assert vocab(changed("tokenizer.json", post_processor=post))["tokenizer.ggml.add_bos_token"] is expected


def test_the_processors_chat_template_goes_before_the_tokenizers(changed: Callable[..., Path]) -> None:
    key = "tokenizer.chat_template"
    folder = changed("tokenizer_config.json")
    assert vocab(folder)[key] == tiny.CHAT_TEMPLATE
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": "from json"}))
    assert vocab(folder)[key] == "from json"
    (folder / "chat_template.jinja").write_text("from jinja ü\n")
    assert vocab(folder)[key] == "from jinja ü\n"


def test_named_chat_templates_are_all_kept(changed: Callable[..., Path]) -> None:
    templates = [{"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"}]
    found = vocab(changed("tokenizer_config.json", chat_template=templates))
    assert {k: v for k, v in found.items() if "chat" in k} == {
        "tokenizer.chat_template": "a", "tokenizer.chat_template.tool_use": "b", "tokenizer.chat_templates": ["tool_use"],
    }  # fmt: skip
