"""A grammar holds from the beginning of the answer, or from the text that a trigger matches."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest

import tiny
from diptych.errors import GrammarError
from diptych.llama.constraint import Constraint
from diptych.llama.context import Context
from diptych.llama.model import TextModel
from diptych.llama.sampler import Sampler
from diptych.types import Batch, Sampling, Segment

CALL = 'root ::= "<c>" [0-9]+ "</c>"'


def taken(constraint: Constraint, tokens: list[int]) -> bool:
    """Whether a constraint allows tokens one behind the other."""
    for token in tokens:
        if not constraint.allows(token):
            return False
        constraint.take(token)
    return True


def as_bytes(text: TextModel, s: str) -> list[int]:
    return [t for c in s.encode() for t in range(256) if text.piece(t) == bytes([c])]


def test_text_before_a_trigger_is_free_and_text_behind_it_is_not(text: TextModel) -> None:
    made = Constraint(text, CALL, ("<c>",))
    assert taken(made, as_bytes(text, "any <c or 12</c> <"))
    assert made.waiting
    assert taken(made, as_bytes(text, "c>12"))
    assert not made.waiting
    assert not made.allows(*as_bytes(text, "x"))
    assert taken(made, as_bytes(text, "3</c>"))
    assert not made.allows(*as_bytes(text, "1"))
    (end,) = text.tokenize("<|im_end|>")
    assert made.allows(end)


def test_an_answer_may_end_while_no_trigger_has_matched(text: TextModel) -> None:
    made = Constraint(text, CALL, ("<c>",))
    (end,) = text.tokenize("<|im_end|>")
    assert taken(made, [*as_bytes(text, "<c"), end])


def test_a_token_may_hold_text_before_the_match_and_behind_it(text: TextModel) -> None:
    token = next(t for t in range(256, text.n_vocab) if len(text.piece(t)) >= 3 and text.piece(t).isascii())
    piece = text.piece(token).decode()
    first, second, rest = piece[0], piece[1], piece[2:]
    fits = Constraint(text, f'root ::= "{second}" "{rest}" "!"', (f"{second}",))
    assert taken(fits, [token]), f"{first!r} stands before the match"
    assert fits.allows(*as_bytes(text, "!"))
    assert not fits.allows(*as_bytes(text, "?"))
    refuses = Constraint(text, f'root ::= "{second}" "!"', (f"{second}",))
    for _ in range(2):
        assert not refuses.allows(token), f"{rest!r} stands behind it"
    assert refuses.waiting
    assert taken(refuses, as_bytes(text, second + "!")), "what was refused left no trace"


def test_the_match_may_cut_a_character_in_two(text: TextModel) -> None:
    euro = as_bytes(text, "€")
    made = Constraint(text, 'root ::= "a€" "b"', ("a€",))
    assert taken(made, [*as_bytes(text, "€a"), *euro, *as_bytes(text, "b")])


def test_special_tokens_are_text_to_a_trigger_and_to_a_grammar(text: TextModel) -> None:
    (start,) = text.tokenize("<|im_start|>")
    made = Constraint(text, 'root ::= "<|im_start|>" [0-9]', (r"<\|im_start\|>",))
    assert taken(made, [*as_bytes(text, "x"), start, *as_bytes(text, "7")])
    assert not made.allows(*as_bytes(text, "7"))


def test_without_a_match_the_grammar_must_still_be_sound(text: TextModel) -> None:
    for sampling, words in {
        Sampling(grammar="root ::= (", grammar_triggers=("x",)): "line 1",
        Sampling(grammar=CALL, grammar_triggers=("(",)): "not a sound pattern",
        Sampling(grammar_triggers=("x",)): "no grammar",
    }.items():
        with pytest.raises(GrammarError, match=words):
            Sampler(text, sampling)


@pytest.fixture(scope="module")
def logits(text: TextModel) -> Iterator[Context]:
    with Context(text, tiny.EXACT) as context:
        one = Segment(0, np.zeros((1, 1), np.int32), tokens=np.ones(1, np.int32), wants_logits=True)
        assert context.decode(Batch((one,)))
        yield context


def test_a_token_that_spoils_a_match_is_passed_over(text: TextModel, logits: Context) -> None:
    order = np.argsort(logits.logits(0))[::-1]
    best = next(int(t) for t in order if text.piece(int(t)).isalnum() and len(text.piece(int(t))) == 1)
    letter = text.piece(best).decode()
    biased = ((best, 100.0),)
    with Sampler(text, Sampling(temperature=0, logit_bias=biased)) as sampler:
        assert sampler.sample(logits, 0).token == best
    cannot = Sampling(temperature=0, logit_bias=biased, grammar='root ::= "~"', grammar_triggers=(letter,))
    with Sampler(text, cannot) as sampler:
        plain = int(next(t for t in order if letter.encode() not in text.piece(int(t), special=True)))
        assert sampler.sample(logits, 0).token == plain
    letters = tuple((t, 100.0) for t in range(256) if text.piece(t).isascii())
    everything = Sampling(temperature=0, logit_bias=letters, grammar='root ::= "\u20ac"', grammar_triggers=(r"[\s\S]",))
    with Sampler(text, everything) as sampler, pytest.raises(GrammarError, match="does not fit the grammar"):
        sampler.sample(logits, 0)


def test_waiting_for_a_trigger_costs_the_same_at_each_token(text: TextModel) -> None:
    made = Constraint(text, CALL, ("<c>", r"^\s*\{", r"<x>\s*<y>"))
    tokens = as_bytes(text, "<some text of no interest ") * 400
    started = time.thread_time()
    assert taken(made, tokens)
    assert time.thread_time() - started < 10


def test_a_tokenizer_that_puts_a_space_before_text_is_no_hindrance(tmp_path: Path) -> None:
    with TextModel.load(sentencepiece(tmp_path / "spm.gguf")) as model:
        (joined,) = [t for t in range(model.n_vocab) if model.piece(t) == b"x<c>"]
        made = Constraint(model, CALL, ("<c>",))
        assert model.tokenize("<c>") != [t for t in range(model.n_vocab) if model.piece(t) == b"<c>"]
        assert taken(made, [joined, *(3 + b for b in b"1</c>")])
        assert not made.waiting


def sentencepiece(path: Path) -> Path:
    """A model with a vocabulary of bytes and two words, as SentencePiece has it."""
    writer, d = gguf.GGUFWriter(path, "llama"), 8
    writer.add_context_length(64)
    writer.add_embedding_length(d)
    writer.add_block_count(1)
    writer.add_feed_forward_length(d)
    writer.add_head_count(1)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    kinds = gguf.TokenType
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "<c>", "x<c>", "▁"]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * 259 + [-1.0, -2.0, -3.0])
    writer.add_token_types([kinds.UNKNOWN, kinds.CONTROL, kinds.CONTROL] + [kinds.BYTE] * 256 + [kinds.NORMAL] * 3)
    writer.add_add_space_prefix(True)
    square = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    shapes: dict[str, tuple[int, ...]] = {f"blk.0.{n}.weight": (d, d) for n in square}
    shapes |= {f"{n}.weight": (d,) for n in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm")}
    shapes["token_embd.weight"] = (len(tokens), d)
    for name, shape in shapes.items():
        writer.add_tensor(name, np.ones(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
