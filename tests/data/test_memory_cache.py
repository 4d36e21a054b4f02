"""The cache of encoded images: the same bytes, read once, never more than its limit."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from deit_fast.data.sources.base import Source
from deit_fast.data.sources.memory_cache import CachedSource
from deit_fast.data.sources.open import open_source
from deit_fast.recipe.table import get_recipe
from deit_fast.runtime.errors import DataError, RecipeError
from deit_fast.training.run import train
from tests.training.test_train import WORDS

SIZE = 1000


class Counting(Source):
    """Images of SIZE bytes that know how often they were read; the last one cannot be."""

    def __init__(self, count: int) -> None:
        super().__init__("counting", ["one"], np.zeros(count, np.int64))
        self.reads = [0] * count

    def read(self, index: int) -> np.ndarray:
        self.reads[index] += 1
        if index == len(self) - 1:
            raise DataError("unreadable")
        return np.full(SIZE, index % 251, np.uint8)

    def name(self, index: int) -> str:
        return f"image {index}"


def test_what_fits_is_read_once_and_the_rest_every_time() -> None:
    source = Counting(21)
    cached = CachedSource(source, 10 * (SIZE + 500))
    for _ in range(3):
        for index in range(20):
            assert np.array_equal(cached.read(index), np.full(SIZE, index % 251, np.uint8))
    kept = source.reads.count(1)
    assert 10 <= kept <= 15  # what the entries take counts as well
    assert source.reads[:20].count(3) == 20 - kept
    for _ in range(2):
        with pytest.raises(DataError, match="unreadable"):
            cached.read(20)
    assert (len(cached), cached.uri, cached.classes, cached.name(3)) == (21, "counting", ["one"], "image 3")


def test_many_threads() -> None:
    source = Counting(201)
    limit = 120 * (SIZE + 300)
    cached = CachedSource(source, limit)
    order = np.random.default_rng(0).integers(0, 200, 20_000).tolist()
    with ThreadPoolExecutor(8) as pool:
        for index, data in zip(order, pool.map(cached.read, order), strict=True):
            assert data[0] == index % 251
    kept = sum(data.nbytes for data in cached._kept.values())
    assert limit - 2 * SIZE < kept + 300 * len(cached._kept) <= limit + 300 * len(cached._kept)
    assert kept <= limit


def test_a_run_with_a_cache_is_the_run_without(
    folder_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*WORDS, "schedule.epochs=3"]
    plain = train(get_recipe("demo_pretrain", words), str(folder_data), tmp_path / "plain")
    opened: list[str] = []
    plain_open = os.open
    monkeypatch.setattr(
        os, "open", lambda path, *rest, **named: opened.append(str(path)) or plain_open(path, *rest, **named)
    )
    cached = train(get_recipe("demo_pretrain", [*words, "run.cache_gib=0.01"]), str(folder_data), tmp_path / "cached")
    assert cached["loss"] == plain["loss"]
    train_reads = [path for path in opened if path.startswith(str(folder_data / "train")) and Path(path).is_file()]
    assert len(train_reads) == len(set(train_reads)) == 96
    with pytest.raises(RecipeError, match=r"run\.cache_gib=-1"):
        get_recipe("demo_pretrain", ["run.cache_gib=-1"])


def test_it_keeps_what_a_source_knows(folder_data: Path) -> None:
    source = open_source(str(folder_data), "train")
    source.counted = True
    cached = CachedSource(source, 1 << 20)
    assert cached.counted
    assert cached.header(5, cached.read(5)) == source.header(5, source.read(5))
    assert np.array_equal(cached.labels, source.labels)
