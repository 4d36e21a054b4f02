"""Fixtures for tests of data in stores."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deit_fast.runtime import patience


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> Iterator[Any]:
    """The store of tests/loopback.py, with a short patience for its failures."""
    from tests.loopback import serve_loopback  # skips where a store's library is missing

    monkeypatch.setattr(patience, "PATIENCE_SECONDS", 1.0)
    with serve_loopback(monkeypatch, tmp_path) as store:
        yield store
