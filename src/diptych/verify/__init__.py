"""Compare a model's two halves with references that others wrote: what a user runs before trusting a conversion."""

from __future__ import annotations

from diptych.verify.lines import Line
from diptych.verify.references import made_pictures, verify

__all__ = ["Line", "made_pictures", "verify"]
