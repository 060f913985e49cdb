"""The rule that finds the two halves among the files of a repository, on names as they are used on the hub."""

from __future__ import annotations

import pytest

from diptych.errors import FileError
from diptych.hub.pick import normal, pick, quant_of

QWEN = "Qwen2.5-VL-3B-Instruct"


def text(*names: str, tag: str = "") -> str:
    return pick("u/r", names, tag).text[0]


def mmproj(*names: str, of: str) -> str | None:
    return pick("u/r", [of, *names]).mmproj


@pytest.mark.parametrize(
    ("name", "quant"),
    [
        (f"{QWEN}-Q4_K_M.gguf", "Q4_K_M"),
        (f"{QWEN}-UD-Q4_K_XL.gguf", "UD-Q4_K_XL"),
        ("qwen2.5-vl-3b-q4_k_m.gguf", "Q4_K_M"),
        ("Qwen3-VL-8B.i1-IQ4_XS.gguf", "IQ4_XS"),
        ("Qwen3-VL-8B.fp16.gguf", "F16"),
        ("Qwen3-VL-8B-BF16-00001-of-00002.gguf", "BF16"),
        ("gpt-MXFP4_MOE.gguf", "MXFP4_MOE"),
        ("x-TQ1_0.gguf", "TQ1_0"),
        ("f16-base-Q8_0.gguf", "Q8_0"),
        ("Q6_K/model-00001-of-00002.gguf", "Q6_K"),
        ("Q6_K/model-Q5_K_S.gguf", "Q5_K_S"),
        ("UD-IQ1_S/deep/model.gguf", "UD-IQ1_S"),
        ("Q8_0/Q4_K_M/model.gguf", "Q4_K_M"),
        ("Qwen2-VL-2B.gguf", ""),
        ("eq8_0x.gguf", ""),
    ],
)
def test_a_quantisation_is_read_from_a_name_or_its_folder(name: str, quant: str) -> None:
    assert quant_of(name) == quant


@pytest.mark.parametrize("tag", ["Q8_0", "q8_0"])
def test_the_quantisation_asked_for_is_taken_in_any_case(tag: str) -> None:
    assert text("a-Q4_K_M.gguf", "a-Q8_0.gguf", tag=tag) == "a-Q8_0.gguf"
    assert text("a.q4_k_m.gguf", "a.q8_0.gguf", tag=tag) == "a.q8_0.gguf"


def test_f16_is_not_bf16() -> None:
    names = ("a-BF16.gguf", "a-F16.gguf", "a-F32.gguf")
    assert [text(*names, tag=tag) for tag in ("f16", "bf16", "fp16", "F32")] == [names[1], names[0], names[1], names[2]]


def test_unsloths_quantisation_answers_to_both_names() -> None:
    names = ("a-UD-Q4_K_XL.gguf", "a-Q8_0.gguf")
    assert text(*names, tag="Q4_K_XL") == text(*names, tag="ud-q4_k_xl") == names[0]
    assert text("a-Q4_K_XL.gguf", *names, tag="Q4_K_XL") == "a-Q4_K_XL.gguf", "the plain one where there is one"
    with pytest.raises(FileError, match="no UD-Q8_0; it has Q8_0, UD-Q4_K_XL"):
        text(*names, tag="UD-Q8_0")


@pytest.mark.parametrize(
    ("quants", "taken"),
    [
        (("Q2_K", "Q4_K_M", "Q4_0", "Q8_0", "UD-Q4_K_XL"), "Q4_K_M"),
        (("Q2_K", "UD-Q4_K_M", "Q8_0"), "UD-Q4_K_M"),
        (("Q4_0", "UD-Q4_K_XL", "Q5_K_M"), "UD-Q4_K_XL"),
        (("Q4_0", "Q4_K_S", "IQ4_XS"), "Q4_K_S"),
        (("Q3_K_M", "Q5_K_S", "Q8_0", "F16"), "Q5_K_S"),
        (("Q8_0", "F16"), "Q8_0"),
        (("F32", "BF16", "Q2_K"), "BF16"),
        (("Q2_K", "Q3_K_S", "IQ1_M"), "Q3_K_S"),
        (("IQ1_M", ""), "IQ1_M"),
        (("",), ""),
    ],
)
def test_without_a_quantisation_it_is_q4_k_m_or_the_next_that_is_there(quants: tuple[str, ...], taken: str) -> None:
    names = [f"model-{quant}.gguf" if quant else "model.gguf" for quant in quants]
    assert pick("u/r", names).quant == pick("u/r", names[::-1]).quant == taken


def test_a_tag_is_compared_in_one_form() -> None:
    assert (normal("latest"), normal("q4_k_m"), normal("fp16")) == ("", "Q4_K_M", "F16")
    assert normal("Dir/File-fp16.gguf") == "Dir/File-fp16.gguf"


def test_what_is_no_model_of_its_own_is_never_picked() -> None:
    side = (
        "imatrix.gguf", f"{QWEN}-imatrix.gguf", f"{QWEN}.imatrix-Q4_K_M.gguf", "mtp-Q4_K_M.gguf", "MTP/x-Q4_K_M.gguf",
        "mmproj-Q4_K_M.gguf", "draft-Q4_K_M.gguf", "eagle3-x-Q4_K_M.gguf", f"{QWEN}-draft-Q4_K_M.gguf", "dflash-Q4_K_M.gguf",
    )  # fmt: skip
    assert text(*side, f"{QWEN}-Q8_0.gguf") == f"{QWEN}-Q8_0.gguf"
    with pytest.raises(FileError, match="holds no text half as GGUF"):
        text(*(name for name in side if f"{QWEN}-draft" not in name))


