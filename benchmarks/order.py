"""Orders of an epoch: how well each mixes, and how its cost grows with the data set. No image is read."""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

from deit_fast.data.loader.mixing import is_sorted
from deit_fast.data.loader.order import BlockOrder, FullOrder, Order
from deit_fast.data.loader.permutation import epoch_permutation
from deit_fast.data.loader.sampler import TrainSampler
from deit_fast.data.loader.streaming_plan import pairs_again, recommended_block
from deit_fast.data.loader.window import Window
from deit_fast.data.sources.base import Source
from deit_fast.runtime.philox import Stream, generator

from .measure import Row, Session

SHARDS, EACH, CLASSES, BATCH = 640, 2000, 1000, 2048
BLOCKS = ((1, 1), (8, 1), (32, 1), (64, 1), (128, 1), (32, 2), (32, 4), (32, 8))  # shards, lanes
SIZES = (10_000, 100_000, 1_000_000, 13_000_000)
PER_SHARD = 1270  # photographs in a shard of 128 MB
EPOCH = 200


def run(session: Session) -> None:
    """The rows of both parts: `kind` is mixing or cost."""
    edges = np.arange(SHARDS + 1) * (EACH // 20 if session.quick else EACH)
    for block, lanes in ((0, 1), *BLOCKS):
        order = BlockOrder(edges, 0, block, lanes) if block else FullOrder(edges[-1], 0, edges)
        row = {"kind": "mixing", "block": block, "lanes": lanes, **measure_mixing(order)}
        session.add({**row, "predicted_again": pairs_again(SHARDS, block, lanes)})
        session.say(", ".join(f"{key} {value:.4g}" for key, value in session.rows[-1].items() if key != "kind"))
    with tempfile.TemporaryDirectory() as folder, patch.dict("os.environ", DEIT_FAST_CACHE=folder):
        for images in SIZES[:2] if session.quick else SIZES:
            for name, cost in costs(images, Path(folder)).items():
                seconds = [cost() for _ in range(session.repeats)]
                session.add({"kind": "cost", "cost": name, "images": images, "cpu_seconds": statistics.median(seconds)})
    for name in dict.fromkeys(row["cost"] for row in session.rows if row["kind"] == "cost"):
        rows = [row for row in session.rows if row.get("cost") == name]
        growth = np.log([row["images"] for row in rows]), np.log([row["cpu_seconds"] for row in rows])
        exponents = [float(each) for each in np.diff(growth[1]) / np.diff(growth[0])]
        session.settings[name] = {"exponents": exponents}
        times = ", ".join(f"{row['cpu_seconds'] * 1e3:.2f}" for row in rows)
        session.say(f"{name}: {times} ms; exponents {', '.join(f'{each:.2f}' for each in exponents)}")


def measure_mixing(order: Order) -> Row:
    """Means over an epoch's batches: shards in a batch; chi-square of its classes over degrees of freedom; entropy.

    again: pairs of images in a batch that share a batch in the next epoch too, over the expectation for a full shuffle.
    """
    images = int(order.edges[-1])
    shuffled = np.random.default_rng(0).permutation(np.arange(images) % CLASSES)
    batches = [batch_of_image(order, epoch) for epoch in (0, 1)]
    used = (batches[0] >= 0) & (batches[1] >= 0)
    steps = order.length // BATCH
    together = np.bincount(batches[0][used] * steps + batches[1][used])
    alone = np.bincount(batches[0][used])
    expected = (alone * (alone - 1)).sum() * (BATCH - 1) / (images - 1)
    shard = np.repeat(np.arange(SHARDS), np.diff(order.edges))
    held = [table(batches[0], values, steps) for values in (shard, shuffled, np.sort(shuffled))]
    shares = held[2] / BATCH
    entropy = -np.where(shares > 0, shares * np.log2(np.maximum(shares, 1e-9)), 0).sum(1)
    return {
        "shards": float((held[0] > 0).sum(1).mean()),
        "least_shards": int((held[0] > 0).sum(1).min()),
        "again": float((together * (together - 1)).sum() / expected),
        "chi_square": chi_square(held[1]),
        "chi_square_sorted": chi_square(held[2]),
        "entropy_sorted": float(entropy.mean()),
    }


def batch_of_image(order: Order, epoch: int) -> NDArray[np.int64]:
    """The batch of each image, int64 [N]; -1 for images that are left over."""
    steps, share = order.length // BATCH, BATCH // order.lanes
    found = np.full(order.edges[-1], -1)
    for lane in range(order.lanes):
        found[order.images(epoch, lane, 0, steps * share)] = np.repeat(np.arange(steps), share)
    return found


def table(batches: NDArray[np.int64], values: NDArray[np.int64], steps: int) -> NDArray[np.int64]:
    """How often each value occurs in each batch, int64 [steps, values]."""
    used, width = batches >= 0, int(values.max()) + 1
    return np.bincount(batches[used] * width + values[used], minlength=steps * width).reshape(steps, width)


def chi_square(counts: NDArray[np.int64]) -> float:
    """Mean over the batches of the classes' chi-square over its degrees of freedom."""
    expected = BATCH / CLASSES
    return float((((counts - expected) ** 2 / expected).sum(1) / (CLASSES - 1)).mean())


def costs(images: int, folder: Path) -> dict[str, Callable[[], float]]:
    """By name, functions that measure the CPU seconds of a part of an order, from scratch as in a new process."""
    edges = np.append(np.arange(0, images, PER_SHARD), images)
    block = recommended_block(len(edges) - 1)
    labels = np.random.default_rng(0).integers(0, CLASSES, images, np.uint32)

    def enter() -> float:
        batch = min(BATCH, images // 8)
        sampler = TrainSampler(BlockOrder(edges, 0, block), 1, batch)
        step = EPOCH * sampler.steps_per_epoch + sampler.steps_per_epoch // 2
        return timed(lambda: sampler.batch(step))

    def tell() -> float:
        order = BlockOrder(edges, 0, block)
        steps = images // 512
        window = Window(Told(edges), order, [0], 512, 1, steps, 300 * steps)
        order.images(EPOCH, 0, images // 2, images // 2 + 1)  # an earlier batch was planned before
        return timed(lambda: window.tell(EPOCH * steps + steps // 2, EPOCH * steps + steps // 2))

    def make() -> float:
        for left in folder.rglob("*.order"):
            left.unlink()
        return timed(lambda: epoch_permutation(images, 0, EPOCH))

    return {
        "data.block=K: epoch 200 entered midway": enter,
        "data.block=K: the window told": tell,
        "chi-square of the shards at open": lambda: timed(lambda: is_sorted(labels, edges)),
        "data.block=0: numpy's shuffle alone": lambda: timed(
            lambda: generator(0, Stream.ORDER, EPOCH).permutation(images)
        ),
        "data.block=0: the permutation made": make,
        "data.block=0: the permutation had by another process": lambda: timed(
            lambda: epoch_permutation(images, 0, EPOCH)
        ),
    }


class Told(Source):
    """A source that accepts `expect` and does nothing."""

    def __init__(self, edges: NDArray[np.int64]) -> None:
        super().__init__("", [], np.empty(0, np.int64))
        self.shard_edges = edges

    def read(self, index: int) -> NDArray[np.uint8]:
        raise NotImplementedError

    def name(self, index: int) -> str:
        raise NotImplementedError


def timed(call: Callable[[], object]) -> float:
    """CPU seconds of a call in this thread."""
    begin = time.thread_time()
    call()
    return time.thread_time() - begin
