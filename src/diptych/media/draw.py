"""A picture for people: what the model sees, cut into patches and tokens, and the positions of the tokens."""

from __future__ import annotations

import io
import unicodedata
from collections.abc import Sequence
from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from diptych.media.rgb import Pixels

Colour = tuple[int, int, int]
Item = tuple[Literal["patch", "token", ""], str]  # a swatch and what it stands for

LONG_SIDE = 1120  # pixels of the picture's longer side as drawn
_ZOOM = 20  # at most, for tiny pictures
_MARGIN, _GAP, _LABEL = 32, 28, 30  # pixels; a label stands above each panel
_LEAST_WIDTH = 720
_TITLE, _TEXT, _SMALL = 26, 17, 15  # font sizes
_PAPER, _INK, _SOFT = (250, 250, 248), (24, 26, 32), (104, 110, 120)
_PATCH, _TOKEN = (0, 114, 178), (224, 82, 6)  # told apart by colour-blind people too (Okabe and Ito)
_LEAST_STEP = 5  # pixels between two grid lines; closer ones would hide the picture
_RAMP = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))  # viridis, five of its colours
_PLANES = {1: ("position",), 4: ("position t", "position y", "position x")}  # the fourth of M-RoPE is always 0


def overlay(
    pixels: Pixels,
    positions: NDArray[np.int32],
    *,
    grid: tuple[int, int, int],
    patch: int,
    merge: int,
    size: tuple[int, int],
    title: str,
) -> Image.Image:
    """Draw pixels (h, w, 3) uint8 under a grid of patches and one of merged tokens, beside the tokens' positions.

    `pixels` are those the encoder is fed; `positions` (n_pos, n_tokens) are drawn as maps over the t × h × w `grid` of
    tokens; `patch` is in pixels, `merge` in patches a side; `size` is (width, height) as given.
    """
    height, width, _ = pixels.shape
    panels = _panels(_gridded(pixels, patch, merge), positions, grid, width / height)
    body = _arrange(panels, width / height)
    across, down, n = width // patch, height // patch, positions.shape[1]
    facts: list[Item] = [
        ("", f"given {size[0]} x {size[1]} px"),
        ("", f"used {width} x {height} px"),
        ("patch", f"{across} x {down} = {_count(across * down, 'patch', 'patches')} of {patch} x {patch} px"),
        ("token", f"{grid[2]} x {grid[0] * grid[1]} = {_count(n, 'token', 'tokens')} of {merge} x {merge} patches"),
    ]
    return _page(title, facts, body)


