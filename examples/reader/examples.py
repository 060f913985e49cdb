"""Draw the example pictures that ship with the reader, each with a text file of what it says: `python examples.py OUT`."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from drawing import FONTS, font

SANS, MONO, _, BOLD, _ = FONTS
BILL = "CAFE MILANO\nESPRESSO 2.40\nCAKE 3.95\nTOTAL: $6.35"
EXAMPLES = (  # name, size, font, font size, paper, ink, where, what
    ("label", (280, 84), BOLD, 24, (252, 247, 214), (40, 30, 20), (40, 26), "SALE: -25%"),
    ("note", (336, 112), SANS, 22, (246, 246, 240), (30, 40, 90), (28, 28), "Meet Anna at noon,\nplatform 7"),
    ("parcel", (350, 100), MONO, 20, (238, 232, 220), (25, 25, 25), (34, 24), "NR 4718-09/B\nWEIGHT 2.5 KG"),
    ("receipt", (300, 150), SANS, 19, (255, 255, 255), (20, 20, 24), (24, 16), BILL),
)  # fmt: skip


def write(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(2)
    for name, size, face, height, paper, ink, corner, text in EXAMPLES:
        picture = Image.new("RGB", size, paper)
        ImageDraw.Draw(picture).multiline_text(corner, text, font=font(face, height), fill=ink, spacing=8)
        grain = rng.normal(0, 3, (size[1], size[0], 1))
        Image.fromarray(np.clip(np.asarray(picture) + grain, 0, 255).astype(np.uint8)).save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(text + "\n")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
