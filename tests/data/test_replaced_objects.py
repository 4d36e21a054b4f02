"""Objects of a store that are replaced by others of the same size: before a run, and while one reads them."""

import threading
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import HfFileSystem
from numpy.typing import NDArray

from deit_fast.data.loader.producer import Plan, Producer
from deit_fast.data.sources.base import Source
from deit_fast.data.sources.index_objects import build_index
from deit_fast.data.sources.open import open_source
from deit_fast.data.sources.shard_index import write_index
from deit_fast.data.sources.streamed_shards import StreamedShards
from deit_fast.runtime.object_store import ChangedError, find_object
from tests.image_files import encode, refused, write_tar
from tests.loopback import SCHEMES, Store, place

SHARDS = 10
RANGE = "train-{0..9}.tar"


def members(shard: int, label: int = 0) -> dict[str, bytes]:
    """Two images, whose encoded sizes do not depend on the label."""
    return {
        "a.jpg": encode(20 + shard, 20), "a.cls": str(label).encode(),
        "b.jpg": encode(24, 30 + shard), "b.cls": b"1",
    }  # fmt: skip


@pytest.fixture(params=SCHEMES)
def somewhere(request: pytest.FixtureRequest, store: Store) -> tuple[str, Path]:
    """A URI, and the folder of this machine that it is, with shards."""
    uri, folder = place(store, request.param)
    for shard in range(SHARDS):
        write_tar(folder / f"train-{shard}.tar", members(shard))
    return uri, folder


def replace(shard: Path, content: dict[str, bytes]) -> None:
    size = shard.stat().st_size
    write_tar(shard, content)
    assert shard.stat().st_size == size


def test_while_it_is_read(somewhere: tuple[str, Path]) -> None:
    uri, folder = somewhere
    open_source(str(folder), "train")  # makes the index
    source = open_source(f"{uri}/{RANGE}", "train")
    assert isinstance(source, StreamedShards)
    assert source.read(10).tobytes() == members(5)["a.jpg"]
    replace(folder / "train-5.tar", members(5, label=1))
    with pytest.raises(ChangedError) as error:
        source.read(10)
    assert str(error.value).startswith(f"{uri}/train-5.tar: it changed after it was listed")
    assert "\n" not in str(error.value)
    assert source.read(12).tobytes() == members(6)["a.jpg"]


def test_after_an_index_was_made_of_the_store(somewhere: tuple[str, Path]) -> None:
    """Its labels would be the old ones. Of files, it is made anew."""
    uri, folder = somewhere
    names = [f"train-{shard}.tar" for shard in range(SHARDS)]
    write_index(build_index([find_object(f"{uri}/{name}") for name in names], []).called(names), folder, "train")
    assert open_source(f"{uri}/{RANGE}", "train").labels.tolist() == [0, 1] * SHARDS
    replace(folder / "train-5.tar", members(5, label=1))
    HfFileSystem.clear_instance_cache()  # as in another process
    if uri.startswith("file://"):
        assert open_source(f"{uri}/{RANGE}", "train").labels.tolist() == [0, 1] * 5 + [1, 1] + [0, 1] * 4
        return
    message = refused(f"{uri}/{RANGE}")
    assert message == f"{uri}/train-5.tar: was replaced after its index was made; run deit-fast data index"


def test_after_an_index_was_made_of_local_files(store: Store, somewhere: tuple[str, Path]) -> None:
    """At most eight headers tell, those of the last images."""
    uri, folder = somewhere
    open_source(str(folder), "train")
    store.requests.clear()
    named = [f"{uri}/{RANGE}"] + ([f"{uri}/train.index.json"] if uri.startswith("http") else [])
    for name in named:
        store.requests.clear()
        assert len(open_source(name, "train")) == 2 * SHARDS
        headers = [each for each in store.requests if (each.range or (0, 0))[0] > 0 and "/cdn/" not in each.path]
        assert len(headers) == (0 if uri.startswith("file://") else 8)
    swapped = members(0)
    replace(folder / "train-0.tar", {name: swapped[name] for name in ("b.jpg", "b.cls", "a.jpg", "a.cls")})
    HfFileSystem.clear_instance_cache()  # as in another process
    if uri.startswith("file://"):
        assert open_source(named[0], "train").read(0).tobytes() == swapped["b.jpg"]
        return
    for name in named:
        assert refused(name).startswith(f"{uri}/train-0.tar: has no image where its index says")


def test_a_copy_in_another_store_needs_no_new_index(store: Store) -> None:
    """Versions of S3, Google and the Hub cannot be compared."""
    _, folder = place(store, "s3")
    for shard in range(SHARDS):
        write_tar(folder / f"train-{shard}.tar", members(shard))
    names = [f"train-{shard}.tar" for shard in range(SHARDS)]
    objects = [find_object(f"s3://bucket/set/{name}") for name in names]
    write_index(build_index(objects, []).called(names), folder, "train")
    assert len(open_source("gs://bucket/set", "train")) == 2 * SHARDS


class Failing(Source):
    """The image 0 cannot be reached, and 1, asked for after that, was replaced."""

    def __init__(self) -> None:
        super().__init__("here", ["a"], np.zeros(2, np.int64))
        self._reached = threading.Event()

    def read(self, index: int) -> NDArray[np.uint8]:
        if index == 0:
            self._reached.set()
            raise ConnectionError("503")
        assert self._reached.wait(60)
        raise ChangedError("here: it changed")

    def name(self, index: int) -> str:
        return str(index)


def test_what_the_run_ends_with_is_the_cause_and_no_consequence() -> None:
    images = np.arange(2)
    plan = Plan(images, images, 0, 0, 2, lambda encoded, shapes: [encoded], None)
    producer = Producer(Failing(), iter([plan]), None, 60.0)
    with pytest.raises(StopIteration):
        producer.next_inputs()
    producer.close()
    assert isinstance(producer.error, ChangedError)
