"""Embeddings of texts and media: the hidden states of transformers, pooled, whatever goes beside them."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from asking import GREEDY, Load, png, request, tokens
from numpy.typing import NDArray
from PIL import Image

import tiny
import tiny_bert
from diptych.engine import Engine
from diptych.engine.embed import Embedder
from diptych.errors import ContextOverflow, EngineError, InputError, NotSupported, UnusableMedia
from diptych.llama.model import TextModel
from diptych.options import Options, Pooling
from diptych.types import Grid, MediaChunk, Request, Source

ATOL = 2e-5  # on hidden states, which spread over about ±3
POOLED: dict[Pooling, Callable[[NDArray[np.float32]], NDArray[np.float32]]] = {
    "none": lambda rows: rows,
    "mean": lambda rows: rows.mean(axis=0, keepdims=True),
    "cls": lambda rows: rows[:1],
    "last": lambda rows: rows[-1:],
}
PICTURE = Source("image", data=png(0))
PROMPTS: dict[str, tuple[str | Source, ...]] = {
    "text": ("the user in the image",),
    "picture inside": ("what is", PICTURE, "the user"),
    "picture first": (PICTURE, "is the user"),
    "picture last": ("what is", PICTURE),
    "long": ("the user in the image is in the user " * 12,),
}


def prompt(*parts: str | int | Source) -> Request:
    return Request(prompt=parts)


@pytest.fixture
def embedder(load: Load) -> Iterator[Callable[..., Embedder]]:
    """A function from options to an embedder on the tiny model, closed at the end."""
    made: list[Embedder] = []

    def make(engine: Engine | None = None, **options: object) -> Embedder:
        engine = engine or load()
        changed = engine.options.model_copy(update=options)
        made.append(Embedder(engine._text, engine._encoder, engine._preparation, changed))
        return made[-1]

    yield make
    for one in made:
        one.close()


class Reference:
    """The checkpoint in transformers."""

    def __init__(self, folder: Path) -> None:
        import transformers

        torch.set_num_threads(1)
        self.model = transformers.Qwen2VLForConditionalGeneration.from_pretrained(folder, dtype="float32").eval()
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        self.processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")

    def hidden(self, parts: tuple[str | Source, ...]) -> NDArray[np.float32]:
        """(n, n_embd) hidden states behind the last norm."""
        given: dict[str, Any] = {}
        text = ""
        for part in parts:
            if isinstance(part, str):
                text += part
                continue
            given = dict(self.processor(images=[Image.open(io.BytesIO(part.data or b""))], return_tensors="pt"))
            n = int(given["image_grid_thw"].prod()) // 4
            text += "<|vision_start|>" + "<|image_pad|>" * n + "<|vision_end|>"
        ids = self.tokenizer(text, return_tensors="pt").input_ids
        given["mm_token_type_ids"] = (ids == self.model.config.image_token_id).to(torch.int32)
        with torch.no_grad():
            found = self.model.model(input_ids=ids, attention_mask=torch.ones_like(ids), **given)
        return found.last_hidden_state[0].numpy()


@pytest.fixture(scope="module")
def reference(checkpoint: Path) -> Reference:
    return Reference(checkpoint)


@pytest.mark.parametrize("pooling", POOLED)
def test_embeddings_equal_transformers_alone_and_together(
    embedder: Callable[..., Embedder], reference: Reference, pooling: Pooling
) -> None:
    made = embedder(pooling=pooling, n_batch=64)
    expected = {name: POOLED[pooling](reference.hidden(parts)) for name, parts in PROMPTS.items()}
    together = made.embed([prompt(*parts) for parts in PROMPTS.values()], normalize=-1)
    for (name, parts), found in zip(PROMPTS.items(), together, strict=True):
        alone = made.embed([prompt(*parts)], normalize=-1)[0]
        np.testing.assert_allclose(alone.rows, expected[name], rtol=0, atol=ATOL, err_msg=name)
        np.testing.assert_allclose(found.rows, alone.rows, rtol=0, atol=5e-6, err_msg=name)
        assert found.n_tokens == alone.n_tokens == len(reference.hidden(parts))


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_a_prompt_gives_the_same_in_pieces_of_any_size(
    embedder: Callable[..., Embedder], monkeypatch: pytest.MonkeyPatch, pooling: Pooling
) -> None:
    engine_wide = embedder(pooling=pooling)
    wanted = [prompt(*parts) for parts in PROMPTS.values()]
    expected = engine_wide.embed(wanted)
    for n_batch, logits_bytes in ((3, 2**20), (16, 2**20), (64, 1)):
        monkeypatch.setattr("diptych.engine.embed._LOGITS_BYTES", logits_bytes)
        narrow = embedder(pooling=pooling, n_batch=n_batch)
        assert narrow._n_given == min(n_batch, 16)
        for a, b in zip(expected, narrow.embed(wanted), strict=True):
            np.testing.assert_allclose(a.rows, b.rows, rtol=0, atol=2e-6)


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_a_picture_whose_rows_all_see_each_other_is_not_cut(
    embedder: Callable[..., Embedder], load: Load, monkeypatch: pytest.MonkeyPatch, pooling: Pooling
) -> None:
    engine = load()
    large = Source("image", data=png(2, 168, 140))  # 30 rows
    wanted = [prompt(large, "the"), prompt("the user", large), prompt("the user")]
    monkeypatch.setattr(engine._half, "layout", list)  # so that the picture is the last of the second prompt
    causal = embedder(engine, pooling=pooling).embed(wanted)
    monkeypatch.setattr(engine._half, "causal", lambda _chunk: False)
    expected = embedder(engine, pooling=pooling).embed(wanted)
    monkeypatch.setattr("diptych.engine.embed._LOGITS_BYTES", 1)
    narrow = embedder(engine, pooling=pooling)
    assert narrow._n_given == 16
    for a, b, c in list(zip(expected, narrow.embed(wanted), causal, strict=True))[:2]:
        np.testing.assert_allclose(a.rows, b.rows, rtol=0, atol=2e-6)
        assert abs(a.rows - c.rows).max() > 1e-4


def test_equal_prompts_have_equal_embeddings_to_the_bit(embedder: Callable[..., Embedder]) -> None:
    made = embedder(pooling="mean")
    same = made.embed([prompt("a", PICTURE), prompt("other"), prompt("a", PICTURE), prompt("a", Source("image", data=png(1)))])
    np.testing.assert_array_equal(same[0].rows, same[2].rows)
    assert abs(same[0].rows - same[3].rows).max() > 1e-3
    assert abs(same[0].rows - same[1].rows).max() > 1e-3


def test_more_prompts_than_go_side_by_side_are_all_answered_in_order(embedder: Callable[..., Embedder]) -> None:
    made = embedder(pooling="last")
    texts = [f"the user {i}" for i in range(40)]
    together = made.embed([prompt(text) for text in texts])
    for text, found in list(zip(texts, together, strict=True))[::13]:
        np.testing.assert_allclose(found.rows, made.embed([prompt(text)])[0].rows, rtol=0, atol=2e-6)


def test_tokens_and_messages_are_prompts_too(embedder: Callable[..., Embedder], load: Load) -> None:
    engine = load()
    made = embedder(engine, pooling="last")
    ids = tuple(engine._text.tokenize("the user"))
    text, given, chat = made.embed([prompt("the user"), prompt(*ids), request("the user")])
    np.testing.assert_array_equal(text.rows, given.rows)
    assert chat.n_tokens > text.n_tokens
    with pytest.raises(InputError, match="empty"):
        made.embed([prompt("the user"), prompt("")])


def test_a_prompt_that_is_too_long_is_refused_and_the_next_is_served(embedder: Callable[..., Embedder]) -> None:
    made = embedder(pooling="mean")
    before = made.embed([prompt("the user")])[0].rows
    with pytest.raises(ContextOverflow, match="too large for n_ctx 1024"):
        made.embed([prompt("the user"), prompt("0 1 " * 1000)])
    np.testing.assert_array_equal(made.embed([prompt("the user")])[0].rows, before)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 0.0, 1e30])
def test_rows_that_are_no_embeddings_are_refused_and_the_next_is_served(embedder: Callable[..., Embedder], bad: float) -> None:
    made = embedder(pooling="mean")
    rows = np.ones((6, 128), np.float32)
    good = prompt("the", Source("image", chunks=(MediaChunk("image", 6, Grid(1, 2, 3), bytes(32), (), rows=rows.copy()),)))
    before = made.embed([good])[0].rows
    rows[3] = bad
    with pytest.raises(UnusableMedia, match="row 3"):
        made.embed([prompt("the", Source("image", chunks=(MediaChunk("image", 6, Grid(1, 2, 3), bytes(32), (), rows=rows),)))])
    np.testing.assert_array_equal(made.embed([good])[0].rows, before)


def test_chat_goes_on_and_is_the_same_while_others_embed(embedder: Callable[..., Embedder], load: Load) -> None:
    engine = load(n_parallel=2)
    made = embedder(engine, pooling="mean")
    wanted = request(png(3), "what is the user", n=48, sampling=GREEDY)
    expected = tokens(engine, wanted)
    alone = made.embed([prompt(*parts) for parts in PROMPTS.values()])
    found: list[Any] = []
    threads = [
        threading.Thread(target=lambda: found.append(made.embed([prompt(*parts) for parts in PROMPTS.values()])))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    assert tokens(engine, wanted) == expected
    for thread in threads:
        thread.join()
    for each in found:
        for a, b in zip(each, alone, strict=True):
            np.testing.assert_array_equal(a.rows, b.rows)
    assert len(found) == 3


def test_what_is_closed_says_so(embedder: Callable[..., Embedder]) -> None:
    made = embedder()
    made.close()
    made.close()
    with pytest.raises(EngineError, match="closed"):
        made.embed([prompt("the user")])


def test_without_a_pooling_of_its_own_a_model_gives_a_row_a_token(embedder: Callable[..., Embedder]) -> None:
    made = embedder()
    assert made.pooling == "none"
    found = made.embed([prompt("the user")])[0]
    assert found.rows.shape == (found.n_tokens, 128)
    assert abs(np.linalg.norm(found.rows, axis=1) - 1).min() > 1e-3, "rows that are not pooled are not normalised"


@pytest.fixture
def bert(tmp_path: Path, embedder: Callable[..., Embedder]) -> Iterator[Callable[..., Any]]:
    """A function that makes an embedder on a tiny BERT, with the text half and the reference."""
    opened: list[Engine] = []

    def make(kind: gguf.PoolingType = gguf.PoolingType.CLS, **options: object) -> tuple[Embedder, TextModel, Any]:
        reference = tiny_bert.bert(tmp_path / "bert.gguf", kind)
        engine = Engine.load(model=tmp_path / "bert.gguf", options=tiny.EXACT.model_copy(update=options))
        opened.append(engine)
        return embedder(engine), engine._text, reference

    yield make
    for engine in opened:
        engine.close()


@pytest.mark.parametrize("pooling", POOLED)
def test_a_model_that_only_embeds_equals_transformers(bert: Callable[..., Any], pooling: Pooling) -> None:
    made, text, reference = bert(pooling=pooling)
    texts = ["hello world", "this is a test", "", "hello " * 60]
    found = made.embed([prompt(t) for t in texts], normalize=-1)
    for each, one in zip(texts, found, strict=True):
        ids = [tiny_bert.CLS, *text.tokenize(each), tiny_bert.SEP]
        with torch.no_grad():
            expected = POOLED[pooling](reference(torch.tensor([ids])).last_hidden_state[0].numpy())
        np.testing.assert_allclose(one.rows, expected, rtol=0, atol=1e-3, err_msg=each)  # llama.cpp's GELU has 16 bits
        assert one.n_tokens == len(ids)


def test_what_a_model_reads_at_once_has_a_limit_that_is_told(bert: Callable[..., Any]) -> None:
    for options, limit in (({}, 64), ({"n_ubatch": 20}, 20), ({"n_ubatch": 8}, 8)):  # its 64 positions, and n_ubatch
        made, _, _ = bert(**options)
        assert len(made.embed([prompt("hello " * (limit - 2)), *[prompt("hello " * i) for i in range(6)]])) == 7
        with pytest.raises(ContextOverflow, match=rf"{limit + 1} tokens is too large.* at most {limit}"):
            made.embed([prompt("hello " * (limit - 1))])


def test_the_pooling_of_the_file_is_taken_and_one_that_ranks_is_refused(bert: Callable[..., Any]) -> None:
    assert bert(gguf.PoolingType.MEAN)[0].pooling == "mean"
    with pytest.raises(NotSupported, match="ranks documents"):
        bert(gguf.PoolingType.RANK)
    assert bert(gguf.PoolingType.RANK, pooling="cls")[0].pooling == "cls"
    with pytest.raises(ValueError, match="pooling"):
        Options(pooling="rank")
