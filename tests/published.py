"""A toy model's weights as published weights on a mirror on loopback, and helpers for tests of fetching them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import deit_fast
from benchmarks.store_server import Store
from benchmarks.store_state import Request
from deit_fast.convert import pretrained
from deit_fast.convert.pretrained import open_weights
from deit_fast.runtime import patience
from deit_fast.runtime.errors import RunError
from deit_fast.zoo import Published, weights
from tests.loopback import serve_loopback

SMALL = Published("deit3", 32, 0.1, 0.1, training="made up", tag="1k", weights="https://nowhere.invalid/d/small.pth")
PAGE = b"<!DOCTYPE html><html><body>Log in to the guests' network</body></html>" * 99


def state(name: str = "deit3", image_size: int = 32) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return deit_fast.create_model(name, num_classes=3, img_size=image_size).state_dict()


def file_of(tensors: dict[str, torch.Tensor], path: Path) -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": tensors}, path)
    return path.read_bytes()


def publish(monkeypatch: pytest.MonkeyPatch, *rows: Published) -> None:
    """Adds rows of published weights for toys to the zoo."""
    monkeypatch.setattr(weights, "_WEIGHTS", [*weights._WEIGHTS, *rows])
    for row in rows:
        monkeypatch.setitem(weights._BY_ADDRESS, row.weights, row)


@contextmanager
def serve_mirror(monkeypatch: pytest.MonkeyPatch, root: Path) -> Iterator[Store]:
    """A mirror with small.pth. With the fixture toys, `deit3` is the name of these weights."""
    monkeypatch.setattr(patience, "PATIENCE_SECONDS", 1.0)
    monkeypatch.setattr(pretrained, "_CONNECT_SECONDS", 0.3)
    publish(monkeypatch, SMALL)
    file_of(state(), root / "mirror" / "small.pth")
    with serve_loopback(monkeypatch, root) as served:
        monkeypatch.setenv("DEIT_FAST_WEIGHTS", f"{served.url}/mirror")
        yield served


def refused(given: str, kind: type[Exception] = RunError) -> str:
    with pytest.raises(kind) as error:
        open_weights(given)
    assert type(error.value) is kind
    assert "\n" not in str(error.value)
    return str(error.value)


def kept(cache: Path) -> list[str]:
    """The files below the cache folder, without hidden ones."""
    return sorted(path.name for path in cache.rglob("*") if path.is_file() and not path.name.endswith(".lock"))


def bodies(store: Store) -> list[Request]:
    """The requests for more than the first byte; requests for one byte only check for existence."""
    return [each for each in store.requests if each.sent > 1]
