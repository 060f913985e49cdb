"""The text half against transformers: the same logits over text, picture and what follows, wherever pictures stand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import tiny
from diptych.llama.context import Context
from diptych.llama.model import TextModel
from diptych.options import Options
from diptych.types import Batch, Segment
from text_half import N_VOCAB, Pair, Part, batches, decode, of_torch, write_text

pytestmark = pytest.mark.parity
TOLERANCE = 2e-5  # on logits, absolute; they spread over about ±2

SHAPES = [
    {"seed": 0},
    {"seed": 1, "n_layer": 3, "n_head_kv": 4, "sections": (8, 4, 4)},
    {"seed": 2, "n_head_kv": 1, "n_ff": 320, "rope_theta": 1e6, "tied": True},
]


def context_of(pair: Pair, **options: object) -> Context:
    return Context(pair.text, tiny.EXACT.model_copy(update=options), n_outputs=256)


def prompts(pair: Pair) -> dict[str, list[Part]]:
    """Prompts by what is special about them. Grids are merged grids, h × w."""
    a, b = pair.picture(3, 5, seed=1), pair.picture(6, 2, seed=2)
    t = pair.tokens(12)
    return {
        "text only": [t],
        "picture inside": [t[:5], a, t[5:]],
        "picture first": [a, t],
        "picture last": [t, a],
        "one row": [t, pair.picture(1, 1), t],
        "two pictures": [t[:3], a, t[3:6], b, t[6:]],
        "two pictures and one token between": [t, a, t[:1], b, t],
        "the same picture twice": [t[:3], a, t[3:], a, t],
    }


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_logits_of_every_row_equal_transformers(pair: Callable[..., Pair], shape: dict[str, object]) -> None:
    both = pair(**shape)
    for name, parts in prompts(both).items():
        with context_of(both) as context:
            ours = decode(context, both.segments(parts))
        np.testing.assert_allclose(ours, both.reference(parts), rtol=0, atol=TOLERANCE, err_msg=name)


@pytest.mark.parametrize("n_batch", [1, 7, 16])
def test_a_picture_longer_than_n_batch_gives_the_same(pair: Callable[..., Pair], n_batch: int) -> None:
    both = pair()
    parts: list[Part] = [both.tokens(6), both.picture(5, 8), both.tokens(4, seed=1)]
    with context_of(both) as context:
        ours = decode(context, both.segments(parts), n=n_batch)
    np.testing.assert_allclose(ours, both.reference(parts), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("n_ubatch", [3, 16])
def test_a_batch_that_llama_cpp_cuts_gives_the_same(pair: Callable[..., Pair], n_ubatch: int) -> None:
    both = pair()
    parts: list[Part] = [both.tokens(6), both.picture(5, 8), both.tokens(4, seed=1)]
    with context_of(both, n_ubatch=n_ubatch) as context:
        ours = decode(context, both.segments(parts))
    np.testing.assert_allclose(ours, both.reference(parts), rtol=0, atol=TOLERANCE)


def test_whole_segments_give_what_single_rows_give(pair: Callable[..., Pair]) -> None:
    both = pair()
    parts: list[Part] = [both.tokens(6), both.picture(4, 3), both.tokens(5, seed=1)]
    ones = both.segments(parts, wants=False)
    with context_of(both) as context:
        for batch in batches(ones, 64):
            assert context.decode(Batch((joined(batch.segments),)))
            last = context.logits(0)
    np.testing.assert_allclose(last, both.reference(parts)[-1], rtol=0, atol=TOLERANCE)


def joined(segments: tuple[Segment, ...]) -> Segment:
    """Rows that stand together as one segment that wants the logits of the last."""
    planes = np.concatenate([s.positions for s in segments], axis=1)
    name = "tokens" if segments[0].tokens is not None else "embeddings"
    values = np.concatenate([getattr(s, name) for s in segments])
    return Segment(segments[0].seq_id, planes, **{name: values}, wants_logits=True)


@pytest.mark.parametrize("unified", [True, False])
def test_two_sequences_in_one_batch_give_what_each_gives_alone(pair: Callable[..., Pair], unified: bool) -> None:
    """To the bit with a cache of their own; in a shared one, sums over the cells run in another order."""
    both = pair()
    prompts = [[both.tokens(9, seed=3), both.picture(3, 4), both.tokens(3)], [both.tokens(9, seed=4), both.picture(4, 2)]]
    alone, options = [], tiny.EXACT.model_copy(update={"n_parallel": 2})
    for i, parts in enumerate(prompts):
        with Context(both.text, options, unified=unified, n_outputs=64) as context:
            alone.append(decode(context, both.segments(parts, seq_id=i)))
    with Context(both.text, options, unified=unified, n_outputs=64) as context:
        text = [s[:9] for s in (both.segments(p, seq_id=i) for i, p in enumerate(prompts))]
        media = [s[9 : 9 + 12] for s in (both.segments(p, seq_id=i) for i, p in enumerate(prompts))]
        first = decode(context, text[0] + text[1])
        second = decode(context, media[0] + media[1])
        tail = decode(context, both.segments(prompts[0])[21:])
    atol = 2e-6 if unified else 0
    np.testing.assert_allclose(np.concatenate([first[:9], second[:12], tail]), alone[0], rtol=0, atol=atol)
    np.testing.assert_allclose(np.concatenate([first[9:], second[12:]]), alone[1], rtol=0, atol=atol)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_32_greedy_tokens_equal_transformers_where_it_is_sure(pair: Callable[..., Pair], shape: dict[str, object]) -> None:
    both = pair(**shape)
    parts: list[Part] = [both.tokens(5), both.picture(4, 5), both.tokens(5, seed=2)]
    expected, margins = both.greedy(parts, 32)
    start = 5 + 5 + 5  # text, the longer side of the picture, text
    with context_of(both) as context:
        logits = decode(context, both.segments(parts))[-1]
        for i, (token, margin) in enumerate(zip(expected, margins, strict=True)):
            assert logits.argmax() == token or margin <= 1e-3, f"token {i}"
            step = Segment(0, np.full((4, 1), start + i, np.int32), tokens=np.array([token], np.int32), wants_logits=True)
            (logits,) = decode(context, [step])


def test_one_position_a_row_instead_of_four_makes_the_answer_fall_apart(pair: Callable[..., Pair]) -> None:
    """The known hallucination bug: media rows placed like text. The first test above passes with the right ones."""
    both = pair()
    parts: list[Part] = [both.tokens(5), both.picture(6, 6), both.tokens(8, seed=2)]
    reference = both.reference(parts)
    right = both.segments(parts)
    as_text = [replaced(s, np.array([[i], [i], [i], [0]], np.int32)) for i, s in enumerate(right)]
    only_first = [replaced(s, s.positions * np.array([[1], [0], [0], [0]], np.int32)) if s.tokens is None else s for s in right]
    with context_of(both) as context:
        good = decode(context, right)
    for wrong in as_text, only_first:
        with context_of(both) as context:
            bad = decode(context, wrong)
        assert abs(good - reference).max() < TOLERANCE
        assert abs(bad[-8:] - reference[-8:]).max() > 0.1, "wrong positions must show"
        assert (bad[5:].argmax(1) != reference[5:].argmax(1)).any(), "and change what is said"


def replaced(segment: Segment, positions: np.ndarray) -> Segment:
    return Segment(segment.seq_id, positions, segment.tokens, segment.embeddings, segment.wants_logits)


def test_the_epsilon_of_the_norm_is_ignored_by_llama_cpp(pair: Callable[..., Pair]) -> None:
    """A known fault of its `qwen2vl`: harmless at the usual 1e-6, plain to see at 1e-1."""
    both = pair(eps=1e-1)
    parts: list[Part] = [both.tokens(12)]
    with context_of(both) as context:
        ours = decode(context, both.segments(parts))
    assert abs(ours - both.reference(parts)).max() > 1e-3
    for norm in (m for m in both.torch.modules() if hasattr(m, "variance_epsilon")):
        norm.variance_epsilon = 0.0
    np.testing.assert_allclose(ours, both.reference(parts), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(("sections", "agrees"), [((6, 5, 5), True), ((4, 6, 6), False)])
def test_interleaved_sections_leave_frequencies_unrotated_in_llama_cpp(
    tmp_path: Path, sections: tuple[int, int, int], agrees: bool
) -> None:
    """A known fault: where the first section is the shortest, the last of its frequencies take the fourth plane, which is 0."""
    import torch
    from transformers.models.qwen3_vl import Qwen3VLTextConfig, Qwen3VLTextModel

    shape = tiny.Qwen2VL(sections=sections, eps=1e-6)
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": list(sections), "mrope_interleaved": True}
    config = Qwen3VLTextConfig(
        vocab_size=N_VOCAB, hidden_size=shape.hidden, intermediate_size=shape.n_ff, num_hidden_layers=shape.n_layer, head_dim=32,
        num_attention_heads=shape.n_head, num_key_value_heads=shape.n_head_kv, rope_parameters=rope, rms_norm_eps=shape.eps,
    )  # fmt: skip
    torch.manual_seed(0)
    model = Qwen3VLTextModel(config).eval()
    for parameter in model.parameters():
        parameter.data *= 3 if parameter.ndim > 1 else 1
    planes = np.random.default_rng(0).integers(0, 30, (4, 12)).astype(np.int32)
    planes[0], planes[3] = np.arange(12), 0  # causal in the plane that counts
    rows = np.random.default_rng(1).standard_normal((12, shape.hidden)).astype(np.float32)
    with torch.no_grad():
        positions = torch.from_numpy(planes[[0, 0, 1, 2]].astype(np.int64))[:, None]
        hidden = model(inputs_embeds=torch.from_numpy(rows)[None], position_ids=positions).last_hidden_state[0]
        expected = (hidden @ model.embed_tokens.weight.T).numpy()
    path = write_text(tmp_path / "text.gguf", shape, of_torch(model), "qwen3vl")
    with TextModel.load(path, tiny.EXACT) as text, Context(text, tiny.EXACT, n_outputs=16) as context:
        ones = [Segment(0, planes[:, [i]], embeddings=rows[[i]], wants_logits=True) for i in range(12)]
        error = abs(decode(context, ones) - expected).max()
    assert error < 2e-6 if agrees else error > 1e-4


def test_default_options_stay_close_to_transformers(pair: Callable[..., Pair]) -> None:
    """An f16 cache and flash attention, as people run it."""
    both = pair()
    parts: list[Part] = [both.tokens(5), both.picture(4, 5), both.tokens(5, seed=2)]
    with Context(both.text, Options(threads=1, n_ctx=512), n_outputs=64) as context:
        ours = decode(context, both.segments(parts))
    np.testing.assert_allclose(ours, both.reference(parts), rtol=0, atol=2e-2)
