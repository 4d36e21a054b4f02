"""Training from shards in a store: whatever network, disk and other processes do, the batches are local shards'."""

import errno
import hashlib
import math
import os
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
import s3fs
import torch

from benchmarks.store_server import serve
from benchmarks.store_state import Store
from deit_fast.data.loader.batches import TrainLoader
from deit_fast.data.loader.order import BlockOrder, FullOrder, Order
from deit_fast.data.loader.sampler import TrainSampler
from deit_fast.data.sources import shard_cache, shard_files
from deit_fast.data.sources.base import Source
from deit_fast.data.sources.open import open_source
from deit_fast.data.sources.shard_cache import Disk, ShardCache
from deit_fast.data.sources.streamed_shards import StreamedShards
from deit_fast.runtime import patience
from deit_fast.runtime.errors import StorageError
from deit_fast.runtime.object_store import ChangedError, cached_place, list_objects
from tests.hostile import AUGMENT, damage, refused_by_decoder
from tests.image_files import encode, write, write_tar

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
    headers = [request for request in store.requests if request.range]
    assert len(headers) == 8  # the index is one of local files, whose versions are no store's
    opening = Counter(request.path for request in store.requests if request.method == "GET" and not request.range)
    assert opening == {"/bucket": 1, "/bucket/set/train.index.json": 1, "/bucket/set/train.index.npy": 1}
    store.requests.clear()
    first = train_on(source, 0, steps=1)
    assert first == local(0)[:1]
    asked = Counter("image" if request.range else request.path for request in store.requests)
    assert asked.pop("image") <= BATCH
    assert set(asked.values()) <= {1}  # shards on their way


def test_no_shard_is_fetched_twice_by_the_processes_of_a_machine(store: Store) -> None:
    sources = [open_streamed() for _ in range(3)]
    store.requests.clear()
    for source in sources:
        source.expect(np.arange(SHARDS), SHARDS)
    wait_until(lambda: sum(each.whole for each in sources[0]._cache.files.kept().values()) == SHARDS)
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
        paces = pool.map(lambda part: train_on(sources[part], block, parts=3, part=part, pause=0.03 * part), range(3))
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


@pytest.mark.parametrize("state", ["full", "a file", "another user's"])
def test_a_folder_that_takes_nothing_costs_one_line(
    state: str, store: Store, cache: Path, local: Callable[[int], Seen], monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Every image comes from the store, none is bad, and nothing is left of what could not be kept."""
    source = open_source(URI, "train")
    if state == "full":
        monkeypatch.setattr(os, "fsync", lambda descriptor: raise_error(errno.ENOSPC))
    elif state == "a file":
        shutil.rmtree(cache / "s3" / "bucket" / "set")
        (cache / "s3" / "bucket" / "set").touch()
    else:
        monkeypatch.setattr(shard_files, "try_exclusive", lambda path: raise_error(errno.EACCES))
    assert train_on(source, 3) == local(3)
    said = capfd.readouterr().err.splitlines()
    assert len([line for line in said if "come from the store" in line]) == 1, said
    assert not list(cache.rglob("*.tmp"))


def raise_error(number: int) -> NoReturn:
    raise OSError(number, os.strerror(number))


def test_a_folder_that_is_removed_while_it_is_used(store: Store, cache: Path, local: Callable[[int], Seen]) -> None:
    source = open_source(URI, "train")
    stop = threading.Event()

    def remove() -> None:
        while not stop.wait(0.02):
            shutil.rmtree(cache / "s3", ignore_errors=True)

    thread = threading.Thread(target=remove)
    thread.start()
    try:
        assert train_on(source, 3) == local(3)
    finally:
        stop.set()
        thread.join()


FETCH = """
import sys
from deit_fast.data.sources.shard_cache import ShardCache
from deit_fast.runtime.object_store import Object
cache = ShardCache([Object(uri, int(size), version) for uri, size, version in (each.split() for each in sys.argv[1:])])
cache.expect(list(range(len(sys.argv) - 1)), 0)
sys.stdin.read()
"""


def test_what_a_killed_process_began_is_gone_on_with(store: Store, folder: Path, cache: Path) -> None:
    content = [np.random.default_rng(number).bytes(5 << 20) for number in range(2)]
    for number, data in enumerate(content):
        write(folder / "bucket" / "large" / f"{number}.tar", data)
    objects = list_objects("s3://bucket/large")[1]
    store.rate = 1 << 20  # bytes a second, so that it is killed midway
    words = [f"{each.uri} {each.size} {each.version}" for each in objects]
    process = subprocess.Popen([sys.executable, "-c", FETCH, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    wait_until(lambda: len([path for path in cache.rglob("*.tmp") if path.stat().st_size]) == 2)
    process.kill()
    process.communicate()
    reached = {path.name[1]: path.stat().st_size for path in cache.rglob("*.tmp")}
    store.rate = math.inf
    store.requests.clear()
    shards = ShardCache(objects, Disk())
    shards.expect([0, 1], 0)
    wait_until(lambda: all(cached_place(each).exists() for each in objects))
    shards.expect([], 0)
    begun = {Path(request.path).stem: request.range[0] for request in store.requests if request.range}
    assert begun == reached
    assert [cached_place(each).read_bytes() for each in objects] == content
    left = {path.name for path in cache.rglob("*") if path.is_file()}
    assert left == {cached_place(each).name for each in objects} | {".room.lock"}


def test_nothing_of_before_a_power_cut_is_trusted(store: Store, cache: Path) -> None:
    """The beginning of a shard, not synced, from before the machine started: zeros, it may be."""
    objects = [each for each in list_objects(URI)[1] if each.name.endswith(".tar")]
    place = cached_place(objects[0])
    partial = place.with_name(f".{place.name}.tmp")
    partial.parent.mkdir(parents=True)
    partial.write_bytes(bytes(5000))
    os.utime(partial, (1e9, 1e9))
    shards = ShardCache(objects, Disk())
    assert shards.read(0, 0, 100) is None
    shards.expect([0], 0)
    wait_until(place.exists)
    shards.expect([], 0)
    assert place.read_bytes() == (store.root / "bucket" / "set" / objects[0].name).read_bytes()


def test_bad_images_are_those_of_local_shards(cache: Path, store: Store, folder: Path) -> None:
    """Bytes that arrived whole and do not decode: the same substitutes, by whichever way they are read."""
    rng = np.random.default_rng(0)
    sound = encode(30, 40)
    broken = [damage(kind, sound, b"", rng) for kind in ("empty", "garbage", "gif", "cut")] + [
        refused_by_decoder(sound)
    ]
    place = folder / "bucket" / "bad"
    for shard in range(4):
        members = {}
        for image in range(12):
            members[f"{shard}-{image}.jpg"] = broken[shard + image % 2] if image in (3, 8) else encode(20 + image, 30)
            members[f"{shard}-{image}.cls"] = str(image % 3).encode()
        write_tar(place / f"train-{shard}.tar", members)
    plain = open_source(str(place), "train")
    source = open_source("s3://bucket/bad", "train")
    assert isinstance(source, StreamedShards)
    assert train_on(source, 2, 8) == train_on(plain, 2, 8)


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)
