"""Flags made from the fields of `Sampling`; those that llama.cpp has carry its names."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import typer

from diptych.errors import InputError
from diptych.llama import ranges
from diptych.types import Sampling

Given = Mapping[str, Any]  # fields of Sampling that flags were given for

_PANEL = "Sampling"
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\", '"': '"', "'": "'"}

# field → its flags and help, in the order of the help page
_FLAGS: dict[str, tuple[str, str]] = {
    "temperature": ("--temp --temperature", "Temperature; 0 always takes the likeliest token."),
    "top_k": ("--top-k", "Keep the k likeliest tokens; 0 keeps all."),
    "top_p": ("--top-p", "Keep the likeliest tokens up to this share."),
    "min_p": ("--min-p", "Drop tokens below this part of the likeliest."),
    "typical_p": ("--typical --typical-p", "Keep the most typical tokens up to this share; 1 keeps all."),
    "top_n_sigma": ("--top-n-sigma --top-nsigma", "Keep tokens within so many standard deviations of the best; -1 keeps all."),
    "min_keep": ("--min-keep", "How many tokens those that cut leave at least."),
    "xtc_probability": ("--xtc-probability", "How often the likeliest tokens are left out, all but the last (XTC)."),
    "xtc_threshold": ("--xtc-threshold", "From which probability on they are; over 0.5 none."),
    "dynatemp_range": ("--dynatemp-range", "The temperature moves by this much with the entropy."),
    "dynatemp_exponent": ("--dynatemp-exp", "How the entropy moves it."),
    "mirostat": ("--mirostat", "Steer the entropy instead of cutting: 1 or 2 (its version)."),
    "mirostat_eta": ("--mirostat-lr", "How fast it is steered."),
    "mirostat_tau": ("--mirostat-ent", "Where it is steered to."),
    "repeat_penalty": ("--repeat-penalty", "Penalty on tokens seen lately; 1 is none."),
    "repeat_last_n": ("--repeat-last-n", "How many tokens count as lately; -1 all."),
    "presence_penalty": ("--presence-penalty", "Penalty on tokens seen at all."),
    "frequency_penalty": ("--frequency-penalty", "Penalty by times seen."),
    "repetition_penalty": ("--repetition-penalty", "Penalty on tokens anywhere in prompt and answer, as vLLM has it; 1 is none."),
    "no_repeat_ngram_size": ("--no-repeat-ngram-size", "No n tokens in a row come twice in an answer; 0 lets them."),
    "dry_multiplier": ("--dry-multiplier", "Penalty on going on as before (DRY); 0 is none."),
    "dry_base": ("--dry-base", "How it grows with the length of what comes again."),
    "dry_allowed_length": ("--dry-allowed-length", "The length that may come again without it."),
    "dry_penalty_last_n": ("--dry-penalty-last-n", "How many tokens it looks back; -1 all."),
    "dry_sequence_breakers": ("--dry-sequence-breaker", "A text it does not look past; repeatable; none for no such text."),
    "samplers": ("--samplers --sampler-seq --sampling-seq", "Samplers in their order, between semicolons or one letter each."),
    "logit_bias": ("-l --logit-bias", "Make a token likelier or less likely: TOKEN+N, TOKEN-N, TOKEN-inf; repeatable."),
    "ignore_eos": ("--ignore-eos", "Go on where the model would end."),
    "min_tokens": ("--min-tokens", "Tokens of the answer before the model may end it."),
    "seed": ("-s --seed", "Seed of the sampler; random when absent."),
    "grammar": ("--grammar", "GBNF grammar the answer must follow."),
    "json_schema": ("-j --json-schema", "JSON schema the answer must follow."),
}
_FILES = {"grammar": "--grammar-file", "json_schema": "-jf --json-schema-file"}  # the same from a file


def with_sampling(function: Callable[..., None]) -> Callable[..., None]:
    """Replace the parameter `sampling: Given` of a command by a flag for each field of `Sampling`.

    It holds what was given; raises InputError for a value out of its range.
    """
    signature = inspect.signature(function, eval_str=True)
    own = [p for p in signature.parameters.values() if p.name != "sampling"]

    def command(**given: Any) -> None:  # noqa: ANN401
        values = {name: given.pop(name) for name in _FLAGS}
        files = {name: given.pop(f"{name}_file") for name in _FILES}
        function(**given, sampling=_given(values, files))

    command.__doc__ = function.__doc__
    command.__name__ = function.__name__
    flags = [_flag(name) for name in _FLAGS] + [_file_flag(name) for name in _FILES]
    command.__signature__ = signature.replace(parameters=[*own, *flags])  # type: ignore[attr-defined]
    return command


def _flag(name: str) -> inspect.Parameter:
    spellings, text = _FLAGS[name]
    kind: Any = get_type_hints(Sampling)[name]
    default = next(f.default for f in fields(Sampling) if f.name == name)
    kind = next((a for a in get_args(kind) if a is not type(None)), kind) if get_origin(kind) is not tuple else list[str]
    kind = str if name == "samplers" else kind
    shown = default if isinstance(default, int | float) and not isinstance(default, bool) else None
    return _parameter(name, spellings, kind, text, str(shown) if shown is not None else False)


def _file_flag(name: str) -> inspect.Parameter:
    return _parameter(f"{name}_file", _FILES[name], Path, f"The same as {_FLAGS[name][0].split()[-1]}, from a file.", False)


def _parameter(name: str, spellings: str, kind: Any, text: str, shown: str | bool) -> inspect.Parameter:  # noqa: ANN401
    info = typer.Option(None, *spellings.split(), help=text, show_default=shown, rich_help_panel=_PANEL)
    if kind is bool:
        info.is_flag, info.default = True, False
        return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=info, annotation=bool)
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=info, annotation=kind | None)


def _given(values: dict[str, Any], files: dict[str, Path | None]) -> Given:
    """The fields that were given, read and checked."""
    given = {name: value for name, value in values.items() if value is not None and value is not False and value != []}
    out: dict[str, Any] = {name: _READ[name](value) if name in _READ else value for name, value in given.items()}
    for name, file in files.items():
        if file is not None:
            out[name] = _content(_FILES[name].split()[-1], file)
    if out.get("seed") == -1:  # random, to llama.cpp
        del out["seed"]
    ranges.check(replace(Sampling(), **out))
    return out


def _content(flag: str, file: Path) -> str:
    try:
        return file.read_text()
    except OSError as error:
        raise InputError(f"{flag} {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{flag} {file} is not UTF-8 text: {error.reason} at byte {error.start}") from error


def _samplers(text: str) -> tuple[str, ...]:
    from diptych.llama import chain  # it brings llama.cpp along, which a page of help does without

    return tuple(map(chain.sampler, chain.names(text)))


def _breakers(texts: list[str]) -> tuple[str, ...]:
    return tuple(re.sub(r"\\(.)", lambda m: _ESCAPES.get(m[1], m[0]), text) for text in texts if text != "none")


def _biases(texts: list[str]) -> tuple[tuple[int, float], ...]:
    out = []
    for text in texts:
        match = re.fullmatch(r"(\d{1,9})([+-](?:\d+(?:\.\d*)?|\.\d+|inf))", text.strip())
        if match is None or float(match[2]) == math.inf:
            raise InputError(f"--logit-bias {text}: expected a token and what is added, such as 15043+1, 15043-0.5 or 15043-inf")
        out.append((int(match[1]), float(match[2])))
    return tuple(out)


_READ: dict[str, Callable[[Any], object]] = {
    "samplers": _samplers,
    "dry_sequence_breakers": _breakers,
    "logit_bias": _biases,
}
