"""Recordings made by numbers."""

from __future__ import annotations

import io
import wave
from typing import Any

import numpy as np
from numpy.typing import NDArray


def tone(seconds: float = 1.0, hertz: float = 440.0, rate: int = 16000) -> NDArray[np.float64]:
    """(n,) samples of a tone with two overtones."""
    t = np.arange(int(seconds * rate)) / rate
    return sum(np.sin(2 * np.pi * hertz * k * t) / (3 * k) for k in (1, 2, 3))


def wav(samples: NDArray[Any], rate: int = 16000) -> bytes:
    """A WAV file of 16 bits and one channel; samples from -1 to 1."""
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((samples * 32767).astype("<i2").tobytes())
    return out.getvalue()
