"""Every field of `Sampling` has a flag, by llama.cpp's name where it has one."""

from __future__ import annotations

import json
import math
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from cli.conftest import Diptych
from diptych.cli import sampling
from diptych.cli.sampling import Given
from diptych.errors import InputError
from diptych.types import Sampling


def given(*arguments: object) -> Given:
    """The fields that a command gets for its flags."""
    got: list[Given] = []

    @sampling.with_sampling
    def command(*, sampling: Given) -> None:
        got.append(sampling)

    app = typer.Typer()
    app.command()(command)
    result = CliRunner().invoke(app, [*map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return got[0]


def test_every_field_has_a_flag_but_what_a_client_alone_can_ask_for() -> None:
    assert {f.name for f in fields(Sampling)} - sampling._FLAGS.keys() == {"grammar_triggers"}


def test_what_is_not_given_stays_the_models_own() -> None:
    assert given() == {}
    assert given("--temp", 0, "--top-k", 0) == {"temperature": 0.0, "top_k": 0}


@pytest.mark.parametrize(
    ("arguments", "fields"),
    [
        (("--typical", 0.5, "--min-keep", 2), {"typical_p": 0.5, "min_keep": 2}),
        (("--xtc-probability", 0.5, "--xtc-threshold", 0.2), {"xtc_probability": 0.5, "xtc_threshold": 0.2}),
        (("--mirostat", 2, "--mirostat-lr", 0.2, "--mirostat-ent", 4), {"mirostat": 2, "mirostat_eta": 0.2, "mirostat_tau": 4.0}),
        (("--dynatemp-range", 0.5, "--dynatemp-exp", 2), {"dynatemp_range": 0.5, "dynatemp_exponent": 2.0}),
        (("--samplers", "top_k;temp"), {"samplers": ("top_k", "temperature")}),
        (("--sampling-seq", "kt"), {"samplers": ("top_k", "temperature")}),
        (("--ignore-eos",), {"ignore_eos": True}),
        (("-l", "5+1.5", "-l", "7-inf"), {"logit_bias": ((5, 1.5), (7, -math.inf))}),
        (("--dry-sequence-breaker", "\\n", "--dry-sequence-breaker", "x"), {"dry_sequence_breakers": ("\n", "x")}),
        (("--dry-sequence-breaker", "none"), {"dry_sequence_breakers": ()}),
        (("-s", 7), {"seed": 7}),
        (("-s", -1), {}),
    ],
)  # fmt: skip
def test_flags_are_read_as_in_llama_cpp(arguments: tuple[object, ...], fields: dict[str, Any]) -> None:
    assert given(*arguments) == fields


def test_a_grammar_or_schema_may_come_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "g").write_text('root ::= "a"')
    (tmp_path / "bad").write_bytes(b"\xff")
    assert given("--grammar-file", tmp_path / "g") == {"grammar": 'root ::= "a"'}
    assert given("-jf", tmp_path / "g") == {"json_schema": 'root ::= "a"'}
    for name, words in {"missing": "No such file", ".": "Is a directory", "bad": "not UTF-8"}.items():
        with pytest.raises(InputError, match=words):
            given("--grammar-file", tmp_path / name)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--top-p", 2), "top_p is 2"),
        (("--samplers", "infill"), "there is no sampler"),
        (("-l", "x"), "--logit-bias x"),
        (("-l", "5+inf"), "--logit-bias"),
        (("--mirostat", 3), "mirostat is 3"),
    ],
)
def test_a_value_that_makes_no_sense_is_refused_before_a_model_is_loaded(arguments: tuple[object, ...], words: str) -> None:
    with pytest.raises(InputError, match=words):
        given(*arguments)


def test_run_takes_them(diptych: Diptych) -> None:
    arguments = ("--samplers", "top_k;temperature", "--top-k", 1, "--ignore-eos", "-n", 3, "--json")
    done = diptych("run", "reader", "-p", "Read it.", *arguments)
    assert done.code == 0, done.err
    assert len(json.loads(done.out)["tokens"]) == 3
    refused = diptych("run", "nowhere", "-p", "x", "--top-p", "1.5")
    assert (refused.code, refused.err.strip()) == (2, "error: top_p is 1.5; it must be from 0 to 1")
