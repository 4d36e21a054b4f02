"""Training from shards in a store: whatever the network, the disk and other processes do, the batches of local shards."""

import hashlib
import os
import random
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import s3fs
import torch

from benchmarks.store_server import serve
from benchmarks.store_state import Request, Store
from deit_fast.data.loader.batches import TrainLoader
from deit_fast.data.loader.order import BlockOrder, FullOrder, Order
from deit_fast.data.loader.sampler import TrainSampler
from deit_fast.data.sources import shard_cache
from deit_fast.data.sources.base import Source
from deit_fast.data.sources.open import open_source
from deit_fast.data.sources.shard_cache import Disk
from deit_fast.data.sources.streamed_shards import StreamedShards
from deit_fast.runtime import patience
from deit_fast.runtime.errors import StorageError
from deit_fast.runtime.object_store import ChangedError, Object, list_objects
from tests.hostile import AUGMENT, damage, refused_by_decoder
from tests.image_files import encode, write_tar

CPU = torch.device("cpu")
SHARDS, IMAGES, BATCH = 10, 24, 12
STEPS = 2 * SHARDS * IMAGES // BATCH  # two epochs
URI = "s3://bucket/set"
Seen = list[str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bucket's folder with ten shards of 24 images and their index."""
    root = tmp_path_factory.mktemp("store")
    for shard in range(SHARDS):
        members = {}
        for image in range(IMAGES):
            members[f"{shard}-{image:02}.jpg"] = encode(16 + shard, 16 + image)
            members[f"{shard}-{image:02}.cls"] = str((shard * image) % 3).encode()
        write_tar(root / "bucket" / "set" / f"train-{shard}.tar", members)
    open_source(str(root / "bucket" / "set"), "train")  # makes the index
    return root


@pytest.fixture
def store(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setattr(patience, "PATIENCE_SECONDS", 2.0)
    with serve(folder) as store:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            monkeypatch.delenv(name)
        s3fs.S3FileSystem.clear_instance_cache()
        for name, value in store.environment.items():
            monkeypatch.setenv(name, value)
        yield store
    deadline = time.monotonic() + 60
    while left := [each.name for each in threading.enumerate() if each.name.startswith("deit-fast")]:
        assert time.monotonic() < deadline, left
        time.sleep(0.01)


def order_of(source: Source, block: int) -> Order:
    assert source.shard_edges is not None
    if block:
        return BlockOrder(source.shard_edges, 0, block)
    return FullOrder(len(source), 0, source.shard_edges)


def train_on(source: Source, block: int, steps: int = STEPS, start: int = 0, parts: int = 1, part: int = 0,
             pause: float = 0.0) -> Seen:  # fmt: skip
    """A digest of all that each batch holds."""
    sampler = TrainSampler(order_of(source, block), 1, BATCH, parts, part, node_parts=range(parts))
    loader = TrainLoader(
        source, AUGMENT, 16, [sampler], 0, CPU, 1, stop_step=steps, start_step=start,
        patience=patience.PATIENCE_SECONDS,
    )  # fmt: skip
    seen = []
    for batch in loader:
        time.sleep(pause)
        content = batch.images.numpy().tobytes(), batch.labels.tolist(), batch.indices.tolist(), sorted(batch.bad)
        seen.append(hashlib.sha256(repr(content).encode()).hexdigest())
    return seen


def open_streamed(disk: Disk | None = None) -> StreamedShards:
    """As another process would: with a disk of its own."""
    source = open_source(URI, "train")
    assert isinstance(source, StreamedShards)
    return StreamedShards(URI, source.index, source._objects, disk or Disk())


def two_blocks(source: Source, block: int) -> int:
    assert source.shard_bytes is not None
    return int(np.sort(source.shard_bytes)[-2 * block :].sum())


@pytest.fixture(scope="module")
def local(folder: Path) -> Callable[[int], Seen]:
    source = open_source(str(folder / "bucket" / "set"), "train")
    known: dict[int, Seen] = {}

    def batches(block: int) -> Seen:
        if block not in known:
            known[block] = train_on(source, block)
        return known[block]

    return batches


@pytest.mark.parametrize("block", [0, 3])
def test_batches_are_those_of_local_shards(store: Store, local: Callable[[int], Seen], block: int) -> None:
    source = open_source(URI, "train")
    if block:
        source.limit_cache(two_blocks(source, block))
    assert train_on(source, block) == local(block)
    assert train_on(open_streamed(), block, start=7) == local(block)[7:]  # with a folder that has shards
    assert source.name(30) == f"{URI}/train-1.tar:1-06.jpg"


def test_the_first_batch_costs_an_index_and_its_images(store: Store, local: Callable[[int], Seen]) -> None:
    store.latency = 0.02
    source = open_source(URI, "train")
    opening = Counter(request.path for request in store.requests if request.method == "GET")
    assert opening == {"/bucket": 1, "/bucket/set/train.index.json": 1, "/bucket/set/train.index.npy": 1}
    store.requests.clear()
    first = train_on(source, 0, steps=1)
    ranges = [request for request in store.requests if request.range and request.range[1] is not None]
    images = [request for request in ranges if request.sent < 5000]
    assert first == local(0)[:1]
    assert len(images) <= BATCH


def test_no_shard_is_fetched_twice_by_the_processes_of_a_machine(store: Store) -> None:
    sources = [open_streamed() for _ in range(3)]
    store.requests.clear()
    for source in sources:
        source.expect(np.arange(SHARDS), SHARDS)
    deadline = time.monotonic() + 60
    while len(sources[0]._cache.files.kept()) < SHARDS or not all(
        each.whole for each in sources[0]._cache.files.kept().values()
    ):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    for source in sources:
        source.expect(np.empty(0, np.int64), 0)
    fetched = Counter(request.path for request in store.requests if request.path.endswith(".tar"))
    assert fetched == {f"/bucket/set/train-{shard}.tar": 1 for shard in range(SHARDS)}


def test_processes_of_different_speed_share_a_disk_of_two_blocks(
    store: Store, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a store that fails now and then: every one has its batches, and the disk never holds more."""
    block, most = 3, [0]
    stream_object = shard_cache.stream_object

    def watched(*arguments: object) -> Iterator[bytes]:
        for piece in stream_object(*arguments):
            yield piece
            held = [path for path in cache.rglob("*.t*") if ".tar" in path.name]
            most[0] = max(most[0], sum(path.stat().st_size for path in held if path.exists()))

    monkeypatch.setattr(shard_cache, "stream_object", watched)
    sources = [open_streamed() for _ in range(3)]
    limit = two_blocks(sources[0], block)
    for source in sources:
        source.limit_cache(limit)
    store.unavailable, store.cut = 0.03, 0.02
    with ThreadPoolExecutor(3) as pool:
        paces = pool.map(
            lambda part: train_on(sources[part], block, parts=3, part=part, pause=0.03 * part), range(3)
        )
        found = list(paces)
    store.unavailable = store.cut = 0.0
    plain = open_source(str(store.root / "bucket" / "set"), "train")
    assert found == [train_on(plain, block, parts=3, part=part) for part in range(3)]
    assert 0 < most[0] <= limit


def test_a_shard_that_was_replaced_ends_the_run_and_gives_no_pixels(
    store: Store, folder: Path, tmp_path: Path, local: Callable[[int], Seen]
) -> None:
    source = open_source(URI, "train")
    path = folder / "bucket" / "set" / "train-4.tar"
    kept = shutil.copy2(path, tmp_path / "kept")
    try:
        data = bytearray(path.read_bytes())
        data[3000] ^= 255
        path.write_bytes(data)
        with pytest.raises(ChangedError, match=r"^s3://bucket/set/train-4\.tar: ") as error:
            train_on(source, 0)
        assert error.value.status == 2
        assert "\n" not in str(error.value)
    finally:
        shutil.copy2(kept, path)


def test_a_store_that_goes_on_failing_ends_the_run_and_makes_no_image_bad(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "PATIENCE_SECONDS", 0.1)
    source = open_source(URI, "train")
    store.fault = lambda request: "503" if request.path.endswith("train-4.tar") else ""
    with pytest.raises(StorageError, match=r"train-4\.tar") as error:
        train_on(source, 0)
    assert error.value.status == 74