def seen(
    fed: NDArray[np.float32], used: tuple[int, int], patch: int, merge: int, mean: Sequence[float], std: Sequence[float]
) -> Pixels:
    """What an encoder is fed → the (h, w, 3) uint8 pixels it stands for, by undoing order and normalisation.

    `fed` is a picture (3, h, w), or patches (n_patch, 3 · frames · patch²) in merge order, of which the first frame is
    taken; `used` is (width, height).
    """
    width, height = used
    if fed.ndim == 2:
        cells = fed.reshape(height // patch // merge, width // patch // merge, merge, merge, 3, -1, patch, patch)
        fed = cells[:, :, :, :, :, 0].transpose(4, 0, 2, 5, 1, 3, 6).reshape(3, height, width)
    levels = np.moveaxis(fed, 0, -1) * np.array(std) + np.array(mean)
    pixels: Pixels = np.clip(np.rint(levels * 255), 0, 255).astype(np.uint8)
    return pixels


def png(pixels: Pixels) -> bytes:
    """A PNG file of (h, w, 3) pixels, written fast rather than small."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG", compress_level=1)
    return out.getvalue()


def _count(n: int, one: str, many: str) -> str:
    return f"{n:,} {one if n == 1 else many}"


def _gridded(pixels: Pixels, patch: int, merge: int) -> Image.Image:
    """The picture at drawing size with the thin grid of patches and the strong one of tokens over it."""
    height, width, _ = pixels.shape
    zoom = min(LONG_SIDE / max(width, height), _ZOOM)
    shown = _zoomed(pixels, zoom)
    lines = Image.new("RGBA", shown.size)
    draw = ImageDraw.Draw(lines)
    _rule(draw, shown.size, patch * zoom, _PATCH)
    if merge > 1:
        _rule(draw, shown.size, patch * merge * zoom, _TOKEN, thick=2)
    draw.rectangle((0, 0, shown.width - 1, shown.height - 1), outline=(*_TOKEN, 255), width=2)
    return Image.alpha_composite(shown.convert("RGBA"), lines).convert("RGB")


def _zoomed(pixels: Pixels, zoom: float) -> Image.Image:
    """Large pixels keep their edges, small ones are smoothed."""
    height, width, _ = pixels.shape
    target = max(round(width * zoom), 1), max(round(height * zoom), 1)
    return Image.fromarray(pixels).resize(target, Image.Resampling.NEAREST if zoom >= 4 else Image.Resampling.LANCZOS)


def _rule(draw: ImageDraw.ImageDraw, size: tuple[int, int], step: float, colour: Colour, thick: int = 1) -> None:
    """Lines every `step` pixels both ways, fainter where they are close, none where they would hide the picture."""
    if step < _LEAST_STEP:
        return
    width, height = size
    ink = *colour, 110 + min(round(step), 40) * (145 if thick > 1 else 60) // 40
    thick = thick if step >= 24 else 1
    for i in range(1, round(width / step)):
        draw.line((round(i * step), 0, round(i * step), height), ink, thick)
    for i in range(1, round(height / step)):
        draw.line((0, round(i * step), width, round(i * step)), ink, thick)


def _panels(
    shown: Image.Image, positions: NDArray[np.int32], grid: tuple[int, int, int], aspect: float
) -> list[tuple[str, Image.Image]]:
    """The picture and the maps with their labels. Maps of long pictures are as large as these, others a third."""
    columns = grid[2]
    rows = -(-positions.shape[1] // columns)
    share = 1.0 if _is_long(aspect) else (shown.height - 2 * (_GAP + _LABEL)) / 3 / shown.height
    cell = max(min(shown.width / columns, shown.height / rows) * share, 2.0)
    panels = [("the picture as the encoder gets it", shown)]
    for name, plane in zip(_PLANES.get(len(positions), ("position",)), positions, strict=False):
        low, high = int(plane.min()), int(plane.max())
        span = f"{low}" if low == high else f"{low} to {high}"
        panels.append((f"{name}: {span}", _map(plane, rows, columns, cell, int(positions.max()))))
    return panels


def _map(plane: NDArray[np.int32], rows: int, columns: int, cell: float, highest: int) -> Image.Image:
    """A plane of positions as coloured cells in reading order, with numbers where they fit."""
    image = Image.new("RGB", (max(round(columns * cell), 1) + 1, max(round(rows * cell), 1) + 1), _PAPER)
    draw = ImageDraw.Draw(image)
    font = _font(min(int(cell / 2), 22)) if cell >= 18 else None
    fits = font is not None and font.getlength(str(plane.max())) <= cell * 0.85
    for i, value in enumerate(plane.tolist()):
        y, x = divmod(i, columns)
        box = round(x * cell), round(y * cell), round((x + 1) * cell), round((y + 1) * cell)
        colour = _ramp(value / highest if highest else 0.0)
        draw.rectangle(box, colour, _PAPER if cell >= 8 else None)
        if fits:
            middle = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
            draw.text(middle, str(value), _PAPER if _is_dark(colour) else _INK, font, anchor="mm")
    return image


def _ramp(part: float) -> Colour:
    """0…1 → a colour of the ramp."""
    at = min(max(part, 0.0), 1.0) * (len(_RAMP) - 1)
    i = min(int(at), len(_RAMP) - 2)
    mixed = [round(a + (b - a) * (at - i)) for a, b in zip(_RAMP[i], _RAMP[i + 1], strict=True)]
    return mixed[0], mixed[1], mixed[2]


def _is_dark(colour: Colour) -> bool:
    return 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] < 140  # luma, ITU-R BT.601


def _is_long(aspect: float) -> bool:
    return not 1 / 2 < aspect < 3


def _arrange(panels: Sequence[tuple[str, Image.Image]], aspect: float) -> Image.Image:
    """A wide picture stands above its maps, a tall one beside them, any other beside a column of them."""
    labelled = [_labelled(*panel) for panel in panels]
    if aspect >= 3:
        return _stack(labelled, down=True)
    if aspect <= 1 / 2:
        return _stack(labelled, down=False)
    return _stack([labelled[0], _stack(labelled[1:], down=True)], down=False)


def _labelled(label: str, image: Image.Image) -> Image.Image:
    font = _font(_SMALL)
    out = Image.new("RGB", (max(image.width, round(font.getlength(label)) + 1), image.height + _LABEL), _PAPER)
    ImageDraw.Draw(out).text((0, _LABEL - 10), label, _SOFT, font, anchor="ls")
    out.paste(image, (0, _LABEL))
    return out


def _stack(images: Sequence[Image.Image], *, down: bool) -> Image.Image:
    """Images one below or beside the other, a gap between."""
    widths, heights = [i.width for i in images], [i.height for i in images]
    gaps = _GAP * (len(images) - 1)
    size = (max(widths), sum(heights) + gaps) if down else (sum(widths) + gaps, max(heights))
    out = Image.new("RGB", size, _PAPER)
    at = 0
    for image in images:
        out.paste(image, (0, at) if down else (at, 0))
        at += (image.height if down else image.width) + _GAP
    return out


def _page(title: str, facts: Sequence[Item], body: Image.Image) -> Image.Image:
    """Title, facts and body on one sheet, wide enough for all of them."""
    inner = max(body.width, _LEAST_WIDTH)
    lines = _wrapped(facts, inner)
    top = _MARGIN + 44 + 28 * len(lines)
    page = Image.new("RGB", (inner + 2 * _MARGIN, top + 12 + body.height + _MARGIN), _PAPER)
    draw = ImageDraw.Draw(page)
    draw.text((_MARGIN, _MARGIN + 22), _fitting(title, inner), _INK, _font(_TITLE), anchor="ls")
    for i, line in enumerate(lines):
        _write(draw, line, _MARGIN + 44 + 28 * i + 17)
    page.paste(body, (_MARGIN, top + 12))
    return page


def _wrapped(facts: Sequence[Item], width: int) -> list[list[Item]]:
    lines: list[list[Item]] = [[]]
    for fact in facts:
        if lines[-1] and sum(map(_width, [*lines[-1], fact])) > width + _GAP:
            lines.append([])
        lines[-1].append(fact)
    return lines


def _width(item: Item) -> float:
    return _font(_TEXT).getlength(item[1]) + (26 if item[0] else 0) + _GAP


def _write(draw: ImageDraw.ImageDraw, items: Sequence[Item], baseline: int) -> None:
    x: float = _MARGIN
    for swatch, text in items:
        _swatch(draw, swatch, x, baseline)
        draw.text((x + (26 if swatch else 0), baseline), text, _INK, _font(_TEXT), anchor="ls")
        x += _width((swatch, text))


def _swatch(draw: ImageDraw.ImageDraw, kind: str, x: float, baseline: int) -> None:
    """A little window in the line of the grid it stands for."""
    if not kind:
        return
    colour, thick = (_PATCH, 1) if kind == "patch" else (_TOKEN, 2)
    box = (x, baseline - 14, x + 16, baseline + 2)
    draw.rectangle(box, outline=colour, width=thick)
    draw.line((x + 8, box[1], x + 8, box[3]), colour, thick)
    draw.line((x, baseline - 6, x + 16, baseline - 6), colour, thick)


def _fitting(text: str, width: int) -> str:
    """The text in letters that the font has, its middle left out when it is too long."""
    text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode() or "picture"
    font, keep = _font(_TITLE), len(text)
    short = text
    while font.getlength(short) > width and keep > 8:
        keep -= 1
        short = f"{text[: keep // 2]}...{text[-(keep - keep // 2) :]}"
    return short


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)  # every Pillow wheel brings FreeType
    return font
