"""A store that fails at random, in a process of its own, and the shards that it has."""

import json
import math
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.store_server import serve
from benchmarks.store_state import Request, Store
from deit_fast.data.sources.index_objects import build_index
from deit_fast.data.sources.shard_index import write_index
from deit_fast.runtime.object_store import list_objects
from tests.image_files import encode, write_tar

SHARDS, IMAGES = 16, 16


def weather(store: Store, seed: int) -> Callable[[Request], str]:
    """What becomes of each request. Credentials are refused for one request in six seconds, as an expired token is."""
    rng, denied = random.Random(seed), [0.0]

    def fault(request: Request) -> str:
        store.rate, store.latency = rng.choice((1e6, 1e7, math.inf)), rng.choice((0.0, 0.0, 0.02, 0.1))
        draw, now = rng.random(), time.monotonic()
        if draw < 0.03:
            return "503"
        if draw < 0.06:
            return "cut"
        if draw < 0.063:
            store.stall_seconds = rng.uniform(1, 20)
            return "stall"
        if draw < 0.1 and now - denied[0] > 6:
            denied[0] = now
            return "403"
        return ""

    return fault


def keep_store(root: Path, told: Path, seed: int) -> None:
    """In a child: serves until it is killed."""
    with serve(root) as store:
        store.fault = weather(store, seed)
        told.with_suffix(".new").write_text(json.dumps(store.environment | {"URL": store.url}))
        told.with_suffix(".new").rename(told)
        signal.pause()


def write_data(bucket: Path) -> None:
    for shard in range(SHARDS):
        members = {}
        for image in range(IMAGES):
            members[f"{shard}-{image:02}.jpg"] = encode(16 + 2 * shard, 16 + image)
            members[f"{shard}-{image:02}.cls"] = str((shard * image) % 3).encode()
        write_tar(bucket / f"train-{shard:02}.tar", members)


def write_store_index(bucket: Path) -> None:
    """In a child, since it starts threads: with the versions that the store tells."""
    objects = [each for each in list_objects("s3://bucket/set")[1] if each.name.endswith(".tar")]
    write_index(build_index(objects, []).called([each.name for each in objects]), bucket, "train")


def replace(shard: Path) -> None:
    """Puts another object of the same size, with the same headers, in the shard's place."""
    data = bytearray(shard.read_bytes())
    for image in range(0, len(data) - 512, 512):
        if data[image : image + 2] == b"\xff\xd8":  # its first bytes stay, so that it looks like an image
            data[image + 300] ^= 255
    rewrite(shard, bytes(data))


def rewrite(shard: Path, data: bytes) -> None:
    new = shard.with_suffix(".new")
    new.write_bytes(data)
    new.rename(shard)
