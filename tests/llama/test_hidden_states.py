"""Hidden states out of a context: the same as in transformers, of models that generate and of those that only embed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import tiny
import tiny_bert
from diptych.errors import EngineError
from diptych.llama.context import Context
from diptych.llama.model import TextModel
from diptych.options import Options
from diptych.types import Batch, Segment
from text_half import Pair, batches


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[TextModel, torch.nn.Module]]:
    path = tmp_path_factory.mktemp("bert") / "bert.gguf"
    reference = tiny_bert.bert(path)
    with TextModel.load(path, tiny.EXACT) as text:
        yield text, reference


def one(tokens: list[int], seq_id: int = 0) -> Segment:
    return Segment(seq_id, np.arange(len(tokens), dtype=np.int32)[None], tokens=np.array(tokens, np.int32))


def test_hidden_states_of_text_and_picture_equal_transformers(pair: Callable[..., Pair]) -> None:
    both = pair()
    picture = both.picture(3, 4)
    parts = [both.tokens(7), picture, both.tokens(5, seed=1)]
    image = both.torch.config.image_token_id
    ids = [*parts[0], *[image] * len(picture.rows), *parts[2]]
    with torch.no_grad():
        expected = both.torch.model(
            input_ids=torch.tensor([ids]),
            attention_mask=torch.ones((1, len(ids)), dtype=torch.long),
            pixel_values=torch.from_numpy(picture.patches),
            image_grid_thw=torch.tensor([[1, 6, 8]]),
            mm_token_type_ids=torch.tensor([[int(i == image) for i in ids]]),
        ).last_hidden_state[0].numpy()  # fmt: skip
    for n in 3, 64:
        with Context(both.text, tiny.EXACT, n_outputs=64) as context:
            found = [context.embed(batch) for batch in batches(both.segments(parts), n)]
        np.testing.assert_allclose(np.concatenate(found), expected, rtol=0, atol=2e-5)


def test_a_context_decodes_and_embeds_by_turns(context: Context) -> None:
    tokens, first = [5, 6, 7, 8], one([1, 2, 3])
    rest = Segment(0, np.arange(3, 7, dtype=np.int32)[None], tokens=np.array(tokens, np.int32))
    assert context.decode(Batch((first,)))
    rows = context.embed(Batch((rest,)))
    context.clear()
    whole = context.embed(Batch((one([1, 2, 3, *tokens]),)))
    assert rows is not None
    assert whole is not None
    np.testing.assert_allclose(rows, whole[3:], rtol=0, atol=2e-6)
    # were every row still an output, these 100 would be over n_outputs, and the process would die
    assert context.decode(Batch((one([1] * 100, seq_id=1),)))


def test_more_rows_than_there_is_room_for_are_refused_before_llama_cpp_aborts(context: Context) -> None:
    with pytest.raises(EngineError, match="asks for 65 rows"):
        context.embed(Batch((one([1] * 65),)))


def test_a_model_that_only_embeds_gives_the_hidden_states_of_transformers(bert: tuple[TextModel, torch.nn.Module]) -> None:
    text, reference = bert
    assert (text.prefix_tokens, text.suffix_tokens) == ((tiny_bert.CLS,), (tiny_bert.SEP,))
    prompts = [[2, *text.tokenize("hello world"), 3], [2, *text.tokenize("this is a test"), 3]]
    options = tiny.EXACT.model_copy(update={"n_parallel": 2})
    with Context(text, options, n_outputs=64) as context:
        assert not context.has_memory
        assert not context.causal
        found = context.embed(Batch(tuple(one(tokens, i) for i, tokens in enumerate(prompts))))
    with torch.no_grad():
        expected = [reference(torch.tensor([tokens])).last_hidden_state[0].numpy() for tokens in prompts]
    assert found is not None
    differ = abs(found - np.concatenate(expected))
    # a number on the edge of a 16-bit step of llama.cpp's GELU table falls either way, and takes 1e-3 of itself along
    assert differ.max() < 1e-3
    assert (differ < 2e-6).mean() > 0.3


def test_what_a_model_that_only_embeds_cannot_do_is_refused_and_the_process_lives(
    bert: tuple[TextModel, torch.nn.Module],
) -> None:
    with Context(bert[0], tiny.EXACT.model_copy(update={"n_ubatch": 8}), n_outputs=64) as context:
        with pytest.raises(EngineError, match="only embeds"):
            context.decode(Batch((one([1, 2, 3]),)))
        with pytest.raises(EngineError, match="9 rows that all see each other needs n_ubatch of as many; it is 8"):
            context.embed(Batch((one([1] * 9),)))
        assert context.embed(Batch((one([1] * 8),))) is not None


def test_embedding_needs_no_memory_for_the_logits_of_more_rows_than_n_outputs(tmp_path: Path) -> None:
    """150,000 words × 512 rows are 307 MB of logits, and as much again to compute them; here it is 32 rows."""
    script = f"""
import psutil, numpy as np
from pathlib import Path
import tiny, text_half
from diptych.llama.context import Context
from diptych.llama.model import TextModel
from diptych.types import Batch, Segment
import text_half
N = text_half.N_VOCAB = 150_000
shape = tiny.Qwen2VL(hidden=64, n_layer=1, sections=(8, 4, 4), n_head=1, n_head_kv=1)
with TextModel.load(text_half.write_text(Path({str(tmp_path / "large.gguf")!r}), shape, text_half.random(shape))) as text:
    with Context(text, tiny.EXACT, n_outputs=32) as context:
        before = psutil.Process().memory_info().rss
        for start in range(0, 512, 32):
            at = np.arange(start, start + 32, dtype=np.int32)[None]
            context.embed(Batch((Segment(0, at, tokens=np.full(32, 7, np.int32)),)))
        print(psutil.Process().memory_info().rss - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, cwd=Path(__file__).parents[1]
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 60e6


def test_pooling_that_a_file_names_is_left_to_us(bert: tuple[TextModel, torch.nn.Module]) -> None:
    with Context(bert[0], Options(n_ctx=64), n_outputs=8) as context:
        rows = context.embed(Batch((one([2, 5, 3]),)))
    assert rows is not None
    assert rows.shape == (3, 64)
