"""Requests to chunks: token ids equal to transformers' around every picture, and the errors of a prompt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pytest

import pictures
import tiny
from diptych.errors import InputError, MediaError, UnsupportedMedia
from diptych.families.qwen2vl import Qwen2VL
from diptych.media.access import Access
from diptych.media.load import load
from diptych.prompt import ChatTemplate, build
from diptych.types import Chunk, MediaChunk, MediaSettings, Message, Request, Source, TextChunk

TOKENS = tiny.tokenizer()
ANY_SIZE = MediaSettings()
PAD = TOKENS.token_to_id("<|image_pad|>")


def tokenize(text: str) -> list[int]:
    return TOKENS.encode(text, add_special_tokens=False).ids


@dataclass(frozen=True)
class Words:
    """The tiny vocabulary."""

    prefix_tokens: tuple[int, ...] = ()
    n_vocab: int = TOKENS.get_vocab_size()

    def tokenize(self, text: str) -> list[int]:
        return tokenize(text)


def seen_by(half: Qwen2VL | None, settings: MediaSettings = ANY_SIZE) -> Callable[[Source], list[MediaChunk]]:
    """How a media part becomes chunks."""

    def chunks_of(source: Source) -> list[MediaChunk]:
        assert half is not None
        return half.preprocess(load(source, Access()), settings)

    return chunks_of


def picture(width: int, height: int, seed: int = 0) -> Source:
    return Source("image", data=pictures.encoded(pictures.noise(width, height, seed)))


def chunks(
    half: Qwen2VL | None,
    *turns: tuple[str, tuple[str | Source, ...]],
    template: str = tiny.CHAT_TEMPLATE,
    prefix: tuple[int, ...] = (),
) -> list[Chunk]:
    request = Request(tuple(Message(*turn) for turn in turns))
    return build(request, ChatTemplate(template, "", "<|im_end|>"), Words(prefix), half, seen_by(half))


def ids(made: list[Chunk]) -> list[int]:
    """The prompt as transformers has it: a pad for each row of a picture."""
    return [t for c in made for t in (c.tokens if isinstance(c, TextChunk) else [PAD] * c.n_tokens)]


A, B, WIDE = picture(60, 60), picture(31, 77, 1), picture(300, 40, 2)
CASES = {
    "text only": [("user", ("Hello the user",))],
    "picture first": [("user", (A, "What is this?"))],
    "picture last": [("user", ("What is this? ", A))],
    "picture alone": [("user", (A,))],
    "two pictures": [("user", (A, B, "Which?"))],
    "the same twice": [("user", (A, " and ", A))],
    "text between": [("user", ("one ", A, " the\n\nother ", WIDE, "\n"))],
    "several turns": [
        ("system", ("Be brief.",)),
        ("user", (A, "What?")),
        ("assistant", ("12",)),
        ("tool", ("result: ", WIDE)),
        ("user", ("And", "this", B)),
    ],
    "picture of the system": [("system", (A, "Look at this.")), ("user", ("Well?",))],
    "special tokens typed": [("user", ("a<|im_end|>\n<|im_start|>system\nb", A, "<|endoftext|>"))],
    "other letters": [("user", ("größe 🙂 12", A, "ﬁn e\u0301"))],
}


@pytest.mark.parity
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("template", ["qwen2vl", "numbered"])
def test_token_ids_equal_those_of_transformers(case, template, half, tokenizer):
    numbered = tiny.CHAT_TEMPLATE.replace("{% if add_vision_id %}", "{% if true %}")
    source = numbered if template == "numbered" else tiny.CHAT_TEMPLATE
    made = chunks(half, *CASES[case], template=source)
    conversation = [
        {
            "role": role,
            "content": [{"type": "text", "text": p} if isinstance(p, str) else {"type": "image"} for p in parts]
            if any(isinstance(p, Source) for p in parts)
            else "".join(parts),
        }
        for role, parts in CASES[case]
    ]
    text = tokenizer.apply_chat_template(conversation, chat_template=source, tokenize=False, add_generation_prompt=True)
    for chunk in (c for c in made if isinstance(c, MediaChunk)):  # as Qwen2VLProcessor expands them
        text = text.replace("<|image_pad|>", "<|wait|>" * chunk.n_tokens, 1)
    assert ids(made) == tokenizer(text.replace("<|wait|>", "<|image_pad|>"), add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("case", CASES)
def test_texts_between_two_pictures_are_one_chunk(case, half):
    made = chunks(half, *CASES[case])
    assert not any(isinstance(a, TextChunk) and isinstance(b, TextChunk) for a, b in pairwise(made))
    assert all(c.n_tokens for c in made)


def test_pictures_come_in_the_order_of_the_conversation(half):
    made = [c for c in chunks(half, ("user", (A, "x", B)), ("user", (WIDE, A))) if isinstance(c, MediaChunk)]
    assert [c.size for c in made] == [(60, 60), (31, 77), (300, 40), (60, 60)]
    assert made[0].key == made[3].key
    assert len({c.key for c in made}) == 3


@pytest.mark.parametrize("typed", ["<|image_pad|>", "<|vision_start|><|image_pad|><|vision_end|>"])
def test_a_placeholder_that_a_user_typed_is_a_token_and_no_picture(typed, half):
    made = chunks(half, ("user", (typed, A, typed)))
    assert [c.n_tokens for c in made if isinstance(c, MediaChunk)] == [4]
    assert ids(made).count(PAD) == 2 + 4
    assert ids(chunks(None, ("user", (typed,)))).count(PAD) == 1


def test_special_tokens_that_a_user_typed_count_as_such(half):
    end = TOKENS.token_to_id("<|im_end|>")
    assert ids(chunks(half, ("user", ("a<|im_end|>b", A)))).count(end) == ids(chunks(half, ("user", ("ab", A)))).count(end) + 1


@pytest.mark.parametrize("template", [None, "{% for m in messages %}{{ m.content }}{% endfor %}"])
def test_a_template_that_knows_no_pictures_shows_them_with_what_the_model_wants_around(template, half):
    start, end = TOKENS.token_to_id("<|vision_start|>"), TOKENS.token_to_id("<|vision_end|>")
    made = chunks(half, ("user", ("see ", A, " there")), template=template or "")
    before, shown, after = made
    assert isinstance(shown, MediaChunk)
    assert (before.tokens[-1], after.tokens[0]) == (start, end)


def test_the_prefix_stands_first_and_once(half):
    bos = TOKENS.token_to_id("<|endoftext|>")
    plain, written = "{{ messages[0].content }}", "<|endoftext|>{{ messages[0].content }}"
    for template in (plain, written):
        (made,) = chunks(half, ("user", ("hi",)), template=template, prefix=(bos,))
        assert made.tokens == (bos, *tokenize("hi"))
    assert chunks(half, ("user", ("hi",)), template=plain)[0].tokens == tuple(tokenize("hi"))
    bare = "{% for c in messages[0].content %}{{ c.text }}{% endfor %}"
    assert ids(chunks(half, ("user", (A,)), template=bare, prefix=(bos,)))[:2] == [bos, TOKENS.token_to_id("<|vision_start|>")]


class Bare(Qwen2VL):
    """A family whose pictures have nothing around them, or tokens instead of text."""

    projectors = {}  # noqa: RUF012
    around: tuple[str | TextChunk, ...] = ()

    def layout(self, chunks):
        return [*self.around, *chunks, *self.around, f"#{chunks[0].ordinal}"]


def bare(half: Qwen2VL, *around: str | TextChunk) -> Bare:
    made = Bare(half.weights)
    made.around = around
    return made


def test_a_picture_that_begins_the_prompt_comes_behind_the_prefix(half):
    template = "{% for c in messages[0].content %}<|image_pad|>{% endfor %}"
    made = chunks(bare(half), ("user", (A, B)), template=template, prefix=(7, 8))
    assert [c.tokens if isinstance(c, TextChunk) else "picture" for c in made] == [
        (7, 8),
        "picture",
        tuple(tokenize("#0")),
        "picture",
        tuple(tokenize("#1")),
    ]


def test_tokens_that_a_family_gives_join_the_text_beside_them(half):
    made = chunks(bare(half, TextChunk((1, 2)), "x"), ("user", ("a ", A, "b")), template="{{ messages[0].content }}")
    assert [c.tokens for c in made if isinstance(c, TextChunk)] == [
        (*tokenize("a "), 1, 2, *tokenize("x")),
        (1, 2, *tokenize("x#0b")),
    ]


def test_the_size_of_a_picture_is_what_preprocessing_makes_of_it(half):
    request = Request((Message("user", (picture(300, 300),)),))
    template = ChatTemplate(tiny.CHAT_TEMPLATE)
    large, small = (
        next(c for c in build(request, template, Words(), half, seen_by(half, settings)) if isinstance(c, MediaChunk))
        for settings in (MediaSettings(), MediaSettings(max_pixels=56 * 56))
    )
    assert (large.n_tokens, small.n_tokens) == (9, 1)


def test_nothing_is_loaded_when_the_template_refuses(half):
    def never(source: Source) -> list[MediaChunk]:
        raise AssertionError("loaded")

    request = Request((Message("user", (A,)),))
    with pytest.raises(InputError, match="roles"):
        build(request, ChatTemplate("{{ raise_exception('roles') }}"), Words(), half, never)


def test_pictures_without_a_media_half_are_refused(half):
    with pytest.raises(UnsupportedMedia, match=r"holds 2 media part.* no media half .*--mmproj$"):
        chunks(None, ("user", (A, B)))
    assert ids(chunks(None, ("user", ("hi",)))) == ids(chunks(half, ("user", ("hi",))))


def test_media_of_another_kind_are_refused(half):
    with pytest.raises(
        InputError, match=r"^audio is given, and the media half takes image; leave it out, or try --media-backend mtmd$"
    ):
        chunks(half, ("user", (Source("audio", data=b"x"),)))


def test_a_picture_that_cannot_be_read_is_told(half):
    with pytest.raises(MediaError, match=r"file://nowhere\.png names a file"):
        chunks(half, ("user", (Source("image", url="file://nowhere.png"),)))


def prompted(half: Qwen2VL | None, *prompt: str | int | Source, prefix: tuple[int, ...] = ()) -> list[Chunk]:
    never = ChatTemplate("{{ raise_exception('a template was asked') }}")
    return build(Request(prompt=prompt), never, Words(prefix), half, seen_by(half))


def test_a_raw_prompt_is_tokenised_as_it_stands(half):
    (made,) = prompted(None, "Hello <|im_end|>", " the", 5, 6, "user")
    assert made.tokens == (*tokenize("Hello <|im_end|> the"), 5, 6, *tokenize("user"))
    assert prompted(None, "Hel", "lo") == prompted(None, "Hello")


def test_a_raw_prompt_holds_media_where_they_were_put(half):
    start, end = (TOKENS.token_to_id(name) for name in ("<|vision_start|>", "<|vision_end|>"))
    before, first, between, second, after = prompted(half, "see ", A, 7, B, "there")
    assert before.tokens == (*tokenize("see "), start)
    assert (between.tokens, after.tokens) == ((end, 7, start), (end, *tokenize("there")))
    assert [(c.ordinal, c.size) for c in (first, second)] == [(0, (60, 60)), (1, (31, 77))]


def test_the_prefix_stands_before_a_raw_prompt_that_begins_with_text_or_media_and_not_before_tokens(half):
    assert ids(prompted(half, "hi", prefix=(3,)))[0] == 3
    assert ids(prompted(half, A, prefix=(3,)))[0] == 3
    assert ids(prompted(half, 9, "hi", prefix=(3,)))[0] == 9
    assert ids(prompted(half, "<|endoftext|>hi", prefix=tuple(tokenize("<|endoftext|>")))) == tokenize("<|endoftext|>hi")
    assert prompted(half, prefix=(3,)) == [TextChunk((3,))]


@pytest.mark.parametrize("token", [-1, Words().n_vocab, 10**30])
def test_tokens_out_of_range_are_refused(token, half):
    with pytest.raises(
        InputError, match=rf"the token {str(token)[:20]}, and those of this model are 0 to {Words().n_vocab - 1}$"
    ):
        prompted(half, "hi", token)


def test_media_of_a_raw_prompt_need_a_media_half_that_takes_them(half):
    with pytest.raises(InputError, match=r"no media half"):
        prompted(None, A)
    with pytest.raises(InputError, match=r"audio is given"):
        prompted(half, Source("audio", data=b"x"))


def test_chunks_that_the_client_has_encoded_are_laid_out_and_not_loaded(half):
    encoded = [replace(c, rows=np.zeros((c.n_tokens, 8), np.float32), pieces=()) for c in seen_by(half)(A)]
    given = Source("image", chunks=tuple(encoded))
    for made in (prompted(half, "see ", given, B), chunks(half, ("user", ("see ", given, B)))):
        first, second = (c for c in made if isinstance(c, MediaChunk))
        assert first.rows is encoded[0].rows
        assert (first.ordinal, second.ordinal, second.rows) == (0, 1, None)
        assert ids(made) == ids(prompted(half, "see ", A, B)) or ids(made) == ids(chunks(half, ("user", ("see ", A, B))))
