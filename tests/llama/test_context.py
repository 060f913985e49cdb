"""Facts of decoding that everything above rests on, and what a context refuses."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import llama_cpp.llama_cpp as lib
import numpy as np
import psutil
import pytest

import tiny
from diptych.errors import EngineError, InputError
from diptych.llama import log
from diptych.llama.context import Context, default_threads
from diptych.llama.model import TextModel
from diptych.options import Options
from diptych.types import Batch, Segment
from text_half import decode


def tokens(n: int, start: int = 0, seq_id: int = 0, wants: bool = True) -> Segment:
    ids = np.random.default_rng(seq_id + 10 * start).integers(0, 256, n).astype(np.int32)
    return Segment(seq_id, np.arange(start, start + n, dtype=np.int32)[None], tokens=ids, wants_logits=wants)


def rows(n: int, start: int = 0, seq_id: int = 0, seed: int = 0) -> Segment:
    """A picture of one row of n cells."""
    planes = np.zeros((4, n), np.int32) + np.array([[start], [start], [start], [0]], np.int32)
    planes[2] += np.arange(n, dtype=np.int32)
    data = np.random.default_rng(seed).standard_normal((n, 128)).astype(np.float32)
    return Segment(seq_id, planes, embeddings=data, wants_logits=True)


def test_sizes_are_what_llama_cpp_made_of_them(text: TextModel) -> None:
    with Context(text, Options(n_ctx=300, n_batch=2048)) as context:
        assert (context.n_ctx, context.n_batch, context.n_ubatch) == (512, 300, 300)
    with Context(text, Options(n_ctx=0)) as context:
        assert context.n_ctx == text.n_ctx_train


def test_a_batch_carries_tokens_or_embeddings_never_both(context: Context) -> None:
    with pytest.raises(EngineError, match="mixes tokens and embeddings"):
        context.decode(Batch((tokens(3), rows(3, start=3))))
    with pytest.raises(EngineError, match="both tokens and embeddings"):
        context.decode(Batch((replace(tokens(3), embeddings=np.ones((3, 128), np.float32)),)))
    with pytest.raises(EngineError, match="neither"):
        context.decode(Batch((replace(tokens(3), tokens=None),)))


def test_an_embedding_batch_needs_four_planes_of_positions(context: Context) -> None:
    media = rows(4)
    with pytest.raises(EngineError, match=r"1 planes of positions and this model takes 4"):
        context.decode(Batch((replace(media, positions=media.positions[:1]),)))


def test_planes_stand_over_the_whole_batch(context: Context) -> None:
    """Two sequences of different lengths: were planes laid out per segment, the second would get the first one's."""
    a, b = rows(3, seq_id=0, seed=1), rows(5, start=2, seq_id=1, seed=2)
    together = decode(context, [a, b])
    context.clear()
    alone = np.concatenate([decode(context, [a]), decode(context, [b])])
    np.testing.assert_allclose(together, alone, rtol=0, atol=2e-6)


def test_a_position_must_exceed_the_last_of_its_sequence(context: Context) -> None:
    decode(context, [tokens(5)])
    with pytest.raises(EngineError, match="inconsistent sequence positions"):
        context.decode(Batch((tokens(2, start=4),)))
    decode(context, [tokens(2, start=5)])  # and the failure left no trace
    assert context.last(0) == 6


def test_widths_and_counts_that_do_not_fit_are_refused(context: Context, text: TextModel) -> None:
    wide = rows(4)
    bad = {
        r"rows of width 128": replace(wide, embeddings=np.ones((4, 64), np.float32)),
        r"one a position": replace(wide, embeddings=np.ones((3, 128), np.float32)),
        r"need \(1, n\)": replace(tokens(4), tokens=np.zeros(3, np.int32)),
        r"sequence 2 is out of range": tokens(2, seq_id=2),
        r"the vocabulary has 284": replace(tokens(1), tokens=np.array([text.n_vocab], np.int32)),
        r"one or more": replace(tokens(1), positions=np.zeros((1, 0), np.int32), tokens=np.zeros(0, np.int32)),
        r"1 to n_batch = 1024": tokens(1025),
    }
    for words, segment in bad.items():
        with pytest.raises(EngineError, match=words):
            context.decode(Batch((segment,)))
    with pytest.raises(EngineError, match="0 rows"):
        context.decode(Batch(()))
    with pytest.raises(EngineError, match="asks for 65 rows of logits"):
        context.decode(Batch(tuple(tokens(1, start=i) for i in range(65))))


@pytest.mark.parametrize(
    ("value", "words"), [(np.nan, "not finite"), (np.inf, "not finite"), (0, "all zeros"), (1e30, "out of range")]
)
def test_a_row_that_would_poison_the_cache_is_refused_and_neighbours_are_unharmed(
    context: Context, value: float, words: str
) -> None:
    good, bad = rows(4, seq_id=0, seed=1), rows(4, seq_id=1, seed=2)
    expected = decode(context, [good])
    context.clear()
    assert bad.embeddings is not None
    bad.embeddings[2] = value
    with pytest.raises(InputError, match=rf"row 2 of 4 is {words}"):
        context.decode(Batch((good, bad)))
    np.testing.assert_array_equal(decode(context, [good]), expected)


