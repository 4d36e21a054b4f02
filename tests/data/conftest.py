"""What tests of data from stores share."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deit_fast.runtime import patience


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> Iterator[Any]:
    """A store on loopback, that of tests/loopback.py, which nobody waits long for."""
    from tests.loopback import serve_loopback  # which skips where a store's library is missing

    monkeypatch.setattr(patience, "PATIENCE_SECONDS", 1.0)
    with serve_loopback(monkeypatch, tmp_path) as store:
        yield store
