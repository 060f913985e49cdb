"""Requests to tokens: the sequences, whose turn it is, their places in the KV cache, and the loop that decodes them."""

from diptych.engine.engine import Engine
from diptych.engine.stats import Stats

__all__ = ["Engine", "Stats"]