def test_a_row_of_nan_does_poison_a_shared_cache(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    """Why the check is there: without it a NaN of one sequence reaches another."""
    monkeypatch.setattr(type(context._arrays), "_check_rows", lambda *_: None)
    bad = rows(4, seq_id=1)
    assert bad.embeddings is not None
    bad.embeddings[2] = np.nan
    decode(context, [bad])
    assert np.isnan(decode(context, [rows(4, seq_id=0, seed=1)])).any()


def test_rows_of_one_image_see_each_other_only_when_not_causal(context: Context) -> None:
    media, changed = rows(6, seed=1), rows(6, seed=1)
    assert changed.embeddings is not None
    changed.embeddings[5] *= -1
    media, changed = [
        tuple(replace(s, positions=s.positions[:, i : i + 1], embeddings=s.embeddings[i : i + 1]) for i in range(6))
        for s in (media, changed)
    ]
    out = {}
    for causal in True, False, True:
        for name, segment in {"same": media, "changed": changed}.items():
            context.clear()
            assert context.decode(Batch(segment, causal=causal))
            out[causal, name] = context.logits(0)
    np.testing.assert_array_equal(out[True, "same"], out[True, "changed"])
    assert abs(out[False, "same"] - out[False, "changed"]).max() > 1e-3


def test_a_non_causal_image_over_n_ubatch_is_refused_before_llama_cpp_aborts(text: TextModel) -> None:
    with Context(text, tiny.EXACT.model_copy(update={"n_ubatch": 4})) as context:
        assert context.decode(Batch((rows(4),), causal=False))
        with pytest.raises(EngineError, match="needs n_ubatch of as many; it is 4"):
            context.decode(Batch((rows(5, start=1),), causal=False))


def test_without_that_check_the_process_dies(text: TextModel) -> None:
    code = f"""
import numpy as np; from pathlib import Path
from diptych.llama.context import Context; from diptych.llama.model import TextModel
from diptych.options import Options; from diptych.types import Batch, Segment
c = Context(TextModel.load(Path({str(text.path)!r})), Options(n_ctx=256, n_ubatch=4)); c.n_ubatch = 99
c.decode(Batch((Segment(0, np.zeros((4, 5), np.int32), embeddings=np.ones((5, 128), np.float32)),), causal=False))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60)
    assert done.returncode < 0, "llama.cpp returns an error now: the check in decode can go"


def test_no_room_in_the_cache_is_an_answer_not_an_error(text: TextModel) -> None:
    with Context(text, Options(n_ctx=256, n_parallel=2)) as context:
        assert context.decode(Batch((tokens(200),)))
        assert not context.decode(Batch((tokens(100, seq_id=1),)))
        assert context.decode(Batch((tokens(50, seq_id=1),)))


def test_the_tail_of_a_sequence_can_be_removed_and_decoded_anew(context: Context) -> None:
    decode(context, [tokens(5), tokens(4, seq_id=1)])
    first = decode(context, [tokens(3, start=5)])
    assert context.remove(0, 5)
    assert (context.last(0), context.last(1)) == (4, 3)
    np.testing.assert_array_equal(decode(context, [tokens(3, start=5)]), first)


def test_logits_are_numbered_by_the_segments_that_wanted_them(context: Context) -> None:
    a, b, c = tokens(3), tokens(4, seq_id=1, wants=False), tokens(2, start=3)
    together = decode(context, [a, b, c])
    context.clear()
    np.testing.assert_allclose(together, np.concatenate([decode(context, [a]), decode(context, [c])]), rtol=0, atol=2e-6)
    with pytest.raises(EngineError, match="logits 1 were asked for; the last batch gave 1"):
        context.logits(1)


def test_a_row_that_did_not_ask_has_no_logits_whatever_the_batch_before_asked(context: Context) -> None:
    decode(context, [tokens(1), tokens(1, start=1)])
    decode(context, [tokens(3, start=2)])
    with log.watch():
        assert [bool(lib.llama_get_logits_ith(context.pointer, i)) for i in range(3)] == [False, False, True]


def test_a_quantised_v_cache_needs_flash_attention(text: TextModel) -> None:
    with pytest.raises(EngineError, match="needs flash attention"):
        Context(text, Options(cache_type_v="q8_0", flash_attn="off"))
    for flash in "on", "auto":
        with Context(text, Options(n_ctx=256, cache_type_k="q8_0", cache_type_v="q4_0", flash_attn=flash)) as context:
            assert context.decode(Batch((tokens(8),)))


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1"])
def test_every_cache_type_works(text: TextModel, kind: str) -> None:
    with Context(text, Options(n_ctx=256, cache_type_k=kind, cache_type_v=kind)) as context:
        assert context.decode(Batch((tokens(8),)))
        assert np.isfinite(context.logits(0)).all()


def test_a_context_larger_than_memory_is_refused_with_the_size_that_was_asked(text: TextModel) -> None:
    with pytest.raises(EngineError, match=r"2000000000 tokens \(n_ctx\).* GiB of memory are free"):
        Context(text, Options(n_ctx=2_000_000_000))
    with pytest.raises(EngineError, match="end at 2147483647"):
        Context(text, Options(n_ctx=2**32 + 1))
    with pytest.raises(EngineError, match=r"257 sequences.*n_seq_max must be <= 256"):
        Context(text, Options(n_ctx=512, n_parallel=257))


def test_threads_default_to_physical_cores() -> None:
    assert 1 <= default_threads() <= (psutil.cpu_count() or 1)
