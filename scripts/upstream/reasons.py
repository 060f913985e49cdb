"""Why tests of llama.cpp do not pass, in words for users, by patterns of their names."""

from __future__ import annotations

REASONS: dict[str, str] = {}
