"""What an ONNX file of others has to be, and how a picture goes into it: read off its header before anything is loaded.

One float32 input: patch rows (n, width of a row), or pixels (1, 3, height, width); either with or without a leading 1.
One or several float32 outputs: (tokens, width), or (1, tokens, width).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from diptych.deploy.deployment import Encoder, Size
from diptych.deploy.header import Header, Port
from diptych.errors import FileError
from diptych.types import Grid

MAX_PIXELS = 1 << 26  # of a graph's pictures; one alone takes 0.8 GB there
_RGB = 3


@dataclass(frozen=True)
class Form:
    """A graph's input and outputs. What the file leaves open is None.

    `shape` is the input's, -1 for axes of any length; `row` the width of a row of patches, None for pixels. `size` is the
    (width, height) it is made for, `n_tokens` and `n_embd` what each of `outputs` gives, one behind the other for a token.
    """

    encoder: Encoder
    input: str
    shape: tuple[int, ...]
    row: int | None
    size: Size | None
    n_rows: int | None
    n_tokens: int | None
    n_embd: int | None
    outputs: tuple[str, ...]


def form(encoder: Encoder, header: Header) -> Form:
    """How a graph of others is to be fed. Raises FileError when it has another form than can be fed."""
    if len(header.inputs) != 1:
        names = ", ".join(f"{p.name} {p}" for p in header.inputs) or "none"
        raise FileError(f"{encoder.path} has {len(header.inputs)} inputs ({names}), and one float32 input is expected")
    (given,) = header.inputs
    row, height, width = _given(encoder, given)
    n_tokens, n_embd = _rows(encoder, header.outputs)
    size = _size(encoder, height, width)
    shape = tuple(n if isinstance(n, int) else -1 for n in given.shape)
    n_rows = shape[-2] if row is not None and shape[-2] > 0 else None
    return Form(encoder, given.name, shape, row, size, n_rows, n_tokens, n_embd, tuple(p.name for p in header.outputs))


def cells(size: Size, n_tokens: int) -> Grid | None:
    """The lattice of tokens over a picture of `size`: its cells are square, so their side is known. None where it has none.

    1 × 12 × 27 for 324 tokens over 756 × 336 pixels, and never 1 × 18 × 18.
    """
    side = math.isqrt(size[0] * size[1] // n_tokens) if n_tokens else 0
    if not side or side * side * n_tokens != size[0] * size[1] or size[0] % side or size[1] % side:
        return None
    return Grid(1, size[1] // side, size[0] // side)


def _given(encoder: Encoder, port: Port) -> tuple[int | None, int | None, int | None]:
    """(width of a row, None, None) of an input of patch rows, (None, height, width) of one of pixels."""
    shape = port.shape
    if port.type != "float32":
        raise FileError(f"{encoder.path} takes {port.name} as {port}, and float32 is expected; export it with a float32 input")
    bare = shape[1:] if len(shape) in (3, 4) and _is_one(shape[0]) else shape
    if len(bare) == 2 and isinstance(bare[1], int) and bare[1] > 0:
        return bare[1], None, None
    if len(bare) == 3 and (bare[0] == _RGB or isinstance(bare[0], str)):
        height, width = (n if isinstance(n, int) and n > 0 else None for n in bare[1:])
        return None, height, width
    raise FileError(
        f"{encoder.path} takes {port.name} as {port}, and patch rows (n, width) or pixels (1, 3, height, width) are expected"
    )


def _is_one(n: int | str) -> bool:
    return n == 1 or isinstance(n, str)


def _rows(encoder: Encoder, ports: tuple[Port, ...]) -> tuple[int | None, int | None]:
    """(tokens, width) of the outputs, which are alike."""
    for port in ports:
        wanted = "(tokens, width) or (1, tokens, width) of float32 is expected"
        if port.type != "float32" or len(port.shape) not in (2, 3) or (len(port.shape) == 3 and not _is_one(port.shape[0])):
            raise FileError(f"{encoder.path} gives {port.name} as {port}, and {wanted}")
        if port.shape[-2:] != ports[0].shape[-2:]:
            raise FileError(f"{encoder.path} gives {port.name} as {port} and {ports[0].name} as {ports[0]}; they should be alike")
    n_tokens, n_embd = (n if isinstance(n, int) and n > 0 else None for n in ports[0].shape[-2:])
    return n_tokens, n_embd


def _size(encoder: Encoder, height: int | None, width: int | None) -> Size | None:
    """The size a graph is made for, by its shape or the configuration, which may not differ."""
    fixed = (width, height) if width and height else None
    if encoder.size and fixed and encoder.size != fixed:
        raise FileError(
            f"{encoder.path} is made for {fixed[0]}x{fixed[1]} pixels, and the configuration says "
            f"{encoder.size[0]}x{encoder.size[1]}; correct input_size, or input_width and input_height"
        )
    size = encoder.size or fixed
    if size and size[0] * size[1] > MAX_PIXELS:
        raise FileError(f"{encoder.path} is for {size[0]}x{size[1]} pixels, more than {MAX_PIXELS}; take one for a smaller size")
    return size