def test_a_model_that_holds_its_draft_layers_is_a_model() -> None:
    assert text("Qwen3.6-27B-MTP-Q4_K_M.gguf", "Qwen3.6-27B-MTP-Q8_0.gguf") == "Qwen3.6-27B-MTP-Q4_K_M.gguf"


def test_all_parts_of_a_split_model_are_taken_in_order() -> None:
    parts = [f"Q4_K_M/x-Q4_K_M-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    choice = pick("u/r", [*parts[::-1], "x-Q8_0.gguf", "mmproj-F16.gguf"])
    assert choice.text == tuple(parts)
    assert choice.files == (*parts, "mmproj-F16.gguf")
    with pytest.raises(FileError, match=r"its part Q4_K_M/x-Q4_K_M-00002-of-00003\.gguf is not there"):
        pick("u/r", [parts[0], parts[2]])


def test_several_models_of_one_quantisation_are_told_and_one_can_be_named() -> None:
    names = ["3B/a-Q4_K_M.gguf", "7B/a-7B-Q4_K_M.gguf", "3B/mmproj-F16.gguf", "7B/mmproj-F16.gguf"]
    with pytest.raises(FileError, match=r"several models of Q4_K_M: 3B/a-Q4_K_M\.gguf, 7B/.*; name one: u/r:3B/a-Q4_K_M\.gguf"):
        pick("u/r", names)
    for tag in "7B/a-7B-Q4_K_M.gguf", "a-7B-Q4_K_M.gguf":
        choice = pick("u/r", names, tag)
        assert (choice.text, choice.mmproj) == (("7B/a-7B-Q4_K_M.gguf",), "7B/mmproj-F16.gguf")
    with pytest.raises(FileError, match=r"no b\.gguf; it has Q4_K_M"):
        pick("u/r", names, "b.gguf")


@pytest.mark.parametrize(
    ("kinds", "taken"),
    [
        (("F32", "Q8_0", "BF16", "F16"), "F16"),
        (("F32", "Q8_0", "BF16"), "BF16"),
        (("f32", "Q8_0"), "f32"),
        (("Q8_0", "Q4_0"), "Q8_0"),
        (("Q4_0",), "Q4_0"),
    ],
)
def test_of_several_mmproj_files_f16_is_first(kinds: tuple[str, ...], taken: str) -> None:
    names = [f"mmproj-{kind}.gguf" for kind in kinds]
    assert mmproj(*names, of="a-Q4_K_M.gguf") == f"mmproj-{taken}.gguf"


@pytest.mark.parametrize(
    ("of", "names", "taken"),
    [
        ("a-Q4_K_M.gguf", ("mmproj/F16.gguf",), "mmproj/F16.gguf"),
        ("Q4_K_M/a-Q4_K_M.gguf", ("mmproj-F16.gguf", "Q8_0/mmproj-F16.gguf"), "mmproj-F16.gguf"),
        ("Q4_K_M/a-Q4_K_M.gguf", ("Q4_K_M/mmproj-F32.gguf", "mmproj-F16.gguf"), "Q4_K_M/mmproj-F32.gguf"),
        ("7B/a-Q4_K_M.gguf", ("7B/mmproj-x-F16.gguf", "mmproj-a-F16.gguf"), "7B/mmproj-x-F16.gguf"),
        ("O-3B-Q4_K_M.gguf", ("mmproj-O-7B-f16.gguf", "mmproj-O-3B-Q8_0.gguf"), "mmproj-O-3B-Q8_0.gguf"),
        ("O-3B-Q4_K_M.gguf", ("mmproj-O-3B-it-f16.gguf", "mmproj-O-3B-Q8_0.gguf"), "mmproj-O-3B-Q8_0.gguf"),
        ("a-Q4_K_M.gguf", ("a.mmproj-f16.gguf",), "a.mmproj-f16.gguf"),
        ("a-Q4_K_M.gguf", ("mmproj-imatrix.gguf", "mmproj.gguf"), "mmproj.gguf"),
        ("a-Q4_K_M.gguf", ("MMPROJ-a-F16.gguf",), "MMPROJ-a-F16.gguf"),
        ("a-Q4_K_M.gguf", ("README.md",), None),
    ],
)
def test_the_mmproj_is_the_nearest_and_most_alike(of: str, names: tuple[str, ...], taken: str | None) -> None:
    assert mmproj(*names, of=of) == mmproj(*names[::-1], of=of) == taken


def test_a_repository_without_a_gguf_is_told_what_to_do() -> None:
    with pytest.raises(FileError, match=r"holds a checkpoint and no GGUF.*diptych convert"):
        pick("u/r", ["model-00001-of-00002.safetensors", "config.json"])
    with pytest.raises(FileError, match=r"no text half as GGUF; it holds README\.md"):
        pick("u/r", ["README.md"])
    with pytest.raises(FileError, match="it holds nothing"):
        pick("u/r", [])


def test_an_absent_quantisation_is_answered_with_those_that_are_there() -> None:
    with pytest.raises(FileError, match=r"^u/r has no Q2_K; it has Q4_K_M, Q8_0, odd\.gguf$"):
        text("a-Q4_K_M.gguf", "a-Q8_0.gguf", "odd.gguf", tag="Q2_K")
