"""Every setting of an answer has its effect, and is told."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from completing import complete, refused
from sites import Serve, Site

NEUTRAL = {"temperature": 1.5, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "n_predict": 48, "ignore_eos": True}


def test_a_seed_repeats_an_answer_and_another_gives_another(tiny_served: Site) -> None:
    def said(seed: int) -> str:
        return str(complete(tiny_served, **NEUTRAL, seed=seed)["content"])

    assert said(7) == said(7)
    assert len({said(seed) for seed in range(4)}) > 1


def test_a_forbidden_token_is_not_chosen(tiny_served: Site) -> None:
    first = complete(tiny_served, return_tokens=True)["tokens"][0]
    forms: list[tuple[Any, float | None]] = [([[first, False]], None), ({str(first): -100}, -100)]
    for given, told in forms:
        found = complete(tiny_served, logit_bias=given, return_tokens=True)
        assert first not in found["tokens"]
        assert found["generation_settings"]["logit_bias"] == [{"token": first, "bias": told}]


def test_a_text_is_biased_by_its_tokens(tiny_served: Site) -> None:
    found = complete(tiny_served, logit_bias=[["z", 1000]])
    assert found["content"] == "z" * 8
    assert found["generation_settings"]["logit_bias"] == [{"token": tiny_served.engine.tokenize("z")[0], "bias": 1000}]
    assert complete(tiny_served, logit_bias={"z": 1000})["content"] == "z" * 8


def test_an_answer_that_may_not_end_goes_on(served: Site) -> None:
    ended = complete(served, "Read", n_predict=20)
    assert ended["stop_type"] == "eos"
    assert ended["generation_settings"]["logit_bias"] == []
    going = complete(served, "Read", n_predict=20, ignore_eos=True)
    assert (going["stop_type"], going["tokens_predicted"]) == ("limit", 20)
    ends = [{"token": token, "bias": None} for token in served.engine.end_tokens]
    assert going["generation_settings"]["logit_bias"] == ends
    assert complete(served, "Read", n_predict=20, min_tokens=6)["tokens_predicted"] > 6


def test_grammars_and_schemas_are_kept(tiny_served: Site) -> None:
    assert complete(tiny_served, grammar='root ::= "a"{5}', n_predict=20)["content"] == "aaaaa"
    assert complete(tiny_served, json_schema={"const": "42"}, n_predict=20)["content"] == '"42"'
    assert complete(tiny_served, json_schema={"enum": [True]}, path="/v1/completions")["choices"][0]["text"] == "true"
    assert "grammar" in refused(tiny_served, prompt="x", grammar="root ::= this is (not valid GBNF")


def test_repetition_is_held_down(tiny_served: Site) -> None:
    loop = complete(tiny_served, n_predict=40, ignore_eos=True, return_tokens=True)["tokens"]
    held = complete(tiny_served, n_predict=40, ignore_eos=True, return_tokens=True, no_repeat_ngram_size=2)["tokens"]
    pairs = list(pairwise(held))
    assert len(set(pairs)) == len(pairs)
    assert len(set(pairwise(loop))) < len(pairs)
    through = complete(tiny_served, n_predict=40, ignore_eos=True, return_tokens=True, vllm_xargs={"no_repeat_ngram_size": 2})
    assert through["tokens"] == held


@pytest.mark.parametrize(
    "changed",
    [
        {"top_k": 1}, {"top_p": 0.01}, {"min_p": 0.99}, {"typical_p": 0.01}, {"top_n_sigma": 0.01}, {"temperature": 0.01},
        {"repeat_penalty": 50.0, "repeat_last_n": 64}, {"presence_penalty": 90.0}, {"frequency_penalty": 90.0},
        {"repetition_penalty": 50.0}, {"mirostat": 2, "mirostat_tau": 0.1}, {"dynatemp_range": 5.0},
        {"xtc_probability": 1.0, "xtc_threshold": 0.01}, {"samplers": ["top_k"]}, {"dry_multiplier": 50.0, "dry_base": 3.0,
         "dry_allowed_length": 0},
    ],
    ids=lambda changed: next(iter(changed)),
)  # fmt: skip
def test_each_sampling_setting_changes_what_is_chosen(tiny_served: Site, changed: dict[str, Any]) -> None:
    plain = complete(tiny_served, return_tokens=True, seed=3, **NEUTRAL)
    found = complete(tiny_served, return_tokens=True, seed=3, **{**NEUTRAL, **changed})
    assert found["tokens"] != plain["tokens"]
    for name, value in changed.items():
        assert found["generation_settings"][name] == pytest.approx(value)


def test_tokens_that_stop_and_the_text_of_special_ones(tiny_served: Site) -> None:
    tokens = complete(tiny_served, return_tokens=True)["tokens"]
    stopped = complete(tiny_served, stop_token_ids=[tokens[2]], return_tokens=True)
    assert (stopped["tokens"], stopped["stop_type"]) == (tokens[: tokens.index(tokens[2]) + 1], "eos")
    special = tiny_served.engine.tokenize("<|vision_start|>")[0]
    forced = {"logit_bias": {str(special): 1000}, "n_predict": 1}
    assert complete(tiny_served, **forced)["content"] == ""
    assert complete(tiny_served, **forced, skip_special_tokens=False)["content"] == "<|vision_start|>"


def test_a_cached_prompt_is_used_unless_told_otherwise(serve: Serve) -> None:
    site = serve(n_parallel=1)
    first = complete(site, "the user of things")
    again = complete(site, "the user of things")
    assert (again["content"], again["timings"]["cache_n"]) == (first["content"], first["tokens_evaluated"] - 1)
    assert complete(site, "the user of things", cache_prompt=False)["timings"]["cache_n"] == 0


def test_a_slot_can_be_named(tiny_served: Site) -> None:
    for slot in (1, 0, 1):
        assert complete(tiny_served, id_slot=slot)["id_slot"] == slot


def test_samplers_can_be_named_by_letters(tiny_served: Site) -> None:
    order = complete(tiny_served, samplers="kt")["generation_settings"]["samplers"]
    assert order == complete(tiny_served, samplers=["top_k", "temperature"])["generation_settings"]["samplers"]
    assert order == ["top_k", "temperature"]


def test_an_answer_with_too_little_time_ends_at_a_line(tiny_served: Site) -> None:
    """As in llama-server: not before there is a new line, which is what programs that fill in code wait for."""
    lines = {"logit_bias": [["\n", 1000]], "n_predict": 400}
    cut = complete(tiny_served, **lines, t_max_predict_ms=1)
    assert cut["stop_type"] == "limit"
    assert cut["tokens_predicted"] < 400
    assert cut["has_new_line"]
    assert complete(tiny_served, logit_bias=[["z", 1000]], n_predict=40, t_max_predict_ms=1)["tokens_predicted"] == 40
