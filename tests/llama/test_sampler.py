"""Tokens are chosen as llama.cpp chooses them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import numpy as np
import pytest

import tiny
from diptych.errors import EngineError, FileError, GrammarError, InputError
from diptych.llama.candidates import log_probabilities
from diptych.llama.context import Context
from diptych.llama.model import TextModel
from diptych.llama.sampler import Sampler, default_sampling
from diptych.types import Batch, Logprob, Sampling, Segment
from text_half import random, write_text

GREEDY = Sampling(temperature=0)


@pytest.fixture(scope="module")
def logits(text: TextModel) -> Iterator[Context]:
    """A context whose last batch gave the logits of two sequences, and the logits of row 1 beside them."""
    with Context(text, tiny.EXACT.model_copy(update={"n_parallel": 3})) as context:
        segments = [
            Segment(i, np.arange(4, dtype=np.int32)[None], tokens=np.arange(4, dtype=np.int32) + 60 * i, wants_logits=i != 1)
            for i in range(3)
        ]
        assert context.decode(Batch(tuple(segments)))
        yield context


def draws(text: TextModel, context: Context, sampling: Sampling, n: int = 400) -> Counter[int]:
    with Sampler(text, sampling) as sampler:
        return Counter(sampler.sample(context, 1).token for _ in range(n))


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max())
    return e / e.sum()


def test_a_row_is_that_of_the_segment_that_wanted_logits(text: TextModel, logits: Context) -> None:
    for i in range(2):
        with Sampler(text, GREEDY) as sampler:
            assert sampler.sample(logits, i).token == logits.logits(i).argmax()
    assert logits.logits(0).argmax() != logits.logits(1).argmax(), "or the test shows nothing"
    with pytest.raises(EngineError, match="logits 2"), Sampler(text, GREEDY) as sampler:
        sampler.sample(logits, 2)


def test_tokens_come_as_often_as_their_probability(text: TextModel, logits: Context) -> None:
    """Against the formula, within five standard deviations."""
    plain = Sampling(temperature=0.7, top_k=0, top_p=1, min_p=0, seed=1)
    p, n = softmax(logits.logits(1) / 0.7), 4000
    seen = draws(text, logits, plain, n)
    for token in np.argsort(p)[-5:]:
        assert abs(seen[int(token)] - n * p[token]) < 5 * np.sqrt(n * p[token])


def test_filters_cut_as_their_names_say(text: TextModel, logits: Context) -> None:
    order = np.argsort(logits.logits(1))[::-1]
    p = softmax(logits.logits(1))[order]
    off = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "seed": 3}
    kept = {"top_k": 3, "top_p": float(p[:4].sum() + p[4] / 2), "min_p": float(p[2] / p[0] * 0.999)}
    expected = {"top_k": 3, "top_p": 5, "min_p": 3}
    for name, value in kept.items():
        seen = draws(text, logits, Sampling(**(off | {name: value})), 1500)
        assert set(seen) == set(order[: expected[name]].tolist()), name


def test_a_seed_repeats_a_draw_and_the_one_in_use_can_be_read(text: TextModel, logits: Context) -> None:
    hot = Sampling(temperature=3.0)

    def run(seed: int | None) -> tuple[list[int], int]:
        with Sampler(text, Sampling(temperature=3.0, seed=seed)) as sampler:
            return [sampler.sample(logits, 0).token for _ in range(30)], sampler.seed

    first, seed = run(None)
    assert run(seed) == (first, seed)
    assert run(seed + 1 if seed < 2**31 else 0)[0] != first
    assert Sampler(text, hot).seed != Sampler(text, hot).seed


def test_greedy_still_honours_penalties(text: TextModel, logits: Context) -> None:
    best = int(logits.logits(1).argmax())
    order = np.argsort(logits.logits(1))[::-1]
    with Sampler(text, Sampling(temperature=0, presence_penalty=100.0)) as sampler:
        assert [sampler.sample(logits, 1).token for _ in range(5)] == order[:5].tolist()
    with Sampler(text, Sampling(temperature=0, presence_penalty=100.0, repeat_last_n=1)) as sampler:
        assert [sampler.sample(logits, 1).token for _ in range(4)] == [*order[:2].tolist()] * 2
    with Sampler(text, Sampling(temperature=0, repeat_penalty=1e6)) as sampler:
        sampler.feed([best])
        assert sampler.sample(logits, 1).token != best, "tokens of the prompt count too"


def test_temperature_zero_with_a_grammar_takes_the_best_token_it_allows(text: TextModel, logits: Context) -> None:
    row = logits.logits(1)
    allowed = [t for t in range(256) if text.piece(t) in (b"q", b"r", b"7")]
    with Sampler(text, Sampling(temperature=0, grammar="root ::= [qr7]")) as sampler:
        assert sampler.sample(logits, 1).token == max(allowed, key=lambda t: row[t])
        end = sampler.sample(logits, 1).token
        assert text.is_end(end), "a finished grammar allows the end only"
        assert text.is_end(sampler.sample(logits, 1).token), "and asking again is harmless"


def test_an_end_may_come_only_where_the_grammar_may_stop(text: TextModel, logits: Context) -> None:
    (end,) = text.tokenize("<|im_end|>")
    for gbnf, may in {'root ::= "a"*': True, 'root ::= "a"+': False}.items():
        with Sampler(text, Sampling(grammar=gbnf)) as sampler:
            assert sampler._constraint.allows(end) is may


def test_trying_the_grammar_last_gives_the_distribution_of_trying_it_first(text: TextModel, logits: Context) -> None:
    row, allowed = logits.logits(1), [t for t in range(256) if text.piece(t).isalpha()]
    n, seen = 3000, Counter[int]()
    for seed in range(n):
        with Sampler(text, Sampling(temperature=1, top_k=0, top_p=1, min_p=0, seed=seed, grammar="root ::= [A-Za-z]")) as sampler:
            seen[sampler.sample(logits, 1).token] += 1
    p = softmax(row[allowed])
    assert set(seen) <= {t for t in range(text.n_vocab) if text.piece(t)[:1].isalpha()}
    for i in np.argsort(p)[-4:]:
        share = seen[allowed[i]] / sum(seen[t] for t in allowed)
        assert abs(share - p[i]) < 5 * np.sqrt(p[i] / n)


def test_a_grammar_that_no_token_continues_is_an_error_not_a_crash(text: TextModel, logits: Context) -> None:
    with Sampler(text, Sampling(grammar='root ::= "a" [z-a]')) as sampler:
        assert text.piece(sampler.sample(logits, 1).token) == b"a"
        with pytest.raises(GrammarError, match="no token of this model continues"):
            sampler.sample(logits, 1)


def test_tokens_that_the_file_suppresses_are_never_chosen(text: TextModel, logits: Context, tmp_path: Path) -> None:
    best = np.argsort(logits.logits(1))[::-1][:3].tolist()
    path = write_text(tmp_path / "text.gguf", shape := tiny.Qwen2VL(), random(shape), suppressed=best[:2])
    with TextModel.load(path) as model, Sampler(model, GREEDY) as sampler:
        assert sampler.sample(logits, 1).token == best[2]


@pytest.mark.parametrize("n", [0, 1, 7, 10_000])
def test_log_probabilities_are_those_of_the_models_own_logits(text: TextModel, logits: Context, n: int) -> None:
    expected = np.log(softmax(logits.logits(1).astype(np.float64)))
    best = np.argsort(-expected)[:n].tolist()
    for sampling in (GREEDY, Sampling(seed=1, temperature=2, top_k=3, logit_bias=((9, 100.0),))):
        with Sampler(text, sampling) as sampler:
            choice = sampler.sample(logits, 1, n)
        assert choice.logprob is not None
        assert choice.logprob.token == choice.token
        assert choice.logprob.logprob == pytest.approx(expected[choice.token], abs=1e-5)
        assert [token for token, _ in choice.logprob.top] == best
        assert [p for _, p in choice.logprob.top] == pytest.approx(expected[best], abs=1e-5)
    with Sampler(text, GREEDY) as sampler:
        assert sampler.sample(logits, 1).logprob is None


def test_the_likeliest_of_a_large_vocabulary_are_found(text: TextModel) -> None:
    for seed in range(20):
        row = (np.random.default_rng(seed).standard_normal(50_000 + seed) * 3).astype(np.float32)
        row[-1] = 50 - seed  # behind the last whole group
        for n in (1, 5, 40, 150, 600):
            own, top = log_probabilities(row, 3, n)
            expected = row - row.max() - np.log(np.exp(row - row.max(), dtype=np.float64).sum())
            assert [token for token, _ in top] == np.argsort(-row, kind="stable")[:n].tolist()
            assert own == pytest.approx(expected[3], abs=1e-5)


def test_probabilities_behind_the_chain_are_of_what_is_left(text: TextModel, logits: Context) -> None:
    p = softmax(logits.logits(1) / np.float32(0.7))
    best = np.argsort(-p)[:3]
    with Sampler(text, Sampling(temperature=0.7, top_k=3, top_p=1, min_p=0, seed=4)) as sampler:
        choice = sampler.sample(logits, 1, 10, after_chain=True)
    assert choice.logprob is not None
    assert dict(choice.logprob.top) == pytest.approx({int(t): np.log(p[t] / p[best].sum()) for t in best}, abs=1e-5)
    assert choice.logprob.logprob == dict(choice.logprob.top)[choice.token]
    with Sampler(text, Sampling(temperature=1, top_k=0, xtc_probability=1, xtc_threshold=0.004)) as sampler:
        left = sampler.sample(logits, 1, 3, after_chain=True).logprob
    assert left is not None
    assert left.top[0][0] != best[0], "XTC leaves out the likeliest, by moving the beginning"
    with Sampler(text, GREEDY) as sampler:
        assert sampler.sample(logits, 1, 3, after_chain=True).logprob == Logprob(int(best[0]), 0.0, ((int(best[0]), 0.0),))


def test_own_changes_come_before_the_chain_and_see_prompt_and_answer(text: TextModel, logits: Context) -> None:
    order = np.argsort(logits.logits(1))[::-1].tolist()
    with Sampler(text, Sampling(temperature=0, repetition_penalty=1e5)) as sampler:
        sampler.feed(order[:2])
        assert [sampler.sample(logits, 1).token for _ in range(2)] == order[2:4]
    with Sampler(text, Sampling(temperature=0, no_repeat_ngram_size=2)) as sampler:
        sampler.feed([order[0], order[0]])
        seen = [sampler.sample(logits, 1).token for _ in range(4)]
    assert seen == [order[0], order[0], order[1], order[0]], "the prompt does not count, each pair comes once"
    with Sampler(text, Sampling(temperature=0, logit_bias=((order[5], 100.0),))) as sampler:
        assert sampler.sample(logits, 1).token == order[5]


def test_logits_that_are_not_numbers_are_an_error(text: TextModel, logits: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    spoiled = logits.logits(0)
    spoiled[5] = np.nan
    monkeypatch.setattr(logits, "logits_view", lambda i: spoiled)
    with Sampler(text, GREEDY) as sampler, pytest.raises(EngineError, match="not numbers"):
        sampler.sample(logits, 0)


def test_a_schema_makes_a_random_model_answer_in_json(text: TextModel) -> None:
    wanted = {
        "type": "object",
        "properties": {"n": {"type": "integer"}, "s": {"type": "string", "maxLength": 5}},
        "required": ["n", "s"],
    }
    for seed in range(3):
        out, token, sampling = b"", 1, Sampling(seed=seed, temperature=1.5, json_schema=json.dumps(wanted))
        with Context(text, tiny.EXACT) as context, Sampler(text, sampling) as sampler:
            for i in range(100):
                one = Segment(0, np.full((1, 1), i, np.int32), tokens=np.array([token], np.int32), wants_logits=True)
                assert context.decode(Batch((one,)))
                if text.is_end(token := sampler.sample(context, 0).token):
                    break
                out += text.piece(token)
        jsonschema.validate(json.loads(out), wanted)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", float("nan")),
        ("top_p", float("inf")),
        ("repeat_penalty", 0.0),
        ("seed", -1),
        ("seed", 2**32),
        ("top_k", 2**31),
    ],
)
def test_a_setting_out_of_range_is_refused_by_name(text: TextModel, field: str, value: float) -> None:
    with pytest.raises(InputError, match=field):
        Sampler(text, Sampling(**{field: value}))


def test_defaults_come_from_the_file() -> None:
    metadata = {
        "general.sampling.temp": "0.1",
        "general.sampling.top_k": "1",
        "general.sampling.penalty_repeat": "1.050000",
        "general.sampling.sequence": "top_k;temp",
        "x": "y",
    }
    expected = {"temperature": 0.1, "top_k": 1, "repeat_penalty": 1.05, "samplers": ("top_k", "temperature")}
    assert default_sampling(metadata) == expected
    with pytest.raises(FileError, match=r"general\.sampling\.sequence is 'magic', which is not a list of samplers"):
        default_sampling({"general.sampling.sequence": "magic"})
    with pytest.raises(FileError, match=r"general\.sampling\.top_p is 'much'"):
        default_sampling({"general.sampling.top_p": "much"})
