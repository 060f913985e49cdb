"""A hub on loopback for the tests of what comes from one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from hub.repository import FILES, NAME
from hub.stand_in import Hub, Repo, serving, settle


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub without repositories, and empty folders for the hub's library and for Diptych."""
    with serving() as hub:
        settle(monkeypatch, hub, tmp_path)
        yield hub


@pytest.fixture
def repo(hub: Hub) -> Repo:
    """The usual repository on it."""
    return hub.repo(NAME, FILES)
