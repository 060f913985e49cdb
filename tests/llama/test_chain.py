"""The chain chooses what llama.cpp's own `common_sampler` would: the same samplers, order and random numbers."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import llama_cpp.llama_cpp as lib
import numpy as np
import pytest

from diptych.errors import InputError
from diptych.llama import chain
from diptych.llama.chain import Chain
from diptych.llama.model import TextModel
from diptych.types import Sampling

N = 20_000  # enough for tokens that cannot be chosen to be left out before
ROUNDS = 12
PROMPT = [5, 9, 5, 9, 7, 5, 9]


def reference(model: TextModel, s: Sampling, seed: int, prompt: list[int], rows: np.ndarray) -> list[int]:
    """What sampling.cpp builds, written down once more: every sampler in its place, on all candidates."""
    breakers = (ctypes.c_char_p * len(s.dry_sequence_breakers))(*(b.encode() for b in s.dry_sequence_breakers))
    make: dict[str, Callable[[], Any]] = {
        "penalties": lambda: lib.llama_sampler_init_penalties(
            N, s.repeat_last_n, s.repeat_penalty, s.frequency_penalty, s.presence_penalty
        ),
        "dry": lambda: lib.llama_sampler_init_dry(
            model.vocab, s.dry_multiplier, s.dry_base, s.dry_allowed_length, s.dry_penalty_last_n, breakers, len(breakers)
        ),
        "top_n_sigma": lambda: lib.llama_sampler_init_top_n_sigma(s.top_n_sigma),
        "top_k": lambda: lib.llama_sampler_init_top_k(s.top_k),
        "typ_p": lambda: lib.llama_sampler_init_typical(s.typical_p, s.min_keep),
        "top_p": lambda: lib.llama_sampler_init_top_p(s.top_p, s.min_keep),
        "min_p": lambda: lib.llama_sampler_init_min_p(s.min_p, s.min_keep),
        "xtc": lambda: lib.llama_sampler_init_xtc(s.xtc_probability, s.xtc_threshold, s.min_keep, seed),
        "temperature": lambda: lib.llama_sampler_init_temp_ext(s.temperature, s.dynatemp_range, s.dynatemp_exponent),
    }
    default = ["penalties", "dry", "top_n_sigma", "top_k", "typ_p", "top_p", "min_p", "xtc", "temperature"]  # common.h
    if s.mirostat == 0:
        parts = [make[name]() for name in (default if s.samplers is None else s.samplers)] + [lib.llama_sampler_init_dist(seed)]
    elif s.mirostat == 1:
        parts = [
            lib.llama_sampler_init_temp(s.temperature),
            lib.llama_sampler_init_mirostat(model.n_vocab, seed, s.mirostat_tau, s.mirostat_eta, 100),
        ]
    else:
        parts = [
            lib.llama_sampler_init_temp(s.temperature),
            lib.llama_sampler_init_mirostat_v2(seed, s.mirostat_tau, s.mirostat_eta),
        ]
    whole = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
    for part in parts:
        lib.llama_sampler_chain_add(whole, part)
    for token in prompt:
        lib.llama_sampler_accept(whole, token)
    out = []
    for row in rows:
        data = np.zeros(N, "i4,f4,f4")
        data["f0"], data["f1"] = range(N), row
        array = lib.llama_token_data_array(ctypes.cast(data.ctypes.data, lib.llama_token_data_p), N, -1, False)
        lib.llama_sampler_apply(whole, ctypes.byref(array))
        out.append(array.data[array.selected].id)
        lib.llama_sampler_accept(whole, out[-1])
    lib.llama_sampler_free(whole)
    return out


def ours(model: TextModel, s: Sampling, seed: int, prompt: list[int], rows: np.ndarray) -> list[int]:
    out = []
    with Chain(model, s, seed) as made:
        made.accept(prompt)
        for row in rows:
            out.append(made.choose(row).chosen)
            made.accept(out[-1:])
    return out


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    """Logits of a few tokens that come again and again, and others."""
    rng = np.random.default_rng(0)
    rows = (rng.standard_normal((ROUNDS, N)) * 2).astype(np.float32)
    rows[:, [5, 7, 9, 11]] += 7
    return rows


PENALTIES = {"repeat_penalty": 1.3, "frequency_penalty": 0.4, "presence_penalty": 0.6}
CASES: dict[str, dict[str, Any]] = {
    "defaults": {},
    "greedy": {"temperature": 0},
    "below zero": {"temperature": -1},
    "greedy without a top k": {"temperature": 0, "top_k": 0},
    "greedy with penalties": {"temperature": 0, "top_k": 0, **PENALTIES},
    "greedy with penalties that reward": {"temperature": 0, "repeat_penalty": 0.5, "presence_penalty": -9, "repeat_last_n": 3},
    "greedy with typical": {"temperature": 0, "typical_p": 0.5},
    "greedy with xtc": {"temperature": 0, "xtc_probability": 1.0, "xtc_threshold": 0.01},
    "greedy with a range of temperatures": {"temperature": 0, "dynatemp_range": 1.5},
    "all of them": {"temperature": 1, "top_k": 0, "top_p": 1, "min_p": 0},
    "penalties": PENALTIES,
    "penalties on few": {**PENALTIES, "repeat_last_n": 2},
    "top p alone": {"top_k": 0, "min_p": 0, "top_p": 0.6},
    "min p alone": {"top_k": 0, "top_p": 1, "min_p": 0.2},
    "typical": {"typical_p": 0.4, "top_k": 0},
    "typical behind top k": {"typical_p": 0.4},
    "top n sigma": {"top_n_sigma": 1.2},
    "xtc": {"xtc_probability": 0.7, "xtc_threshold": 0.05, "top_k": 12},
    "dynamic temperature": {"dynatemp_range": 0.5, "dynatemp_exponent": 1.4},
    "many kept": {"min_keep": 30, "top_p": 0.1, "min_p": 0.9},
    "dry": {"dry_multiplier": 5, "dry_allowed_length": 1, "dry_penalty_last_n": 64, "temperature": 0.1},
    "dry without breakers": {"dry_multiplier": 5, "dry_base": 2, "dry_sequence_breakers": (), "temperature": 0.1},
    "mirostat": {"mirostat": 1, "mirostat_tau": 3.0, "mirostat_eta": 0.2},
    "mirostat 2": {"mirostat": 2, "mirostat_tau": 2.0, **PENALTIES},
    "mirostat greedy": {"mirostat": 2, "temperature": 0},
    "another order": {"samplers": ("temperature", "min_p", "top_k"), "top_k": 5, "temperature": 3},
    "top k twice": {"samplers": ("top_k", "temperature", "penalties", "top_k"), **PENALTIES},
    "no temperature": {"samplers": ("top_k",), "temperature": 0},
    "none": {"samplers": ()},
}


@pytest.mark.parametrize("fields", CASES.values(), ids=CASES)
def test_a_seed_chooses_as_in_llama_cpp(text: TextModel, rows: np.ndarray, fields: dict[str, Any]) -> None:
    sampling = Sampling(**fields)
    if sampling.samplers == ():
        rows = rows[:4]
    for seed in (1, 7):
        assert ours(text, sampling, seed, PROMPT, rows) == reference(text, sampling, seed, PROMPT, rows)


def test_each_setting_changes_what_is_chosen(text: TextModel, rows: np.ndarray) -> None:
    """Or the comparison above would show nothing."""
    plain = {name: ours(text, Sampling(**CASES[name]), 1, PROMPT, rows) for name in ("defaults", "greedy")}
    same = {"below zero", "greedy without a top k", "mirostat greedy"}
    for name in CASES.keys() - same - plain.keys() - {"none"}:
        base = "greedy" if name.startswith("greedy") else "defaults"
        assert any(ours(text, Sampling(**CASES[name]), seed, PROMPT, rows) != plain[base] for seed in (1,)), name
    for name in same:
        assert ours(text, Sampling(**CASES[name]), 1, PROMPT, rows) == plain["greedy"], name


def test_what_is_left_of_all_tokens_is_what_is_left_of_the_likeliest(text: TextModel, rows: np.ndarray) -> None:
    """The probabilities behind the chain, over the whole vocabulary and over the short list."""
    with Chain(text, Sampling(**PENALTIES), 1) as short, Chain(text, replace(Sampling(), min_keep=1, **PENALTIES), 1) as whole:
        whole._n_best = None
        for made in (short, whole):
            made.accept(PROMPT)
        few, all_ = short.choose(rows[0]), whole.choose(rows[0])
        assert len(few.rows) < 200 < len(all_.rows)
        assert few.probabilities(100) == all_.probabilities(100)


def test_a_penalty_never_looks_back_further_than_a_context(text: TextModel) -> None:
    """Memory is set aside for each token: two billion of them were the end of the process."""
    large = 2**31 - 1
    for n in (large, -1):
        fields = {"repeat_last_n": n, "dry_penalty_last_n": n, "dry_multiplier": 1.0, "repeat_penalty": 2.0, "temperature": 0}
        with Chain(text, Sampling(**fields), 1) as made:
            made.accept([3] * 100)
            assert made._window is not None
            assert made._window._last.maxlen == text.n_ctx_train


@pytest.mark.parametrize(
    ("written", "name"),
    [("Top-K", "top_k"), ("topk", "top_k"), ("nucleus", "top_p"), ("temp", "temperature"), ("typical-p", "typ_p"),
     ("typ", "typ_p"), ("min-p", "min_p"), ("top-n-sigma", "top_n_sigma"), ("topnsigma", "top_n_sigma"), ("XTC", "xtc")],
)  # fmt: skip
def test_samplers_have_the_names_that_llama_cpp_takes(written: str, name: str) -> None:
    assert chain.sampler(written) == name


@pytest.mark.parametrize("name", ["infill", "adaptive_p", "", "top"])
def test_a_sampler_there_is_not_is_named(text: TextModel, name: str) -> None:
    with pytest.raises(InputError, match=r"there is no sampler .*; there are penalties, dry"):
        Chain(text, Sampling(samplers=(name,)), 1)
    with pytest.raises(InputError, match="at most 64"):
        Chain(text, Sampling(samplers=("top_k",) * 65), 1)


def test_a_command_line_writes_samplers_as_names_or_as_letters() -> None:
    assert chain.names("top_k; temp") == ("top_k", "temp")
    assert chain.names("edskypmxt") == chain.ORDER
    assert [chain.names(one) for one in ("dry", "temp", "typ", "k")] == [("dry",), ("temp",), ("typ",), ("top_k",)]
