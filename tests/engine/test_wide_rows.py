"""Text halves that take more of a picture than a row of their own width, and text halves with a recurrent state."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from asking import png, request, together, tokens

import tiny
import tiny_qwen3
from diptych import convert
from diptych.engine import Engine
from diptych.errors import FileError, MismatchedHalves
from diptych.weights import Weights, open_gguf, write_gguf

pytestmark = pytest.mark.parity
SHAPES = {
    "qwen3vl": tiny_qwen3.Qwen3(),
    "qwen3.5": tiny_qwen3.Qwen3("Qwen3_5ForConditionalGeneration", seed=5),
    "no deepstack": tiny_qwen3.Qwen3(deepstack=()),
}
ASKED = [request(png(i, 112 + 56 * (i % 2), 84), "what is the", "user" * i, n=12) for i in range(4)]


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            folder = tmp_path_factory.mktemp("tiny")
            convert.convert(tiny_qwen3.write(folder / "c", SHAPES[name]), folder / "out", outtype="f32")
            made[name] = folder / "out"
        return made[name]

    return make


@pytest.mark.parametrize("name", ["qwen3vl", "qwen3.5"])
def test_requests_at_the_same_time_get_what_each_gets_alone(name: str, deployment: Callable[[str], Path]) -> None:
    with Engine.load(deployment(name), options=tiny.EXACT.model_copy(update={"n_parallel": 4})) as engine:
        found = together(engine, ASKED)
    for wanted, one in zip(ASKED, found, strict=True):
        with Engine.load(deployment(name), options=tiny.EXACT) as engine:
            assert tokens(engine, wanted) == one
    assert len(set(found)) == len(found)


@pytest.mark.parametrize("name", ["qwen3vl", "qwen3.5"])
def test_an_answer_is_the_same_after_others_of_the_same_beginning(name: str, deployment: Callable[[str], Path]) -> None:
    """A recurrent state cannot be cut back to the beginning they share."""
    again = [ASKED[0], ASKED[1], request(png(0), "what is the", "image", n=12), ASKED[0]]
    with Engine.load(deployment(name), options=tiny.EXACT) as engine:
        found = [tokens(engine, wanted) for wanted in again]
    assert found[0] == found[3]
    with Engine.load(deployment(name), options=tiny.EXACT) as engine:
        assert tokens(engine, again[2]) == found[2]


def test_each_deepstack_layer_reaches_a_layer_of_its_own(deployment: Callable[[str], Path], tmp_path: Path) -> None:
    """With two of them in each other's place the answer is another."""
    mmproj = open_gguf(deployment("qwen3vl") / "mmproj.gguf")
    names = {n: n.replace(".0.", ".x.").replace(".2.", ".0.").replace(".x.", ".2.") for n in mmproj.tensors if "deepstack" in n}
    swapped = {n: mmproj.tensors[names.get(n, n)] for n in mmproj.tensors}
    write_gguf(tmp_path / "mmproj.gguf", Weights(mmproj.metadata, {n: replace(t, name=n) for n, t in swapped.items()}))
    answers = []
    for file in (deployment("qwen3vl") / "mmproj.gguf", tmp_path / "mmproj.gguf"):
        with Engine.load(model=deployment("qwen3vl") / "text.gguf", mmproj=file, options=tiny.EXACT) as engine:
            answers.append([tokens(engine, wanted) for wanted in ASKED])
    assert answers[0] != answers[1]


def test_halves_with_different_numbers_of_deepstack_layers_are_refused(deployment: Callable[[str], Path]) -> None:
    text, mmproj = deployment("qwen3vl") / "text.gguf", deployment("no deepstack") / "mmproj.gguf"
    with pytest.raises(MismatchedHalves, match=r"gives rows of width 128.*takes rows of width 384"):
        Engine.load(model=text, mmproj=mmproj)


def test_a_text_half_that_llama_cpp_would_abort_over_is_refused(deployment: Callable[[str], Path], tmp_path: Path) -> None:
    whole = open_gguf(deployment("qwen3vl") / "text.gguf")
    for n in (3, 4):
        path = tmp_path / f"{n}.gguf"
        write_gguf(path, Weights({**whole.metadata, "qwen3vl.n_deepstack_layers": n}, whole.tensors))
        with pytest.raises(FileError, match=f"rows in {n} of its 3 layers"):
            Engine.load(model=path)
