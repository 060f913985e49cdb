"""The whole engine on a tiny model: what is asked in which form, what comes out, and what it costs."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from pathlib import Path

import pytest
from asking import GREEDY, Load, joined, outputs, png, request, together, tokens

from diptych.encoder.encoder import Encoder
from diptych.engine import Engine
from diptych.engine.sequence import Sequence
from diptych.errors import ContextOverflow, EngineError, FileError, InputError, MediaError, MismatchedHalves
from diptych.types import MediaSettings, Message, Request, Sampling, Source


def test_a_question_without_pictures_is_answered(engine: Engine) -> None:
    text, last = engine.answer("the user", max_tokens=5, temperature=0)
    assert last.finish_reason == "length"
    assert last.usage.completion_tokens == 5
    assert last.usage.media_tokens == 0
    assert text == engine.ask("the user", max_tokens=5, temperature=0)
    assert engine.stats().encoder.runs == 0


def test_every_piece_tells_usage_and_timings_up_to_it(engine: Engine) -> None:
    found = outputs(engine, request(png(7), "what", n=6))
    last = found[-1].usage
    assert {(o.usage.prompt_tokens, o.usage.media_tokens, o.usage.cached_tokens) for o in found} == {
        (last.prompt_tokens, 12, last.cached_tokens)
    }
    counted = [o.usage.completion_tokens for o in found]
    assert counted == sorted(counted)
    assert 0 < counted[0] < counted[-1] == 6
    assert all(o.timings.prefill_ms > 0 and o.timings.time_to_first_token_ms > 0 for o in found)


def test_pictures_are_counted_and_change_the_answer(engine: Engine) -> None:
    one, two = (outputs(engine, request(png(seed), "what", n=16)) for seed in (0, 1))
    assert joined(one) != joined(two)
    usage = one[-1].usage
    assert (usage.media_tokens, usage.completion_tokens) == (12, 16)
    assert usage.prompt_tokens == outputs(engine, request("what"))[-1].usage.prompt_tokens + 12 + 2


def test_pictures_come_as_bytes_paths_urls_and_sources(engine: Engine, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png())
    forms = [png(), path, str(path), path.as_uri(), Source("image", data=png())]
    answers = {engine.ask("what", [form], max_tokens=12, temperature=0) for form in forms}
    assert len(answers) == 1


def test_the_same_picture_twice_is_encoded_once_and_decoded_twice(engine: Engine) -> None:
    found = outputs(engine, request(png(), "and", png(), "differ"))
    assert found[-1].usage.media_tokens == 24
    assert engine.stats().encoder.pieces == 1
    assert engine.stats().media_rows == 24


@pytest.mark.parametrize(
    "parts",
    [
        (png(0), "what", png(1, 56, 140), "the"),
        ("what is", png(0)),
        (png(0), png(1), png(0)),
        (png(0, 280, 224),),
    ],
    ids=["two pictures", "last", "nothing between", "larger than a batch"],
)
def test_the_answer_does_not_depend_on_how_the_prompt_is_cut_into_batches(load: Load, parts: tuple[str | bytes, ...]) -> None:
    wanted = request(*parts, n=12)
    expected = tokens(load(), wanted)
    for options in ({"n_batch": 16, "n_ubatch": 16}, {"n_batch": 7, "n_ubatch": 3}):
        assert tokens(load(**options), wanted) == expected


def test_requests_side_by_side_are_answered_as_each_alone(load: Load) -> None:
    wanted = [
        request(png(0), "what", n=24),
        request("the user says " * 8, n=24),
        request("in the", png(1, 140, 140), png(0), n=24),
    ]
    alone = [tokens(load(), one) for one in wanted]
    engine = load(n_parallel=3, n_batch=32)

    assert together(engine, wanted) == alone
    assert engine.stats().running == engine.stats().waiting == 0


def test_who_comes_when_all_slots_are_taken_is_served_later(load: Load) -> None:
    engine = load(n_parallel=2)
    wanted = [request(f"user {i}", png(i), n=6) for i in range(6)]

    assert together(engine, wanted) == [tokens(load(), one) for one in wanted]


def test_when_the_cache_is_full_the_newest_waits_and_all_answers_are_as_each_alone(load: Load) -> None:
    wanted = [request(f"the user {i} ", png(i), n=100) for i in range(3)]
    alone = [tokens(load(), one) for one in wanted]
    engine = load(n_parallel=3, n_ctx=256)

    assert together(engine, wanted) == alone
    decoded = engine.stats().token_rows + engine.stats().media_rows
    assert decoded > sum(n.usage.prompt_tokens for n in [outputs(load(), one)[-1] for one in wanted]) + 3 * 99  # some twice


def test_who_left_the_full_cache_is_first_in_line_again(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, order, running = load(n_parallel=2, n_ctx=256), [], []
    slots = engine._loop._slots
    take = slots.take

    def noting(one: Sequence) -> None:
        order.append(one.request.max_tokens)
        running.append(engine.stats().running)
        take(one)

    monkeypatch.setattr(slots, "take", noting)
    together(engine, [request("the user " * 9, n=n) for n in (101, 102, 103)])
    first, second, third = dict.fromkeys(order)
    assert order[:4] == [first, second, second, third]
    running.clear()
    together(engine, [request("user", n=80), request("the", n=80)])
    assert max(running) == 2  # where there is room again, they run side by side again


@pytest.mark.parametrize("full", [False, True], ids=["as it is", "by its own account never full"])
def test_a_cache_that_is_full_before_it_should_be_stops_nobody(load: Load, monkeypatch: pytest.MonkeyPatch, full: bool) -> None:
    wanted = [request(f"the user {i} ", n=100) for i in range(3)]
    alone = [tokens(load(), one) for one in wanted]
    engine = load(n_parallel=3, n_ctx=256)
    if full:
        monkeypatch.setattr(engine._context, "n_ctx", 10**6)
    assert together(engine, wanted) == alone


def test_a_prompt_that_does_not_fit_beside_the_others_waits_and_is_decoded_once(load: Load) -> None:
    engine = load(n_parallel=2, n_ctx=256)
    wanted = [request(digit * 150, n=20) for digit in "39"]
    assert together(engine, wanted) == [tokens(load(), one) for one in wanted]
    usages = [outputs(load(), one)[-1].usage for one in wanted]
    stats = engine.stats()
    assert stats.token_rows + stats.n_reused == sum(u.prompt_tokens + u.completion_tokens - 1 for u in usages)


def test_what_idles_in_the_cache_makes_room(load: Load) -> None:
    engine = load(n_parallel=2, n_ctx=256)
    together(engine, [request("one " * 9, n=40), request("two " * 9, n=40)])
    idle = engine.stats().kv_rows
    assert idle > 128
    last = outputs(engine, request("what", n=None))[-1]
    assert last.finish_reason == "length"
    assert last.usage.prompt_tokens + last.usage.completion_tokens == 257
    assert engine.stats().kv_rows == 256


def test_tokens_and_texts_of_a_stream_are_those_of_the_whole(engine: Engine) -> None:
    found = outputs(engine, request(png(), "what", n=40))
    ids = joined(found)
    assert len(ids) == 40 == found[-1].usage.completion_tokens
    assert [output.finish_reason for output in found[:-1]] == [None] * (len(found) - 1)
    assert all(output.text for output in found[:-1])
    whole = b"".join(engine._text.piece(token) for token in ids).decode(errors="replace")
    assert "".join(output.text for output in found) == whole


def test_characters_of_several_tokens_come_whole(engine: Engine) -> None:
    # the tiny vocabulary has single bytes only, so each of these takes three tokens
    grammar = 'root ::= "a€b→"'
    found = outputs(engine, request("what", sampling=replace(GREEDY, grammar=grammar), n=None))
    assert [output.text for output in found] == ["a", "€", "b", "→", ""]
    assert found[-1].finish_reason == "stop"
    assert [len(output.tokens) for output in found] == [1, 3, 1, 3, 1]  # the last is the token that ends the answer


def test_a_stop_string_across_tokens_ends_the_answer_and_is_not_part_of_it(engine: Engine) -> None:
    sampling = replace(GREEDY, grammar='root ::= "one two three"')
    found = outputs(engine, request("what", sampling=sampling, n=None, stop=("o th", "xyz")))
    assert "".join(output.text for output in found) == "one tw"
    assert found[-1].finish_reason == "stop"
    assert b"".join(map(engine._text.piece, joined(found))) == b"one two th"  # nothing is decoded behind it


def test_the_same_seed_gives_the_same_answer_and_another_seed_another(engine: Engine) -> None:
    one, same, other = (
        tokens(engine, request(png(), "what", n=24, sampling=Sampling(temperature=2.0, top_k=0, top_p=1, min_p=0, seed=seed)))
        for seed in (1, 1, 2)
    )
    assert one == same
    assert one != other


def test_the_answer_ends_where_the_context_does(load: Load) -> None:
    engine = load(n_ctx=256)
    last = outputs(engine, request("the " * 60, n=None))[-1]
    assert last.finish_reason == "length"
    assert last.usage.prompt_tokens + last.usage.completion_tokens == 256 + 1  # the last token needs no place in the cache


def test_a_prompt_longer_than_the_context_is_refused_before_anything_is_encoded(load: Load) -> None:
    engine = load(n_ctx=256)
    with pytest.raises(ContextOverflow, match=r"n_tokens 4\d\d, 400 of them of pictures.* n_ctx 256.*max_pixels"):
        outputs(engine, request(png(0, 560, 560), "what"))
    assert engine.stats().encoder.runs == 0
    assert tokens(engine, request("what"))


def test_a_text_that_no_context_holds_is_refused_before_it_is_tokenised(load: Load) -> None:
    engine = load(n_ctx=256)
    start = time.perf_counter()
    with pytest.raises(ContextOverflow, match=r"20,000,1\d\d characters"):
        outputs(engine, request("1" * 20_000_000))
    assert time.perf_counter() - start < 5


def test_no_more_pictures_are_looked_at_than_the_context_holds(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = load(n_ctx=256)
    made, half = [], engine._half
    assert half is not None
    preprocess = half.preprocess
    monkeypatch.setattr(half, "preprocess", lambda *given: made.append(1) or preprocess(*given))
    with pytest.raises(ContextOverflow):
        outputs(engine, request(*(png(seed, 280, 280) for seed in range(20))))
    assert 3 <= len(made) <= 3 + engine._preparation._n_ahead  # of a hundred tokens each


def test_progress_of_a_prompt_is_told_where_it_is_asked_for(load: Load) -> None:
    engine = load(n_batch=16, n_ubatch=16)
    wanted = replace(request("the user " * 8, png(), n=4), progress=True)
    found = [output.progress for output in outputs(engine, wanted) if output.progress]
    total = outputs(load(), wanted)[-1].usage.prompt_tokens
    assert found[0].processed == 0
    assert [p.processed for p in found] == sorted({p.processed for p in found})
    assert {p.total for p in found} == {total} == {found[-1].processed}
    again = [output.progress for output in outputs(engine, wanted) if output.progress]
    assert again[0].processed == again[0].cached == total - 1


def test_a_prompt_as_long_as_the_context_gets_one_token(load: Load) -> None:
    engine = load(n_ctx=256)
    base = outputs(engine, request("", n=1))[-1].usage.prompt_tokens
    last = outputs(engine, request("1" * (256 - base), n=None))[-1]
    assert (last.usage.prompt_tokens, last.usage.completion_tokens, last.finish_reason) == (256, 1, "length")
    with pytest.raises(ContextOverflow):
        outputs(engine, request("1" * (257 - base)))


def test_a_repeated_prompt_decodes_one_row_of_it(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = request(png(), "what", n=4)
    first = outputs(engine, wanted)
    before = engine.stats()
    monkeypatch.delattr(Encoder, "submit")  # what the cache holds is not encoded again
    assert before.media_rows == 12
    again = outputs(engine, wanted)
    after = engine.stats()
    assert joined(again) == joined(first)
    assert after.media_rows == before.media_rows
    assert after.token_rows == before.token_rows + 1 + 3
    assert after.n_reused == first[-1].usage.prompt_tokens - 1


def test_the_next_turn_of_a_chat_decodes_the_new_turn_only(engine: Engine) -> None:
    user = Message("user", (Source("image", data=png()), "what"))
    wanted = request(sampling=replace(GREEDY, grammar='root ::= "an image"'), n=None)
    first = outputs(engine, replace(wanted, messages=(user,)))
    before = engine.stats()
    said = Message("assistant", ("".join(output.text for output in first),))
    second = outputs(engine, replace(wanted, messages=(user, said, Message("user", ("the user",)))))
    after = engine.stats()
    assert after.encoder.runs == before.encoder.runs
    new = second[-1].usage.prompt_tokens - after.n_reused
    assert new < first[-1].usage.prompt_tokens
    assert after.token_rows - before.token_rows == new + second[-1].usage.completion_tokens - 1


def test_a_changed_picture_reuses_only_what_stands_before_it(load: Load) -> None:
    engine = load()
    one, two = request("the user", png(0), "what", n=12), request("the user", png(1), "what", n=12)
    tokens(engine, one)
    before = engine.stats()
    assert tokens(engine, two) == tokens(load(), two)
    after = engine.stats()
    assert after.media_rows == before.media_rows + 12
    assert 0 < after.n_reused < outputs(load(), request("the user", n=1))[-1].usage.prompt_tokens


def test_other_pixel_limits_make_another_picture_of_it(engine: Engine) -> None:
    wanted = request(png(0, 280, 280), "what", n=1)
    large = outputs(engine, wanted)[-1]
    small = outputs(engine, replace(wanted, media=MediaSettings(max_pixels=112 * 112)))[-1]
    assert (large.usage.media_tokens, small.usage.media_tokens) == (100, 16)


def test_the_options_limit_pictures_where_the_request_does_not(load: Load) -> None:
    engine = load(max_pixels=112 * 112)
    wanted = request(png(0, 280, 280), "what", n=1)
    assert outputs(engine, wanted)[-1].usage.media_tokens == 16
    assert outputs(engine, replace(wanted, media=MediaSettings(max_pixels=10**6)))[-1].usage.media_tokens == 100


def test_ask_works_while_an_event_loop_runs(engine: Engine) -> None:
    async def inside() -> str:
        return engine.ask("what", [png()], max_tokens=6, temperature=0)

    assert asyncio.run(inside()) == engine.ask("what", [png()], max_tokens=6, temperature=0)


def test_timings_add_up(engine: Engine) -> None:
    start = time.perf_counter()
    found = outputs(engine, request(png(), "what", n=16))
    total = 1e3 * (time.perf_counter() - start)
    decoding = [output.timings.decode_ms for output in found]
    assert decoding == sorted(decoding)
    t = found[-1].timings
    assert engine.load_ms > 0
    assert min(t.preprocess_ms, t.encode_ms, t.prefill_ms, t.decode_ms) > 0
    assert t.preprocess_ms + t.encode_ms < t.time_to_first_token_ms
    assert t.time_to_first_token_ms + t.decode_ms <= total
    assert t.tokens_per_second == pytest.approx(15 / (t.decode_ms / 1e3))


def test_the_model_says_how_it_is_sampled(engine: Engine, checkpoint: Path) -> None:
    assert (checkpoint / "generation_config.json").exists()
    expected = Sampling()
    metadata = engine._text.metadata
    if "general.sampling.temp" in metadata:
        expected = replace(expected, temperature=float(metadata["general.sampling.temp"]))
    if "general.sampling.top_k" in metadata:
        expected = replace(expected, top_k=int(metadata["general.sampling.top_k"]))
    assert engine.default_sampling == expected


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (request("what", n=0), "max_tokens is 0"),
        (request("what", stop=("a", "")), "stop string is empty"),
        (Request(()), "no messages"),
        (request("what", sampling=Sampling(top_p=float("nan"))), "top_p"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused(engine: Engine, wanted: Request, words: str) -> None:
    with pytest.raises(InputError, match=words):
        outputs(engine, wanted)
    assert tokens(engine, request("what"))


def test_a_model_without_a_media_half_answers_text_and_refuses_pictures(deployment: Path, engine: Engine) -> None:
    with Engine.load(model=deployment / "text.gguf", options=engine.options) as text_only:
        assert tokens(text_only, request("what", n=12)) == tokens(engine, request("what", n=12))
        with pytest.raises(InputError):
            outputs(text_only, request(png(), "what"))


def test_a_picture_that_is_none_is_a_media_error(engine: Engine) -> None:
    with pytest.raises(MediaError):
        engine.ask("what", [b"no picture"])


def test_halves_of_different_models_are_refused_by_their_widths(deployment: Path, tmp_path: Path) -> None:
    import tiny
    from diptych import convert

    convert.convert(tiny.qwen2vl(tmp_path / "c", tiny.Qwen2VL(hidden=64, n_layer=1, v_depth=1)), tmp_path / "out")
    with pytest.raises(MismatchedHalves, match=r"mmproj.gguf gives rows of width 64.*text.gguf takes rows of width 128"):
        Engine.load(model=deployment / "text.gguf", mmproj=tmp_path / "out" / "mmproj.gguf")
    with pytest.raises(FileError):
        Engine.load(model=deployment / "mmproj.gguf")


def test_halves_that_place_rows_differently_are_refused(deployment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from diptych.families.qwen2vl import Qwen2VL

    monkeypatch.setattr(Qwen2VL, "n_pos", 1)
    with pytest.raises(MismatchedHalves, match=r"mmproj.gguf gives 1 positions a row.*text.gguf takes 4"):
        Engine.load(deployment)


def test_a_closed_engine_says_so(load: Load) -> None:
    engine = load()
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine.ask("what")
    with pytest.raises(EngineError, match="closed"):
        outputs(engine, request("what"))
