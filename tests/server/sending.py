"""Pictures as clients send them."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from PIL import Image


def picture(seed: int = 0) -> str:
    """A PNG file of coarse random squares in base64; 12 tokens of a tiny Qwen2-VL."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3)).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(small).resize((112, 84), Image.Resampling.NEAREST).save(out, "PNG")
    return base64.b64encode(out.getvalue()).decode()


def url(seed: int = 0) -> dict[str, Any]:
    """A part of a message."""
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture(seed)}"}}
