"""Measure the reader on held-out pictures, through Diptych itself: `python evaluate.py [--deployment reader] [--n 500]`.

Training draws from seeds of small numbers and these pictures from a seed of their own; their strings are random, so none
was seen. A character is right when the edit distance says so; a line when it is right as a whole.
"""

from __future__ import annotations

import argparse
import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from diptych import Engine, Source
from drawing import CELL, FONTS, Picture, Style, draw

HELD_OUT = 20_260_000  # seeds from here on are never trained on
QUESTIONS = (
    "Read the text.",
    "What does the picture say?",
    "ocr please",
    "Kannst du das lesen?",
    "Just the words!",
    "Return all of the text, exactly as it is printed.",
)
CLAIM = Style(core=1.0, lines=(1, 2), length=(1, 20), fonts=FONTS[:2], size=(18, 24))
BEYOND = {  # what it reads often, and does not claim to
    "five fonts at 16 to 28 pixels, up to four lines": Style(core=1.0, lines=(1, 4), length=(1, 24), size=(16, 28)),
    "the same with small letters": Style(core=0.0, lines=(1, 4), length=(1, 24), size=(16, 28)),
}


@dataclass
class Score:
    """Characters and lines, asked and right."""

    characters: int = 0
    wrong: int = 0
    lines: int = 0
    right_lines: int = 0

    def add(self, said: str, text: str) -> None:
        self.characters += len(text)
        self.wrong += min(len(text), distance(said, text))
        asked, given = text.split("\n"), said.split("\n")
        self.lines += len(asked)
        self.right_lines += sum(a == b for a, b in zip(asked, given, strict=False))

    @property
    def character_rate(self) -> float:
        return 1 - self.wrong / max(1, self.characters)

    @property
    def line_rate(self) -> float:
        return self.right_lines / max(1, self.lines)


def distance(a: str, b: str) -> int:
    """Levenshtein's edit distance."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        last, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (x != y))
    return row[-1]


def held_out(style: Style, n: int, seed: int) -> list[Picture]:
    """`n` pictures of any size from about 112 × 56 to 560 × 224 pixels."""
    rng = np.random.default_rng(HELD_OUT + seed)
    return [draw(rng, style, int(rng.integers(4, 21)) * CELL, int(rng.integers(2, 9)) * CELL) for _ in range(n)]


def png(picture: Picture) -> bytes:
    out = io.BytesIO()
    picture.raw.save(out, "PNG")
    return out.getvalue()


def evaluate(engine: Engine, pictures: list[Picture]) -> tuple[Score, list[tuple[str, str]]]:
    """The score over these pictures, and what was read otherwise than written: (written, read)."""
    score, errors = Score(), []
    for i, picture in enumerate(pictures):
        said = engine.ask(QUESTIONS[i % len(QUESTIONS)], [Source("image", data=png(picture))], temperature=0.0, max_tokens=200)
        score.add(said, picture.text)
        if said != picture.text:
            errors.append((picture.text, said))
    return score, errors


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--deployment", default="reader")
    parser.add_argument("--n", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--errors", type=Path, help="write what was misread here, as JSON")
    parsed = parser.parse_args()
    misread: dict[str, list[tuple[str, str]]] = {}
    with Engine.load(parsed.deployment) as loaded:
        for name, style in {"what it claims to read": CLAIM, **BEYOND}.items():
            result, wrong = evaluate(loaded, held_out(style, parsed.n, parsed.seed))
            print(
                f"{name}: {result.character_rate:.2%} of characters, {result.line_rate:.2%} of lines, {parsed.n} pictures",
                flush=True,
            )
            misread[name] = wrong
    if parsed.errors:
        parsed.errors.write_text(json.dumps(misread, indent=1, ensure_ascii=False))
