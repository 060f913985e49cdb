"""The shipped reader reads what it claims to, on pictures it was never shown."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

from diptych import Engine, Source, reader
from diptych.encoder.precision import choose
from diptych.errors import EngineError, MissingExtra
from diptych.options import Options

RECIPE = Path(__file__).parent.parent / "examples" / "reader"
N = 100  # pictures; examples/reader/evaluate.py takes 500 and gives the figures of the README


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine.load("reader") as loaded:
        yield loaded


@pytest.fixture(scope="module", autouse=True)
def recipe() -> Iterator[None]:
    sys.path.insert(0, str(RECIPE))
    yield
    sys.path.remove(str(RECIPE))


def test_it_reads_what_it_claims_to(engine: Engine) -> None:
    score, wrong = evaluated(engine, N)
    assert score.character_rate >= 0.97, (score, wrong[:5])
    assert score.line_rate >= 0.90, (score, wrong[:5])


@pytest.mark.parametrize(
    ("precision", "runtime"), [("bf16", "openvino"), ("int8", "openvino"), ("int8", "onnxruntime"), ("int8", "kernels")]
)
def test_it_reads_as_well_in_small_arithmetic(engine: Engine, precision: str, runtime: str) -> None:
    """Less than half a point of characters is lost against f32 on the same pictures."""
    import evaluate

    try:
        choose(Options(precision=precision, media_runtime=runtime))
    except (EngineError, MissingExtra) as error:
        pytest.skip(str(error))
    pictures = evaluate.held_out(evaluate.CLAIM, N, seed=1)
    exact, _ = evaluated(engine, N)
    with Engine.load("reader", options=Options(precision=precision, media_runtime=runtime)) as small:
        assert small.about.media["precision"] == precision
        score, wrong = evaluate.evaluate(small, pictures)
    assert exact.characters > 1500
    assert score.character_rate > exact.character_rate - 0.005, (score, exact, wrong[:5])


def test_the_measure_tells_right_from_wrong() -> None:
    import evaluate

    score = evaluate.Score()
    score.add("ABC\nDEF", "ABC\nDEX")
    assert (score.characters, score.wrong, score.lines, score.right_lines) == (7, 1, 2, 1)
    score.add("", "XY")
    assert (score.wrong, score.lines, score.right_lines) == (3, 3, 1)


def test_any_wording_of_the_prompt_works(engine: Engine) -> None:
    picture = example("INVOICE 2041")
    long = "You are an OCR engine. Return the text of the image and nothing else, without any explanation."
    for question in (
        "",
        "Read.",
        "What is the number on this bill, please?",
        "OCR:",
        "どう書いてありますか",
        "¿Qué dice?",
        "x" * 60,
        long,
    ):
        assert engine.ask(question, [picture], temperature=0.0, max_tokens=40) == "INVOICE 2041", question


def test_it_is_small_enough_to_ship() -> None:
    size = sum(f.stat().st_size for f in reader.FOLDER.rglob("*") if f.is_file())
    assert size < 12e6


def test_the_examples_are_read_as_they_say(engine: Engine) -> None:
    for picture in reader.examples():
        said = engine.ask("Read the text.", [picture], temperature=0.0, max_tokens=100)
        assert said == picture.with_suffix(".txt").read_text().rstrip("\n"), picture.name


@cache
def evaluated(engine: Engine, n: int) -> tuple[Any, list[tuple[str, str]]]:
    """What it makes of held-out pictures in f32: the score and the errors."""
    import evaluate

    return evaluate.evaluate(engine, evaluate.held_out(evaluate.CLAIM, n, seed=1))


def example(text: str) -> Source:
    """A picture made with other code than the training pictures."""
    import drawing

    canvas = Image.new("RGB", (300, 70), (250, 250, 246))
    ImageDraw.Draw(canvas).text((30, 22), text, font=drawing.font("DejaVuSans.ttf", 21), fill=(15, 20, 30))
    out = io.BytesIO()
    canvas.save(out, "PNG")
    return Source("image", data=out.getvalue())
